# The discrete adjoint: the accepted steps of an explicit Runge-Kutta method again, backward, a block of
# samples at a time so that a step's stages stay in the cache.

"An explicit Runge-Kutta method: y1 = y + h Σ b_i k_i, k_i = f(t + c_i h, y + h Σ a_ij k_j), and inside
a step y(θ) = y + h Σ_i k_i Σ_j d_ij θ^j."
struct Tableau
    c::Vector{Float64}
    b::Vector{Float64}
    a::Matrix{Float64}
    d::Matrix{Float64}      # stages x degree; no columns: no interpolant
end

"From the numbers of the host: stages, degree, and c, b, a, d by rows."
function Tableau(stages::Int, degree::Int, x::Vector{Float64})
    s = stages
    return Tableau(
        x[1:s], x[(s + 1):2s], permutedims(reshape(x[(2s + 1):(2s + s^2)], s, s)),
        permutedims(reshape(x[(2s + s^2 + 1):end], degree, s))
    )
end

"""
    replay!(handle, stages, degree, tableau, times, ntimes, cotangents, du0, dp) -> evaluations

dL/du0 and dL/dp of a kept solution with all its steps, whose workspace has a tape. `cotangents` is
dL/du at the `ntimes` ascending times, the first of the solve among them or not.
"""
function replay!(
        id::Int, stages::Int, degree::Int, tableau::Integer, times::Integer, ntimes::Int,
        cotangents::Integer, du0::Integer, dp::Integer
    )
    handle = HANDLES[id]
    ws = handle.workspace
    n = length(ws)
    numbers = copy(at_address(Float64[], tableau, 2stages + stages^2 + stages * degree))
    return run_replay!(
        ws, handle.solution.t, handle.solution.u, Tableau(stages, degree, numbers),
        since.(Ref(ws.clock), float64s(times, ntimes)),
        at_address(ws.u, cotangents, n * ntimes), at_address(ws.u, du0, n),
        at_address(ws.u, dp, max(ws.nparams, 1))
    )
end

function run_replay!(ws::Workspace{Vector{T}, T}, ts, us, tableau, times, rows, du0, dp) where {T}
    native = ws.native::Native{T}
    tape = native.tape
    s, n = length(tableau.b), length(ws)
    # steps of a failed solve beyond the last row carry nothing, and may not be finite
    ts = view(ts, 1:min(searchsortedfirst(ts, times[end]), length(ts)))
    inside = any(t -> !insorted(t, ts), times)
    last_stage = inside ? s : something(findlast(!iszero, tableau.b), 1)
    work = replay_work!(native, last_stage)
    fill!(native.dS, 0)
    GC.@preserve native work rows du0 for from in 0:tape.lanes:(tape.batch - 1)
        replay_block!(ws, native, work, ts, us, tableau, last_stage, times, rows, n, du0, from)
    end
    parameter_cotangents!(dp, native)
    return (length(ts) - 1) * last_stage
end

"Room for the stages of a step, kept with the arenas: to allocate it costs as much as some steps."
function replay_work!(native::Native{T}, stages) where {T}
    work = native.work
    if work === nothing || length(work.stages) < stages * length(native.X)
        lanes = length(native.spare)
        work = ReplayWork(
            Vector{T}(undef, stages * length(native.X)), [Vector{T}(undef, lanes) for _ in 1:(2stages + 3)]
        )
        native.work = work
    end
    return work
end

function replay_block!(ws, native::Native{T}, work, ts, us, tableau, s, times, rows, n, du0, from) where {T}
    tape, m = native.tape, block_arena(native, from)
    L, nf = m.L, sample(tape) * m.L
    cells = tape.features * L
    y, λ, spare = work.samples[1], work.samples[2], work.samples[3]
    k, dk = view(work.samples, 4:(s + 3)), view(work.samples, (s + 4):(2s + 3))
    fill!(λ, 0)
    row = length(times)
    for step in (length(ts) - 1):-1:1
        poll(ws)
        t, h = ts[step], ts[step + 1] - ts[step]
        u = us[step]
        GC.@preserve u gather_block!(pointer(y), pointer(u), tape, from, L)
        # the stages again, each in an arena of its own
        for i in 1:s
            stage = stage_arena(work, m, i, cells)
            unsafe_copyto!(stage.A, pointer(y), nf)
            for j in 1:(i - 1)
                axpy_at!(stage.A, T(h * tableau.a[i, j]), k[j], nf)
            end
            set_time!(native, ws.clock(t + tableau.c[i] * h))
            for op in tape.ops
                forward!(op, tape.table, stage)
            end
            result!(pointer(k[i]), tape, stage)
            native.backwards && negate!(k[i])
        end
        # cotangents of the states in the step that rows ask for
        if row > 0 && times[row] == ts[step + 1]
            add_row!(λ, one(T), spare, rows, row, n, tape, from, L)
            row -= 1
        end
        for i in 1:s
            scale!(dk[i], T(h * tableau.b[i]), λ, nf)
        end
        while row > 0 && times[row] > t
            gather_block!(pointer(spare), pointer(rows, (row - 1) * n + 1), tape, from, L)
            θ = (times[row] - t) / h
            for i in 1:s
                w = h * sum(tableau.d[i, p] * θ^p for p in axes(tableau.d, 2); init = 0.0)
                axpy_at!(pointer(dk[i]), T(w), spare, nf)
            end
            axpy_at!(pointer(λ), one(T), spare, nf)
            row -= 1
        end
        for i in s:-1:1
            stage = stage_arena(work, m, i, cells)
            set_time!(native, ws.clock(t + tableau.c[i] * h))     # scalars are shared by the stages
            native.backwards && negate!(dk[i])
            result_back!(pointer(dk[i]), tape, stage, true)
            for op in Iterators.reverse(tape.ops)
                backward!(op, tape.table, stage, true)
            end
            if !isempty(tape.timely)
                run_scalars_back!(native, tape.timely)
                fill!(view(native.dS, (tape.later + 1):length(native.dS)), 0)
            end
            axpy!(λ, one(T), stage.dA, nf)
            for j in 1:(i - 1)
                axpy!(dk[j], T(h * tableau.a[i, j]), stage.dA, nf)
            end
        end
    end
    if row > 0      # the first time of the solve
        add_row!(λ, one(T), spare, rows, row, n, tape, from, L)
    end
    scatter_block!(pointer(du0), pointer(λ), tape, from, L)
    return nothing
end

@inline stage_arena(work::ReplayWork{T}, m::Arena{T}, i, cells) where {T} =
    moved(m, pointer(work.stages, (i - 1) * cells + 1), m.dA, m.L)

@inline function axpy_at!(out::Ptr{T}, a::T, x::Vector{T}, n) where {T}
    a == 0 && return nothing
    GC.@preserve x begin
        p = pointer(x)
        @simd ivdep for l in 1:n
            unsafe_store!(out, muladd(a, unsafe_load(p, l), unsafe_load(out, l)), l)
        end
    end
    return nothing
end

@inline function axpy!(out::Vector{T}, a::T, x::Ptr{T}, n) where {T}
    a == 0 && return nothing
    @inbounds @simd ivdep for l in 1:n
        out[l] = muladd(a, unsafe_load(x, l), out[l])
    end
    return nothing
end

@inline function scale!(out::Vector{T}, a::T, x::Vector{T}, n) where {T}
    @inbounds @simd ivdep for l in 1:n
        out[l] = a * x[l]
    end
    return nothing
end

@inline function add_row!(λ, a, spare, rows, row, n, tape, from, L)
    GC.@preserve rows spare gather_block!(pointer(spare), pointer(rows, (row - 1) * n + 1), tape, from, L)
    axpy_at!(pointer(λ), a, spare, sample(tape) * L)
    return nothing
end
