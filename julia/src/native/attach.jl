# Tapes by number, and workspaces that use them.

const TAPES = Dict{Int, Tape}()

"""
    tape!(header, ops, table, pairs, floats, bytes) -> id

Register a tape, from addresses. `header` holds 14 Int64: operations before, timely and on lanes,
length of the table, tensors, wanted ones, `later`, scalars, features, the three parts of the state, and
the operand of the result (at, first); `bytes` is the size of a number. `ops` has 11 Int64 for each
operation (code, n, out, x.at, x.first, y.at, y.first, inputs, outputs, weight, bias), `floats` two
(a, b), `triples` three for each tensor and then for each wanted one.
"""
function tape!(
        header::Integer, ops::Integer, table::Integer, triples::Integer, floats::Integer, bytes::Integer
    )
    h = copy(at_address(Int[], header, 14))
    n = h[1] + h[2] + h[3]
    rows = reshape(copy(at_address(Int[], ops, 11n)), 11, n)
    numbers = copy(at_address(Float64[], floats, 2n))
    all = [
        Op(
                r[1], r[2], r[3], Operand(r[4], r[5]), Operand(r[6], r[7]), r[8], r[9], r[10], r[11],
                numbers[2i - 1], numbers[2i]
            ) for (i, r) in enumerate(eachcol(rows))
    ]
    lists = reshape(copy(at_address(Int[], triples, 3 * (h[5] + h[6]))), 3, :)
    of(range) = [(c[1], c[2], c[3]) for c in eachcol(lists[:, range])]
    batch = h[11]
    tape = Tape(
        all[1:h[1]], all[(h[1] + 1):(h[1] + h[2])], all[(h[1] + h[2] + 1):n],
        copy(at_address(Int32[], table, h[4])), Operand(h[13], h[14]), of(1:h[5]),
        of((h[5] + 1):(h[5] + h[6])), h[7], h[8], h[9], h[10], batch, h[12],
        block_of(batch, h[9], Int(bytes))
    )
    id = next_id()
    TAPES[id] = tape
    return id
end

"""
    forget_tape!(id)

Forget a tape; solves that use it keep it.
"""
forget_tape!(id::Int) = (delete!(TAPES, id); nothing)

"""
    attach!(workspace, tape, addresses, backwards)

Let a workspace compute its field by a tape, with the parameters that lie at `addresses` (of a list of
UInt, one for each tensor) now; tape 0: by the host's callbacks again. `backwards` is not 0 where the
host's time is minus the solver's.
"""
function attach!(id::Int, tape::Int, addresses::Integer, backwards::Integer)
    ws = WORKSPACES[id]
    if tape == 0
        ws.native = nothing
        return nothing
    end
    return use!(ws, TAPES[tape], addresses, backwards != 0)
end

function use!(ws::Workspace{Vector{T}, T}, tape::Tape, addresses, backwards) where {T}
    native = ws.spare
    if native === nothing || native.tape !== tape
        native = Native{T}(tape)
        ws.spare = native
    end
    where_ = at_address(UInt[], addresses, length(tape.tensors))
    for (first, tensor, count) in tape.tensors
        GC.@preserve native unsafe_copyto!(
            pointer(native.S, first + 1), Ptr{T}(where_[tensor + 1]), count
        )
    end
    native.backwards = backwards
    run_scalars!(native, tape.before)
    ws.native = native
    return nothing
end

"""
    probe!(workspace, t)

The field and its products at the workspace's vectors, for a host that compares them with its own.
"""
function probe!(id::Int, t::Real)
    ws = WORKSPACES[id]
    evaluate!(ws.native, ws, Val(:vjp), Float64(t))
    return nothing
end
