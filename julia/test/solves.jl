using OrdinaryDiffEqTsit5: Tsit5
using PyJuliaODE: gather!, scatter!
using RecursiveArrayTools: ArrayPartition
using OrdinaryDiffEqVerner: Vern9
using SciMLBase: ODEProblem, solve

const TIMES = [0.0, 0.4, 1.0]

"The same system without a host."
native(u0, p, times) = Array(
    solve(ODEProblem(field, u0, extrema(times), p), Vern9(); abstol = 1.0e-13, reltol = 1.0e-13, saveat = times)
)

@testset "solves agree with the system in Julia" begin
    wanted = native(START, PARAMETERS, TIMES)
    for method in ("Tsit5", "DP5", "Vern7", "Rodas5P", "AutoTsit5(Rosenbrock23)"), keep in ("", "dense")
        with_host() do host
            code, rows, report = solved(host, method, TIMES; keep, jacobian = 1)
            @test code == "Success"
            @test rows ≈ wanted rtol = 1.0e-6
            @test report[1] == 3 && report[2] == 1.0
            @test report[3] == host.calls[:rhs]
            keep == "dense" && release!(Int(report[7]))
        end
    end
    @test isempty(HANDLES)
end

@testset "a move between solver and host allocates nothing" begin
    host, u = zeros(N), copy(START)
    gather!(host, u, false)     # the callbacks here are Julia's and allocate: not through them
    @test (@allocated gather!(host, u, false)) == 0
end

"Times of the steps of a solve."
function steps_of(report)
    ts, ss, us = zeros(Int(report[8])), zeros(Int(report[8])), zeros(N * Int(report[8]))
    GC.@preserve ts ss us steps!(Int(report[7]), address(ts), address(ss), address(us))
    release!(Int(report[7]))
    return ts
end

@testset "what a solver is told arrives" begin
    stops = [0.123, 0.77]
    with_host() do host
        told(; kwargs...) = steps_of(solved(host, "Tsit5", TIMES; keep = "steps", kwargs...)[3])
        free = told()
        GC.@preserve stops begin
            @test stops ⊆ told(; tstops = address(stops), ntstops = 2)
            @test stops ⊆ told(; jumps = address(stops), njumps = 2)
        end
        @test maximum(diff(told(; dtmax = 0.01))) <= 0.01 + eps()
        @test minimum(diff(told(; dtmin = 0.2))[1:(end - 1)]) >= 0.2 - eps()
        @test told(; dt = 1.0e-3)[2] == 1.0e-3
        @test told(; adaptive = 0, dt = 0.25) ≈ 0:0.25:1
        loose = fill(1.0e-4, N)
        GC.@preserve loose begin
            @test length(told(; abstol_at = address(loose), reltol_at = address(loose))) ==
                length(told(; abstol = 1.0e-4, reltol = 1.0e-4)) < length(free)
        end
    end
end

@testset "positions and velocities change places" begin
    host, swapped, parts = collect(1.0:4.0), zeros(4), ArrayPartition(zeros(2), zeros(2))
    scatter!(swapped, host, true)
    scatter!(parts, host, true)
    @test swapped == [3, 4, 1, 2] && parts.x == ([3, 4], [1, 2])
    @test gather!(zeros(4), swapped, true) == gather!(zeros(4), parts, true) == host
    @test gather!(zeros(4), host, false) == host
end

@testset "dense output and steps" begin
    with_host() do host
        code, rows, report = solved(host, "Tsit5", [0.0, 1.0]; keep = "dense")
        kept = Int(report[7])
        at, out = [0.0, 0.4, 1.0], zeros(N * 3)
        GC.@preserve at out interpolate!(kept, address(at), 3, address(out))
        @test reshape(out, N, :) ≈ native(START, PARAMETERS, TIMES) rtol = 1.0e-7
        count = Int(report[8])
        ts, ss, us = zeros(count), zeros(count), zeros(N * count)
        GC.@preserve ts ss us steps!(kept, address(ts), address(ss), address(us))
        @test issorted(ts) && ts[1] == 0 && ts[end] == 1
        @test us[1:N] == START && us[(end - N + 1):end] == rows[:, end]
        release!(kept)
    end
end

@testset "Float32 stays Float32" begin
    with_host(; T = Float32) do host
        code, rows, report = solved(host, "Tsit5", TIMES; T = Float32, abstol = 1.0e-5, reltol = 1.0e-5)
        @test eltype(rows) == Float32
        @test rows ≈ native(START, PARAMETERS, TIMES) rtol = 1.0e-4
    end
end

@testset "a clock" begin
    clock = PyJuliaODE.Clock([1.0e3, 1.0e3 + 1], [1.0e3 + 0.3], [1.0e3 + 0.5], Float32)
    @test PyJuliaODE.since(clock, 1.0e3 + 0.5) == 0.5
    # known times come back exactly, also from within 100 roundings before them
    s = (1.0e3 + 0.3) - 1.0e3
    @test clock(0.0) == 1.0e3 && PyJuliaODE.time_at(clock, 1.0) == 1.0e3 + 1
    @test clock(1.0) == 1.0e3 + 1
    # of the last time's right side a solve knows nothing, where T resolves its span well
    for T in (Float32, Float64)
        @test PyJuliaODE.Clock([0.0, 1.0], Float64[], Float64[], T)(1.0) == prevfloat(T(1))
    end
    @test clock(s) == clock(s - 3eps(s)) == PyJuliaODE.time_at(clock, s) == 1.0e3 + 0.3
    @test clock(0.25) == 1.0e3 + 0.25
    # at a jump there are two, and its own is told to nobody's field
    low, high = Float64(prevfloat(1.0f3 + 0.5f0)), Float64(nextfloat(1.0f3 + 0.5f0))
    @test clock(0.5) == clock(prevfloat(0.5)) == low && clock(nextfloat(0.5)) == high
    @test clock(0.49999) == low && clock(0.50001) == high
    @test PyJuliaODE.time_at(clock, 0.5) == 1.0e3 + 0.5
    clock.reverse = true
    @test clock(0.5) == clock(nextfloat(0.5)) == high && clock(prevfloat(0.5)) == low
    @test issorted(clock.(range(0, 1; length = 1001)))
    @test PyJuliaODE.Clock()(0.3) == 0.3
end

@testset "steps near a late time" begin
    for T in (Float32, Float64), at in (86_400.0, 1.7e9)
        with_host(; T) do host
            times = at .+ [0.0, 0.5, 1.0]
            code, rows, report = solved(host, "RK4", times; T, adaptive = 0, dt = 2.0^-7)
            @test code == "Success" && report[2] == times[end] && report[4] == 128
            code, rows, report = solved(host, "Tsit5", times; T, abstol = 1.0e-5, reltol = 1.0e-5)
            @test code == "Success" && report[4] > 1
            # there a plain solve leaves requested times out: in the time since the start
            moved = ODEProblem((u, p, s) -> field(u, p, at + s), START, (0.0, 1.0), PARAMETERS)
            # at + s is rounded to 2e-7, which no tolerance may ask below
            wanted = Array(solve(moved, Tsit5(); abstol = 1.0e-6, reltol = 1.0e-6, saveat = times .- at))
            @test rows ≈ wanted rtol = 1.0e-3
        end
    end
end

@testset "events end a solve" begin
    EVENT_LEVEL[] = native(START, PARAMETERS, [0.0, 0.4, 1.0])[1, 2]
    with_host() do host
        code, rows, report = solved(host, "Tsit5", [0.0, 5.0]; keep = "dense", nevents = 1)
        @test code == "Terminated"
        @test report[2] ≈ 0.4 rtol = 1.0e-6
        ts, ss, us = zeros(Int(report[8])), zeros(Int(report[8])), zeros(N * Int(report[8]))
        GC.@preserve ts ss us steps!(Int(report[7]), address(ts), address(ss), address(us))
        @test us[end - N + 1] ≈ EVENT_LEVEL[] atol = 1.0e-8
        release!(Int(report[7]))
    end
end

@testset "tableaus" begin
    parse_line(line) = parse.(Float64, split(line)[2:end])
    for (name, stages) in (("Tsit5", 7), ("DP5", 7), ("BS3", 4), ("Euler", 2), ("Vern7", 16))
        lines = split(strip(tableau(name)), '\n')
        c, b = parse_line(lines[1]), parse_line(lines[2])
        @test length(c) == length(b) == stages
        @test sum(b) ≈ 1
        rows = [parse_line(l) for l in lines if startswith(l, 'a')]
        @test [sum(r) for r in rows] ≈ c[2:end]
        dense = [parse_line(l) for l in lines if startswith(l, 'd')]
        @test sum.(dense) ≈ b atol = 1.0e-10        # θ = 1 is the step
    end
    @test parse_line(split(tableau("DP5"), '\n')[2])[1] == 35 / 384
    @test tableau("Rodas5P") == ""
    @test tableau("ROCK2") == ""
end
