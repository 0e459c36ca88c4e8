using ForwardDiff
using SciMLSensitivity

const COTANGENTS = [0.3 -1.0 0.5; 1.0 0.2 -0.7]'      # N x 2, at the last two times

"dL/du0 and dL/dp by dual numbers through the solver."
function truth()
    loss(u0, p) = sum(COTANGENTS .* native(u0, p, TIMES)[:, 2:end])
    return ForwardDiff.gradient(u -> loss(u, PARAMETERS), START),
        ForwardDiff.gradient(p -> loss(START, p), PARAMETERS)
end

relative(a, b) = maximum(abs, a - b) / maximum(abs, b)

@testset "gradients agree with dual numbers" begin
    du0_true, dp_true = truth()
    for method in ("Tsit5", "DP5", "Vern7", "Vern9"), kind in ("gauss", "interpolating", "quadrature", "backsolve")
        with_host() do host
            keep = kind == "backsolve" ? "checkpoints" : "dense"
            _, _, forward = solved(host, method, TIMES; keep)
            adjoint = startswith(method, "Vern") ? "Tsit5" : method
            code, du0, dp, report = differentiated(
                Int(forward[7]), adjoint, kind, TIMES[2:end], COTANGENTS
            )
            @test code == "Success"
            @test relative(du0, du0_true) < 1.0e-7
            @test relative(dp, dp_true) < 1.0e-7
            @test report[5] > 0
            release!(Int(forward[7]))
        end
    end
end

@testset "implicit methods, with the host's Jacobian" begin
    du0_true, dp_true = truth()
    for kind in ("gauss", "interpolating", "quadrature")
        with_host() do host
            _, _, forward = solved(host, "Rodas5P", TIMES; keep = "dense", jacobian = 1)
            code, du0, dp, _ = differentiated(
                Int(forward[7]), "Rodas5P", kind, TIMES[2:end], COTANGENTS
            )
            @test code == "Success" && host.calls[:jac] > 0
            @test relative(du0, du0_true) < 1.0e-6 && relative(dp, dp_true) < 1.0e-6
            release!(Int(forward[7]))
        end
    end
end

@testset "Float32 gradients" begin
    du0_true, dp_true = truth()
    loose = (; abstol = 1.0e-5, reltol = 1.0e-5)
    kinds = ("gauss", "interpolating", "quadrature", "backsolve")
    for (kind, few) in ((kinds .=> (0, 0, 0, 1))..., "gauss" => 1, "interpolating" => 1)
        with_host(; T = Float32) do host
            keep = few == 1 ? "checkpoints" : "dense"
            _, _, forward = solved(host, "Tsit5", TIMES; T = Float32, keep, ncheckpoints = 2, loose...)
            code, du0, dp, _ = differentiated(
                Int(forward[7]), "Tsit5", kind, TIMES[2:end], COTANGENTS;
                T = Float32, checkpointing = few, loose...
            )
            @test code == "Success" && eltype(du0) == eltype(dp) == Float32
            @test relative(du0, du0_true) < 1.0e-3 && relative(dp, dp_true) < 1.0e-3
            release!(Int(forward[7]))
        end
    end
end

@testset "jumps and times without a cotangent reach the backward solve" begin
    du0_true, dp_true = truth()
    jumps = [0.25, 0.6]
    with_host() do host
        _, _, forward = solved(host, "Tsit5", TIMES; keep = "dense")
        args = (Int(forward[7]), "Tsit5", "gauss", TIMES[2:end], COTANGENTS)
        before = differentiated(args...)[4][5]
        code, du0, dp, report = GC.@preserve jumps differentiated(
            args...; jumps = address(jumps), njumps = 2
        )
        @test code == "Success" && report[5] > before
        @test relative(du0, du0_true) < 1.0e-7 && relative(dp, dp_true) < 1.0e-7
        release!(Int(forward[7]))
    end
end

@testset "no integrator outlives its solve" begin
    with_host() do host
        _, _, forward = solved(host, "Tsit5", TIMES; keep = "checkpoints", ncheckpoints = 4)
        differentiated(Int(forward[7]), "Tsit5", "gauss", TIMES[2:end], COTANGENTS; checkpointing = 1)
        @test HANDLES[Int(forward[7])].watch.current === nothing
        release!(Int(forward[7]))
    end
end

@testset "one joint product serves at a point" begin
    with_host() do host
        _, _, forward = solved(host, "Tsit5", TIMES; keep = "dense")
        differentiated(Int(forward[7]), "Tsit5", "interpolating", TIMES[2:end], COTANGENTS)
        @test host.calls[:vjp] > 0
        @test !haskey(host.calls, :vjp_p) && !haskey(host.calls, :vjp_u)
        before = host.calls[:rhs]
        differentiated(Int(forward[7]), "Tsit5", "gauss", TIMES[2:end], COTANGENTS)
        @test host.calls[:vjp_u] > host.calls[:vjp_p] > 0
        @test host.calls[:rhs] == before        # the inert choice calls nothing else
        release!(Int(forward[7]))
    end
end

@testset "no parameters" begin
    du0_true, _ = truth()
    for kind in ("gauss", "interpolating", "quadrature", "backsolve")
        with_host(; nparams = 0) do host
            _, _, forward = solved(host, "Tsit5", TIMES; keep = kind == "backsolve" ? "checkpoints" : "dense")
            code, du0, _, _ = differentiated(
                Int(forward[7]), "Tsit5", kind, TIMES[2:end], COTANGENTS; nparams = 0
            )
            @test code == "Success"
            @test relative(du0, du0_true) < 1.0e-7
            @test !haskey(host.calls, :vjp_p)
            release!(Int(forward[7]))
        end
    end
end

@testset "checkpoints" begin
    du0_true, dp_true = truth()
    for method in ("Tsit5", "Vern7"), kind in ("gauss", "interpolating")
        with_host() do host
            _, _, forward = solved(host, method, TIMES; keep = "checkpoints", ncheckpoints = 4)
            code, du0, dp, _ = differentiated(
                Int(forward[7]), "Tsit5", kind, TIMES[2:end], COTANGENTS; checkpointing = 1
            )
            @test code == "Success"
            @test relative(du0, du0_true) < 1.0e-7 && relative(dp, dp_true) < 1.0e-7
            release!(Int(forward[7]))
        end
    end
end
