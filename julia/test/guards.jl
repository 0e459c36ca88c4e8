using PyJuliaODE: HostAbort

@testset "a callback that fails aborts the solve" begin
    with_host(; fail_at = (:rhs, 5)) do host
        @test_throws HostAbort solved(host, "Tsit5", TIMES)
    end
    for (name, kind) in ((:vjp_u, "gauss"), (:vjp_p, "gauss"), (:vjp, "interpolating"))
        with_host(; fail_at = (name, 3)) do host
            _, _, forward = solved(host, "Tsit5", TIMES; keep = "dense")
            kept = Int(forward[7])
            @test_throws HostAbort differentiated(kept, "Tsit5", kind, TIMES[2:end], COTANGENTS)
            code, du0, _, _ = differentiated(kept, "Tsit5", kind, TIMES[2:end], COTANGENTS)
            @test code == "Success"             # and goes on
            release!(kept)
        end
    end
end

@testset "a failed adjoint is not a success" begin
    for kind in ("gauss", "interpolating", "quadrature", "backsolve")
        with_host() do host
            _, _, forward = solved(host, "Tsit5", TIMES; keep = kind == "backsolve" ? "checkpoints" : "dense")
            code, du0, _, _ = differentiated(
                Int(forward[7]), "Tsit5", kind, TIMES[2:end], COTANGENTS; maxiters = 3
            )
            @test code == "MaxIters"
            @test all(iszero, du0)              # nothing was written
            release!(Int(forward[7]))
        end
    end
end

@testset "times that are not ascending are refused" begin
    with_host() do host
        _, _, forward = solved(host, "Tsit5", TIMES; keep = "dense")
        for times in ([1.0, 0.4], [0.4, 0.4])
            @test_throws ArgumentError differentiated(
                Int(forward[7]), "Tsit5", "gauss", times, COTANGENTS
            )
        end
        release!(Int(forward[7]))
        @test_throws ArgumentError solved(host, "Tsit5", [1.0, 0.0])
    end
end

@testset "the quadrature adjoint needs a dense solution" begin
    with_host() do host
        _, _, forward = solved(host, "Tsit5", TIMES; keep = "checkpoints")
        @test_throws ArgumentError differentiated(
            Int(forward[7]), "Tsit5", "quadrature", TIMES[2:end], COTANGENTS
        )
        release!(Int(forward[7]))
    end
end

@testset "names" begin
    @test_throws ArgumentError PyJuliaODE.algorithm("Nothing")
    @test_throws ArgumentError PyJuliaODE.algorithm("Tsit5(Rodas5P)")
    for name in keys(PyJuliaODE.METHODS)
        @test PyJuliaODE.algorithm(String(name)) !== nothing
    end
end

@testset "nothing is left" begin
    @test isempty(HANDLES) && isempty(WORKSPACES)
end
