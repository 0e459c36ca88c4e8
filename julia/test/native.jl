using PyJuliaODE: CONVOLUTION, FUNCTIONS, Native, Op, Operand, Tape
using PyJuliaODE: arena, backward!, forget_tape!, forward!, replay!, slope, tape!, value

@testset "functions of the tape" begin
    reference = (
        (x, a, b) -> a * x + b, (x, a, b) -> tanh(x), (x, a, b) -> 1 / (1 + exp(-x)),
        (x, a, b) -> x > 0 ? x : a * expm1(x), (x, a, b) -> x > 0 ? x : a * x,
        (x, a, b) -> clamp(x, a, b), (x, a, b) -> a * x > b ? x : log1p(exp(a * x)) / a,
        (x, a, b) -> x / (1 + exp(-x)), nothing, nothing, (x, a, b) -> exp(x), (x, a, b) -> log(x),
        (x, a, b) -> sqrt(x), (x, a, b) -> sin(x), (x, a, b) -> cos(x), (x, a, b) -> abs(x),
        (x, a, b) -> 1 / x, (x, a, b) -> x^a,
    )
    for T in (Float64, Float32), (f, wanted) in zip(FUNCTIONS, reference)
        positive = wanted !== nothing && !isfinite(try wanted(-1.0, 0.5, 1.0) catch; NaN end)
        for x in T[-700, -30, -3, -0.4, -1.0e-9, 1.0e-9, 0.4, 3, 30, 700], (a, b) in ((1, 2), (2, 20), (0.5, 1))
            a, b = T(a), T(b)
            positive && x < 0 && continue
            T == Float32 && abs(x) > 50 && continue
            y = value(f, x, a, b)
            if wanted !== nothing && !(f isa PyJuliaODE.Power && x < 0)
                @test y ≈ T(wanted(Float64(x), Float64(a), Float64(b))) rtol = 8eps(T) atol = floatmin(T)
            end
            # a derivative by differences, away from kinks
            (abs(x) < 1.0e-3 || abs(x) > 10 || abs(x - a) < 0.1 || abs(x - b) < 0.1) && continue
            f isa PyJuliaODE.Power && x < 0 && continue
            X, h = Float64(x), 1.0e-6
            difference = (value(f, X + h, Float64(a), Float64(b)) - value(f, X - h, Float64(a), Float64(b))) / 2h
            @test slope(f, x, y, a, b) ≈ difference rtol = T == Float64 ? 1.0e-6 : 1.0e-3 atol = 1.0e-4
        end
    end
    @test all(f -> isnan(value(f, NaN, 1.0, 1.0)), FUNCTIONS[[1, 2, 3, 4, 7, 8, 11]])
end

"""
The field of the test host as a tape. S: t, W by rows (1 to 9), b (10 to 12), c (13), cos t (14),
b cos t (15 to 17). Features: u (0 to 2), W u, W u + b cos t, its tanh, c u, du.
"""
function field_tape(p)
    W, b, c = unpacked(p)
    tensors = [collect(vec(W')), b, [c]]
    addresses = [address(x) for x in tensors]
    table = Int32[14, 14, 14, -16, -17, -18, -14, -14, -14]
    ops = [
        14 1 14 0 0 0 0 0 1 0 -1        # cos t
        33 3 15 0 10 0 -1 0 1 0 -1      # b cos t, y from the table
        35 3 3 0 0 0 0 3 3 1 -1
        32 3 6 0 3 3 -1 0 1 0 -1
        1 3 9 0 6 0 0 0 1 0 -1
        33 3 12 6 -1 0 0 0 1 0 -1
        32 3 15 0 9 0 12 0 1 0 -1
    ]
    floats = [0 0; 1 0; 0 0; 1 0; 0 0; 1 0; -1 0.0]
    header = [0, 2, 5, length(table), 3, 3, 14, 18, 18, 1, 1, 3, 0, 15]
    triples = [[1, 0, 9], [10, 1, 3], [13, 2, 1], [1, 0, 9], [10, 9, 3], [13, 12, 1]]
    flat = (header, collect(vec(permutedims(ops))), table, reduce(vcat, triples), collect(vec(floats')))
    id = GC.@preserve flat tape!((address(x) for x in flat)..., 8)
    return id, (tensors, addresses)
end

"dL/dp with W by rows, as the tape has it, in the order of the host."
by_columns(dp) = vcat(vec(permutedims(reshape(dp[1:9], 3, 3))), dp[10:end])

@testset "a tape is the field" begin
    du0_true, dp_true = truth()
    tape, alive = field_tape(PARAMETERS)
    GC.@preserve alive with_host() do host
        tensors = address(alive[2])
        for method in ("Tsit5", "Vern7", "Rodas5P")
            _, rows, report = solved(host, method, TIMES; tape, tensors, jacobian = 1)
            @test rows ≈ native(START, PARAMETERS, TIMES) rtol = 1.0e-6
            @test !haskey(host.calls, :rhs) && report[3] > 0
        end
        for kind in ("gauss", "interpolating", "quadrature", "backsolve")
            keep = kind == "backsolve" ? "checkpoints" : "dense"
            _, _, forward = solved(host, "Tsit5", TIMES; keep, tape, tensors)
            kept = Int(forward[7])
            code, du0, dp, _ = differentiated(kept, "Tsit5", kind, TIMES[2:end], COTANGENTS)
            @test code == "Success"
            @test relative(du0, du0_true) < 1.0e-7 && relative(by_columns(dp), dp_true) < 1.0e-7
            @test !any(name -> haskey(host.calls, name), (:rhs, :vjp, :vjp_u, :vjp_p))
            release!(kept)
        end
        # the callbacks again
        solved(host, "Tsit5", TIMES)
        @test host.calls[:rhs] > 0
    end
    forget_tape!(tape)
end

@testset "the steps again, backward, on a tape" begin
    du0_true, dp_true = truth()
    tape, alive = field_tape(PARAMETERS)
    numbers_of(name) = begin
        lines = split(strip(tableau(name)), '\n')
        numbers(kind) = [parse.(Float64, split(l)[2:end]) for l in lines if startswith(l, kind)]
        s = length(numbers("c")[1])
        A = zeros(s, s)
        for (i, row) in enumerate(numbers("a"))
            A[i + 1, eachindex(row)] = row
        end
        d = numbers("d")
        s, length(d[1]), vcat(numbers("c")[1], numbers("b")[1], vec(A'), reduce(vcat, d))
    end
    GC.@preserve alive with_host() do host
        for method in ("Tsit5", "DP5")
            # a row inside a step: its cotangent goes through the interpolant
            _, _, forward = solved(host, method, TIMES; keep = "dense", tape, tensors = address(alive[2]))
            stages, degree, numbers = numbers_of(method)
            rows, du0, dp = vcat(zeros(N), vec(COTANGENTS)), zeros(N), zeros(P)
            GC.@preserve numbers rows du0 dp replay!(
                Int(forward[7]), stages, degree, address(numbers), address(TIMES), 3, address(rows),
                address(du0), address(dp)
            )
            @test relative(du0, du0_true) < 1.0e-7
            @test relative(by_columns(dp), dp_true) < 1.0e-7
            release!(Int(forward[7]))
        end
    end
    forget_tape!(tape)
end

"The correlation of x (channels, height, width) with W (outputs, channels, kernel), as it is written."
function correlation(x, W, bias, before, dilation, out)
    y = zeros(size(W, 1), out...)
    for I in CartesianIndices(y), J in CartesianIndices(size(W)[2:4])
        o, i, j = Tuple(I)
        c, a, b = Tuple(J)
        u, v = (i, j) .- before .+ (a - 1, b - 1) .* dilation
        checkbounds(Bool, x, c, u, v) && (y[I] += W[o, c, a, b] * x[c, u, v])
    end
    return y .+ bias
end

@testset "convolutions" begin
    rows(x) = vec(permutedims(x, reverse(1:ndims(x))))      # the last index varying fastest
    of_rows(v, size) = permutedims(reshape(v, reverse(size)), reverse(eachindex(size)))
    for (channels, outputs, size_, kernel, before, after, dilation) in (
                (2, 7, (6, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
                (3, 1, (5, 9), (2, 4), (1, 0), (0, 2), (1, 1)),
                (2, 8, (9, 8), (3, 2), (2, 1), (2, 0), (2, 1)),
            ), L in (1, 3, 8), run in (true, false)
        out = size_ .+ before .+ after .- (kernel .- 1) .* dilation
        n, m = channels * prod(size_), outputs * prod(out)
        W, bias = randn(outputs, channels, kernel...), randn(outputs)
        x, dy = randn(channels, size_..., L), randn(outputs, out..., L)
        # without a run: features in the opposite order, and the last from S
        order = run ? collect(0:(n - 1)) : collect((n - 1):-1:0)
        table = Int32[order..., channels, size_..., kernel..., before..., dilation..., out...]
        run || (table[n] = -1)
        first = length(W) + outputs + 1
        op = Op(
            CONVOLUTION, m, n, Operand(0, run ? 0 : -1), Operand(n, -1), channels * prod(kernel), outputs, 1,
            1 + length(W), 0.0, 0.0
        )
        result, none = Operand(0, n), Tuple{Int, Int, Int}[]
        tape = Tape(Op[], Op[], [op], table, result, none, none, 1, first, n + m, 1, L, n, L)
        native = Native{Float64}(tape)
        native.S .= [0.3; rows(W); bias]
        flat = reduce(hcat, [rows(x[:, :, :, l]) for l in 1:L])      # n x L
        for (j, id) in enumerate(order)
            native.X[(id * L + 1):(id * L + L)] = flat[j, :]
        end
        run || (x[end, end, end, :] .= 0.3)
        GC.@preserve native begin
            memory = arena(native)
            forward!(op, table, memory)
            for l in 1:L
                y = of_rows(native.X[(n * L + l):L:end], (outputs, out...))
                @test y ≈ correlation(x[:, :, :, l], W, bias, before, dilation, out)
            end
            native.dX[(n * L + 1):end] = vec(permutedims(reduce(hcat, [rows(dy[:, :, :, l]) for l in 1:L])))
            backward!(op, table, memory, true)
        end
        # the products are those of a function that is linear in x, in W and in the bias
        y_of(x, W) = sum(
            sum(dy[:, :, :, l] .* correlation(x[:, :, :, l], W, 0.0, before, dilation, out)) for l in 1:L
        )
        for l in 1:L, J in (1, n ÷ 2, n - 1)
            unit = zero(x)
            unit[:, :, :, l] = of_rows(Float64.(1:n .== J), (channels, size_...))
            @test native.dX[order[J] * L + l] ≈ y_of(unit, W)
        end
        if !run
            unit = zero(x)
            unit[end, end, end, :] .= 1
            @test native.dS[1] ≈ y_of(unit, W)
        end
        for J in (1, length(W) ÷ 2, length(W))
            @test native.dS[1 + J] ≈ y_of(x, of_rows(Float64.(1:length(W) .== J), size(W)))
        end
        @test native.dS[(end - outputs + 1):end] ≈ vec(sum(dy; dims = (2, 3, 4)))
    end
end
