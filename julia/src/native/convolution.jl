# Two-dimensional cross-correlation as torch's conv2d, stride 1, one group. A row of an image is `width`
# times L lanes one after another, so that every weight multiplies whole runs of a padded row; the
# cotangent of the input is a correlation too, of the padded cotangent with the weight turned around.

"What the table holds of a convolution, from `y.at` on."
struct Geometry
    channels::Int
    height::Int
    width::Int
    kernel::Tuple{Int, Int}
    before::Tuple{Int, Int}     # zeros above and on the left
    dilation::Tuple{Int, Int}
    out::Tuple{Int, Int}        # height and width
end

function Geometry(op::Op, table)
    g(i) = Int(@inbounds table[op.y.at + i])
    return Geometry(g(1), g(2), g(3), (g(4), g(5)), (g(6), g(7)), (g(8), g(9)), (g(10), g(11)))
end

"How far a kernel reaches beyond its first number."
reach(g::Geometry) = (g.kernel .- 1) .* g.dilation
"Height and width of the padded input, and of the padded cotangent of the output."
padded(g::Geometry) = g.out .+ reach(g)
padded_back(g::Geometry) = (g.height, g.width) .+ reach(g)
"Whether there is nothing to pad."
plain(g::Geometry) = reach(g) == (0, 0) && g.before == (0, 0)

"""
Numbers of the three parts of the room: padded images; the input in one run; cotangents in rows as wide as
padded ones, then weights turned around.
"""
function room_of(op::Op, table, L)
    g = Geometry(op, table)
    images = max(g.channels * prod(padded(g)), op.outputs * prod(padded_back(g)))
    widened = op.outputs * g.out[1] * padded(g)[2] * L
    return images * L, g.channels * g.height * g.width * L, max(widened, op.inputs * op.outputs)
end

"Factors of a number of the input's cotangent."
taps_back(op::Op, table) = op.outputs * prod(Geometry(op, table).kernel)

function convolution!(op::Op, table, m::Arena{T}) where {T}
    g, L = Geometry(op, table), m.L
    x = padded_input(op, g, table, m)
    taps = taps!(m, g.channels, g.kernel, g.dilation, padded(g), false)
    (h, w), row = g.out, padded(g)[2] * L * sizeof(T)
    W, y, bias = m.S + op.weight * sizeof(T), feature(m.A, op.out, L), FromBias(bias_of(op, m))
    for i in 0:(h - 1)
        sums!(
            y + i * w * L * sizeof(T), h * w * L * sizeof(T), bias, op.outputs, W, op.inputs, 1,
            x + i * row, taps, op.inputs, w * L
        )
    end
    return nothing
end

function convolution_back!(op::Op, table, m::Arena{T}, scalars) where {T}
    g, L = Geometry(op, table), m.L
    dy = feature(m.dA, op.out, L)
    images, inputs, _ = room_of(op, table, L)
    rest = m.room + (images + inputs) * sizeof(T)
    scalars && weight_back!(op, g, table, m, dy, rest)
    rows = padded_back(g)
    if !plain(g)
        dy = pad!(m.room, dy, op.outputs, g.out, reach(g) .- g.before, rows, L)
    end
    taps = taps!(m, op.outputs, g.kernel, g.dilation, rows, true)
    W = turned!(rest, op, g, m)
    run = op.x.first >= 0
    dx = run ? feature(m.dA, op.x.first, L) : fill_lanes!(m.room + images * sizeof(T), zero(T), inputs)
    terms = taps_back(op, table)
    for i in 0:(g.height - 1)
        sums!(
            dx + i * g.width * L * sizeof(T), g.height * g.width * L * sizeof(T), FromOutput(), g.channels,
            W, terms, 1, dy + i * rows[2] * L * sizeof(T), taps, terms, g.width * L
        )
    end
    run || spread_lanes!(dx, op.x, table, m, g.channels * g.height * g.width, scalars)
    return nothing
end

"Of the weight and the bias; `room` for cotangents in wider rows."
function weight_back!(op::Op, g::Geometry, table, m::Arena{T}, dy::Ptr{T}, room::Ptr{T}) where {T}
    L, (h, w), width = m.L, g.out, padded(g)[2]
    bias_back!(op, m, dy, h * w * L)
    x = padded_input(op, g, table, m)
    taps = taps!(m, g.channels, g.kernel, g.dilation, padded(g), false)
    # with zeros behind its rows an image is one run of lanes
    wide = plain(g) ? dy : pad!(room, dy, op.outputs, g.out, (0, 0), (h, width), L)
    lanes = ((h - 1) * width + w) * L
    outer_sums!(
        m.dS + op.weight * sizeof(T), wide, h * width * L * sizeof(T), op.outputs, x, taps, op.inputs, lanes
    )
    return nothing
end

"The input, in one run and padded: itself, or made in the room."
function padded_input(op::Op, g::Geometry, table, m::Arena{T}) where {T}
    L, n = m.L, g.channels * g.height * g.width
    if op.x.first >= 0
        x = feature(m.A, op.x.first, L)
    else
        x = collect_lanes!(m.room + room_of(op, table, L)[1] * sizeof(T), op.x, table, m, n)
    end
    plain(g) && return x
    return pad!(m.room, x, g.channels, (g.height, g.width), g.before, padded(g), L)
end

"Images of `size` at x, with `before` zeros above and on the left, as images of `whole` at `to`."
function pad!(to::Ptr{T}, x::Ptr{T}, channels, size, before, whole, L) where {T}
    fill_lanes!(to, zero(T), channels * prod(whole) * L)
    for c in 0:(channels - 1), i in 0:(size[1] - 1)
        unsafe_copyto!(
            feature(to, (c * whole[1] + before[1] + i) * whole[2] + before[2], L),
            feature(x, (c * size[1] + i) * size[2], L), size[2] * L
        )
    end
    return to
end

"Where the factors of a row of weights are, in padded images of `whole`; `back`: taps from the last."
function taps!(m::Arena{T}, channels, kernel, dilation, whole, back) where {T}
    k = 0
    for c in 0:(channels - 1), a in 0:(kernel[1] - 1), b in 0:(kernel[2] - 1)
        i, j = back ? kernel .- 1 .- (a, b) : (a, b)
        at = (c * whole[1] + i * dilation[1]) * whole[2] + j * dilation[2]
        unsafe_store!(m.taps, at * m.L * sizeof(T), k += 1)
    end
    return Listed(m.taps)
end

"The weight (outputs, channels, taps) as (channels, outputs, taps)."
function turned!(to::Ptr{T}, op::Op, g::Geometry, m::Arena{T}) where {T}
    W, taps = m.S + op.weight * sizeof(T), prod(g.kernel)
    for c in 0:(g.channels - 1), o in 0:(op.outputs - 1)
        unsafe_copyto!(
            to + (c * op.outputs + o) * taps * sizeof(T), W + (o * g.channels + c) * taps * sizeof(T), taps
        )
    end
    return to
end
