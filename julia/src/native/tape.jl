# A field as a tape: what a host's network does, operation by operation, on lanes.
#
# A lane is one sample of the batch. A *feature* is one number of a sample; in the arena X feature f of
# a block of L lanes lies at X[f L + 1 : f L + L]. What does not depend on the sample lies in the arena
# S, one number each: the time, constants, parameters, and what is computed of these. Views, slices,
# stacks and broadcasts are not operations: they have become feature numbers when a tape is made.

"Where an operand's features are: `first`, `first + 1`, ... of the arena, or, where that is < 0, in
`table` from `at` on; there a number < 0 means the entry -number of S."
struct Operand
    at::Int
    first::Int
end

"""
`weight` and `bias` (< 0: none) are where in S those of LINEAR and CONVOLUTION begin. `inputs`: of LINEAR,
whose x is one run, features of a group, and `outputs` those it becomes; of CONVOLUTION the factors of a
number, and `outputs` the channels; of SUM its terms.
"""
struct Op
    code::Int       # < 32: FUNCTIONS[code + 1]; else one of the following
    n::Int          # features that are written
    out::Int        # the first of them
    x::Operand
    y::Operand
    inputs::Int
    outputs::Int
    weight::Int
    bias::Int
    a::Float64
    b::Float64
end

# x + a y, x y, x / y, x W' + bias, conv2d(x, W, bias) of the geometry in the table at y.at, a Σ x
const ADD, MUL, DIV, LINEAR, CONVOLUTION, SUM = 32, 33, 34, 35, 36, 37

"""
    Tape

`before`, `timely` and `ops`: operations on S that need neither time nor state, on S that need the
time, and on lanes. `tensors`: (first in S, number in the host's list, count) of parameters and
constants; `wanted`: (first in S, first in p, count) of the parameters with a gradient. `later`: where in
S the results of `timely` begin. The state has `before_batch` x `batch` x `after_batch` numbers,
the last varying fastest, so that its features are (before, after); `result` names those of du.
"""
struct Tape
    before::Vector{Op}
    timely::Vector{Op}
    ops::Vector{Op}
    table::Vector{Int32}
    result::Operand
    tensors::Vector{Tuple{Int, Int, Int}}
    wanted::Vector{Tuple{Int, Int, Int}}
    later::Int
    scalars::Int
    features::Int
    before_batch::Int
    batch::Int
    after_batch::Int
    lanes::Int
end

"Numbers of a state that make one sample, and so the first features of X."
sample(tape::Tape) = tape.before_batch * tape.after_batch

"What the replay of a step needs."
struct ReplayWork{T}
    stages::Vector{T}           # the arena of every stage
    samples::Vector{Vector{T}}  # state features: y, its cotangent, a spare, k_i, their cotangents
end

"A tape with the arenas of one solve: parameters as they were when it began."
mutable struct Native{T}
    const tape::Tape
    backwards::Bool             # the host's time is minus the solver's
    const X::Vector{T}
    const dX::Vector{T}
    const S::Vector{T}
    const dS::Vector{T}
    const spare::Vector{T}      # sample features of a block
    const room::Vector{T}       # of the convolutions
    const taps::Vector{Int}
    const du::Vector{T}         # of a state, where nobody wants it
    work::Union{Nothing, ReplayWork{T}}
end

function Native{T}(tape::Tape) where {T}
    cells = tape.features * tape.lanes
    images = [op for ops in (tape.before, tape.timely, tape.ops) for op in ops if op.code == CONVOLUTION]
    room = maximum(op -> sum(room_of(op, tape.table, tape.lanes)), images; init = 0)
    taps = maximum(op -> max(op.inputs, taps_back(op, tape.table)), images; init = 0)
    return Native{T}(
        tape, false, zeros(T, cells), zeros(T, cells), zeros(T, tape.scalars), zeros(T, tape.scalars),
        zeros(T, sample(tape) * tape.lanes), zeros(T, room), zeros(Int, taps),
        zeros(T, sample(tape) * tape.batch), nothing
    )
end

"Lanes of a block: as many as keep both arenas in 256 KiB of the second-level cache."
function block_of(batch, features, bytes)
    batch == 1 && return 1
    wide = 64 ÷ bytes
    most = max(wide, (256 * 1024 ÷ (2 * bytes * max(features, 1))) ÷ wide * wide)
    batch <= most && return batch
    blocks = cld(batch, most)
    return cld(cld(batch, blocks), wide) * wide
end
