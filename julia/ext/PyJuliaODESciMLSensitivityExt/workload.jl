@setup_workload begin
    @compile_workload begin
        for T in (Float64, Float32)
            id, status = PyJuliaODE.stub_workspace(T)
            GC.@preserve status begin
                for method in ("Tsit5", "DP5")
                    kept = PyJuliaODE.stub_solve(T, id, method; keep = "dense")
                    for kind in ("gauss", "interpolating", "quadrature")
                        PyJuliaODE.stub_adjoint(T, id, kept, method, kind)
                    end
                    PyJuliaODE.release!(kept)
                end
                kept = PyJuliaODE.stub_solve(T, id, "Tsit5"; keep = "checkpoints")
                for kind in ("gauss", "backsolve")
                    PyJuliaODE.stub_adjoint(T, id, kept, "Tsit5", kind; checkpointing = 1)
                end
                PyJuliaODE.release!(kept)
                PyJuliaODE.discard!(id)
            end
        end
    end
    PyJuliaODE.STUB[] = nothing
    empty!(PyJuliaODE.ALGORITHMS)
    PyJuliaODE.COUNTER[] = 0
end
