# A tape on states: blocks of samples in, values and products out.

arena(n::Native) = Arena(
    pointer(n.X), pointer(n.dX), pointer(n.S), pointer(n.dS), pointer(n.room), pointer(n.taps), n.tape.lanes
)
scalar_arena(n::Native) = (m = arena(n); moved(m, m.S, m.dS, 1))

function run_scalars!(native::Native, ops)
    GC.@preserve native for op in ops
        forward!(op, native.tape.table, scalar_arena(native))
    end
    return nothing
end

function run_scalars_back!(native::Native, ops)
    GC.@preserve native for op in Iterators.reverse(ops)
        backward!(op, native.tape.table, scalar_arena(native), true)
    end
    return nothing
end

function set_time!(native::Native{T}, t) where {T}
    @inbounds native.S[1] = T(native.backwards ? -t : t)
    isempty(native.tape.timely) || run_scalars!(native, native.tape.timely)
    return nothing
end

"The arena for the block of samples that begins after `from`: the last may have fewer lanes."
@inline function block_arena(native::Native, from)
    m = arena(native)
    return moved(m, m.A, m.dA, min(native.tape.lanes, native.tape.batch - from))
end

"Features of a block of samples, from a flat state."
gather_block!(X, u, tape, from, L) = move_block!((x, u) -> (x, u), X, u, tape, from, L)

"And back."
scatter_block!(u, X, tape, from, L) = move_block!((x, u) -> (u, x), X, u, tape, from, L)

"`order` says which of (features, state) is written."
@inline function move_block!(order::F, X::Ptr{T}, u::Ptr{T}, tape::Tape, from, L) where {F, T}
    if tape.batch == 1
        unsafe_copyto!(order(X, u)..., sample(tape))
        return nothing
    end
    after = tape.after_batch
    for k in 0:(tape.before_batch - 1), d in 0:(after - 1)
        x = feature(X, k * after + d, L)
        s = u + ((k * tape.batch + from) * after + d) * sizeof(T)
        to, of = order((x, 1), (s, after))
        @simd ivdep for l in 0:(L - 1)
            unsafe_store!(to[1], unsafe_load(of[1], 1 + l * of[2]), 1 + l * to[2])
        end
    end
    return nothing
end

"The result, which may repeat features or be constant, as sample features at `out`."
@inline function result!(out::Ptr{T}, tape::Tape, m::Arena{T}) where {T}
    n, L = sample(tape), m.L
    if tape.result.first >= 0
        unsafe_copyto!(out, feature(m.A, tape.result.first, L), n * L)
        return nothing
    end
    collect_lanes!(out, tape.result, tape.table, m, n)
    return nothing
end

"Cotangents of the result, given as sample features, into those of the arena, which is cleared."
@inline function result_back!(dout::Ptr{T}, tape::Tape, m::Arena{T}, scalars) where {T}
    fill_lanes!(m.dA, zero(T), tape.features * m.L)
    spread_lanes!(dout, tape.result, tape.table, m, sample(tape), scalars)
    return nothing
end

"The block's values in the arena, and du = f of them."
@inline function run_block!(native::Native, m, du, u, from)
    tape, spare = native.tape, native.spare
    gather_block!(m.A, pointer(u), tape, from, m.L)
    for op in tape.ops
        forward!(op, tape.table, m)
    end
    result!(pointer(spare), tape, m)
    scatter_block!(pointer(du), pointer(spare), tape, from, m.L)
    return nothing
end

"du = f(u, t)"
function field!(native::Native{T}, du::Vector{T}, u::Vector{T}, t) where {T}
    tape = native.tape
    set_time!(native, t)
    GC.@preserve native du u for from in 0:tape.lanes:(tape.batch - 1)
        run_block!(native, block_arena(native, from), du, u, from)
    end
    native.backwards && negate!(du)
    return nothing
end

negate!(x) = (x .= .-x; nothing)

"gu = (df/du)' lam and gp = (df/dp)' lam, the latter where `params`; and du = f."
function products!(native::Native{T}, du, gu, gp, u, lam, t, params::Bool) where {T}
    tape = native.tape
    set_time!(native, t)
    params && fill!(native.dS, 0)
    spare = native.spare
    GC.@preserve native du gu u lam for from in 0:tape.lanes:(tape.batch - 1)
        m = block_arena(native, from)
        run_block!(native, m, du, u, from)
        gather_block!(pointer(spare), pointer(lam), tape, from, m.L)
        result_back!(pointer(spare), tape, m, params)
        for op in Iterators.reverse(tape.ops)
            backward!(op, tape.table, m, params)
        end
        scatter_block!(pointer(gu), m.dA, tape, from, m.L)
    end
    native.backwards && (negate!(du); negate!(gu))
    if params
        run_scalars_back!(native, tape.timely)
        parameter_cotangents!(gp, native)
        native.backwards && negate!(gp)
    end
    return nothing
end

"dL/dp from the cotangents of S."
function parameter_cotangents!(gp::Vector, native::Native)
    run_scalars_back!(native, native.tape.before)
    fill!(gp, 0)
    for (from, to, count) in native.tape.wanted
        copyto!(gp, to + 1, native.dS, from + 1, count)
    end
    return nothing
end

"As the host's callbacks: on the vectors of the workspace."
evaluate!(native::Native, ws, ::Val{:rhs}, t) = field!(native, ws.du, ws.u, t)
evaluate!(native::Native, ws, ::Val{:vjp_u}, t) =
    products!(native, native.du, ws.gu, ws.gp, ws.u, ws.lam, t, false)
evaluate!(native::Native, ws, ::Val{:vjp_p}, t) =
    products!(native, native.du, native.du, ws.gp, ws.u, ws.lam, t, true)
evaluate!(native::Native, ws, ::Val{:vjp}, t) =
    products!(native, ws.du, ws.gu, ws.gp, ws.u, ws.lam, t, true)
