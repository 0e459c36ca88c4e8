module PyJuliaODEPythonCallExt

using DLPack: DLPack
using PyJuliaODE: PyJuliaODE
using PythonCall: Py, PyArray, PyIterable

const Tensor = Union{Py, PyArray, PyIterable}

# One dimension only: DLPack.jl reads neither strides nor offsets of more. The typed form refuses a
# strided tensor and another element type.
PyJuliaODE.as_vector(x::Tensor, ::Type{V}) where {V <: AbstractVector} =
    DLPack.from_dlpack(V, DLPack.ColMajor, Py(x))

# A tensor reaches Julia as a PyIterable. There is no Python while this is compiled, so the calls are
# named rather than made.
for T in (Float64, Float32)
    precompile(PyJuliaODE.as_vector, (PyIterable{Any}, Type{Vector{T}}))
end
precompile(
    PyJuliaODE.workspace!,
    (String, String, ntuple(_ -> PyIterable{Any}, 6)..., Int, Int, ntuple(_ -> Int, 6)...)
)
precompile(PyJuliaODE.solve!, (Int, String, String, Int, Int))
precompile(PyJuliaODE.adjoint!, (Int, String, String, Int, Int))
precompile(PyJuliaODE.steps!, (Int, Int, Int, Int))
precompile(PyJuliaODE.interpolate!, (Int, Int, Int, Int))

end
