# What a first gradient calls, for the system image.

using PyJuliaODE

PyJuliaODE.load_adjoints()
for T in (Float64, Float32)
    id, status = PyJuliaODE.stub_workspace(T)
    GC.@preserve status for method in ("Tsit5", "DP5")
        kept = PyJuliaODE.stub_solve(T, id, method)
        PyJuliaODE.stub_adjoint(T, id, kept, method, "gauss")
        PyJuliaODE.release!(kept)
    end
    PyJuliaODE.discard!(id)
end
foreach(PyJuliaODE.tableau, ("Tsit5", "DP5"))
