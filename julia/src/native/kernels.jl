# The operations: forward on an arena A of L lanes a feature, and backward on its cotangents dA. S and
# dS are the scalars'. For operations on S itself A is S, and L is 1.

struct Arena{T}
    A::Ptr{T}
    dA::Ptr{T}
    S::Ptr{T}
    dS::Ptr{T}
    room::Ptr{T}        # of convolutions, for padded images
    taps::Ptr{Int}      # and where in them a weight's factors are
    L::Int
end

"The same with features at A and dA of other addresses, or another number of lanes."
@inline moved(m::Arena, A, dA, L) = Arena(A, dA, m.S, m.dS, m.room, m.taps, L)

@inline feature(base::Ptr{T}, id, L) where {T} = base + id * L * sizeof(T)
@inline number(op::Operand, table, j) = op.first >= 0 ? op.first + j : Int(@inbounds table[op.at + j + 1])

@generated function with_function(f::F, code::Int) where {F}
    body = :(error("no function of code $code on the tape"))
    for i in length(FUNCTIONS):-1:1
        body = :(code == $(i - 1) ? f($(FUNCTIONS[i])) : $body)
    end
    return body
end

# ------------------------------------------------------------------------------------------- forward

function forward!(op::Op, table, m::Arena)
    op.code < 32 ? with_function(f -> unary!(f, op, table, m), op.code) :
        op.code == LINEAR ? linear!(op, m) :
        op.code == CONVOLUTION ? convolution!(op, table, m) :
        op.code == SUM ? sum!(op, table, m) :
        op.code == ADD ? binary!((x, y, a) -> muladd(a, y, x), op, table, m) :
        op.code == MUL ? binary!((x, y, a) -> x * y, op, table, m) :
        binary!((x, y, a) -> x / y, op, table, m)
    return nothing
end

function unary!(f::F, op::Op, table, m::Arena{T}) where {F, T}
    a, b, L = T(op.a), T(op.b), m.L
    if op.x.first >= 0
        map_lanes!(f, feature(m.A, op.out, L), feature(m.A, op.x.first, L), op.n * L, a, b)
    else
        for j in 0:(op.n - 1)
            id, out = number(op.x, table, j), feature(m.A, op.out + j, L)
            if id >= 0
                map_lanes!(f, out, feature(m.A, id, L), L, a, b)
            else
                fill_lanes!(out, value(f, unsafe_load(m.S, -id), a, b), L)
            end
        end
    end
    return nothing
end

@inline function map_lanes!(f::F, out::Ptr, x::Ptr, n, a, b) where {F}
    @simd ivdep for l in 1:n
        unsafe_store!(out, value(f, unsafe_load(x, l), a, b), l)
    end
    return nothing
end

function binary!(f::F, op::Op, table, m::Arena{T}) where {F, T}
    a, L = T(op.a), m.L
    if op.x.first >= 0 && op.y.first >= 0
        x, y = feature(m.A, op.x.first, L), feature(m.A, op.y.first, L)
        zip_lanes!(f, feature(m.A, op.out, L), x, y, op.n * L, a)
        return nothing
    end
    for j in 0:(op.n - 1)
        i, k = number(op.x, table, j), number(op.y, table, j)
        out = feature(m.A, op.out + j, L)
        if i >= 0 && k >= 0
            zip_lanes!(f, out, feature(m.A, i, L), feature(m.A, k, L), L, a)
        elseif i >= 0
            x, y = feature(m.A, i, L), unsafe_load(m.S, -k)
            @simd ivdep for l in 1:L
                unsafe_store!(out, f(unsafe_load(x, l), y, a), l)
            end
        elseif k >= 0
            x, y = unsafe_load(m.S, -i), feature(m.A, k, L)
            @simd ivdep for l in 1:L
                unsafe_store!(out, f(x, unsafe_load(y, l), a), l)
            end
        else
            fill_lanes!(out, f(unsafe_load(m.S, -i), unsafe_load(m.S, -k), a), L)
        end
    end
    return nothing
end

@inline function zip_lanes!(f::F, out::Ptr, x::Ptr, y::Ptr, n, a) where {F}
    @simd ivdep for l in 1:n
        unsafe_store!(out, f(unsafe_load(x, l), unsafe_load(y, l), a), l)
    end
    return nothing
end

function sum!(op::Op, table, m::Arena{T}) where {T}
    a, L = T(op.a), m.L
    for j in 0:(op.n - 1)
        out = fill_lanes!(feature(m.A, op.out + j, L), zero(T), L)
        for k in 0:(op.inputs - 1)
            id = number(op.x, table, j * op.inputs + k)
            id >= 0 ? add_lanes!(out, feature(m.A, id, L), L, a) :
                add_number!(out, a * unsafe_load(m.S, -id), L)
        end
    end
    return nothing
end

@inline function fill_lanes!(out::Ptr, x, n)
    for l in 1:n
        unsafe_store!(out, x, l)
    end
    return out
end

@inline function copy_lanes!(out::Ptr, x::Ptr, n)
    @simd ivdep for l in 1:n
        unsafe_store!(out, unsafe_load(x, l), l)
    end
    return nothing
end

"An operand's n numbers, which may repeat features or be constant, in one run at `to`."
@inline function collect_lanes!(to::Ptr{T}, x::Operand, table, m::Arena{T}, n) where {T}
    for j in 0:(n - 1)
        id, out = number(x, table, j), feature(to, j, m.L)
        id >= 0 ? copy_lanes!(out, feature(m.A, id, m.L), m.L) : fill_lanes!(out, unsafe_load(m.S, -id), m.L)
    end
    return to
end

"And back: their cotangents dx, added where they are; `scalars`: to those of S too."
@inline function spread_lanes!(dx::Ptr{T}, x::Operand, table, m::Arena{T}, n, scalars) where {T}
    for j in 0:(n - 1)
        id, d = number(x, table, j), feature(dx, j, m.L)
        if id >= 0
            add_lanes!(feature(m.dA, id, m.L), d, m.L)
        elseif scalars
            add_sum!(m.dS, -id, d, m.L, one(T))
        end
    end
    return nothing
end

"out += a x"
@inline function add_lanes!(out::Ptr{T}, x::Ptr{T}, n, a::T = one(T)) where {T}
    @simd ivdep for l in 1:n
        unsafe_store!(out, muladd(a, unsafe_load(x, l), unsafe_load(out, l)), l)
    end
    return nothing
end

@inline function add_number!(out::Ptr, x, n)
    for l in 1:n
        unsafe_store!(out, unsafe_load(out, l) + x, l)
    end
    return nothing
end

# ------------------------------------------------------------------------------------------ backward

"`scalars`: cotangents of S too."
function backward!(op::Op, table, m::Arena, scalars::Bool)
    op.code < 32 ? with_function(f -> unary_back!(f, op, table, m, scalars), op.code) :
        op.code == LINEAR ? linear_back!(op, m, scalars) :
        op.code == CONVOLUTION ? convolution_back!(op, table, m, scalars) :
        op.code == SUM ? sum_back!(op, table, m, scalars) :
        op.code == ADD ? binary_back!((x, y, a) -> one(a), (x, y, a) -> a, op, table, m, scalars) :
        op.code == MUL ? binary_back!((x, y, a) -> y, (x, y, a) -> x, op, table, m, scalars) :
        binary_back!((x, y, a) -> inv(y), (x, y, a) -> -x / (y * y), op, table, m, scalars)
    return nothing
end

function unary_back!(f::F, op::Op, table, m::Arena{T}, scalars) where {F, T}
    a, b, L = T(op.a), T(op.b), m.L
    count, size = op.x.first >= 0 ? (1, op.n * L) : (op.n, L)
    for j in 0:(count - 1)
        id = number(op.x, table, j)
        y, dy = feature(m.A, op.out + j, L), feature(m.dA, op.out + j, L)
        if id < 0
            rate = slope(f, unsafe_load(m.S, -id), unsafe_load(y, 1), a, b)
            scalars && add_sum!(m.dS, -id, dy, L, rate)
            continue
        end
        x, dx = feature(m.A, id, L), feature(m.dA, id, L)
        @simd ivdep for l in 1:size
            s = slope(f, unsafe_load(x, l), unsafe_load(y, l), a, b)
            unsafe_store!(dx, muladd(s, unsafe_load(dy, l), unsafe_load(dx, l)), l)
        end
    end
    return nothing
end

function binary_back!(fx::FX, fy::FY, op::Op, table, m::Arena{T}, scalars) where {FX, FY, T}
    a, L = T(op.a), m.L
    for j in 0:(op.n - 1)
        i, k = number(op.x, table, j), number(op.y, table, j)
        dout = feature(m.dA, op.out + j, L)
        if i >= 0 && k >= 0
            lanes_back!(fx, fy, m, i, k, dout, a)
        elseif i >= 0
            lane_number_back!(fx, fy, m, i, -k, dout, a, scalars)
        elseif k >= 0
            lane_number_back!(
                (y, x, a) -> fy(x, y, a), (y, x, a) -> fx(x, y, a), m, k, -i, dout, a, scalars
            )
        elseif scalars
            x, y = unsafe_load(m.S, -i), unsafe_load(m.S, -k)
            add_sum!(m.dS, -i, dout, L, fx(x, y, a))
            add_sum!(m.dS, -k, dout, L, fy(x, y, a))
        end
    end
    return nothing
end

@inline function lanes_back!(fx::FX, fy::FY, m::Arena, i, k, dout, a) where {FX, FY}
    x, y, dx, dy = feature(m.A, i, m.L), feature(m.A, k, m.L), feature(m.dA, i, m.L), feature(m.dA, k, m.L)
    @simd for l in 1:(m.L)      # dx and dy may be the same
        vx, vy, d = unsafe_load(x, l), unsafe_load(y, l), unsafe_load(dout, l)
        unsafe_store!(dx, muladd(fx(vx, vy, a), d, unsafe_load(dx, l)), l)
        unsafe_store!(dy, muladd(fy(vx, vy, a), d, unsafe_load(dy, l)), l)
    end
    return nothing
end

"x in lanes, y a number of S at `at`."
@inline function lane_number_back!(fx::FX, fy::FY, m::Arena{T}, i, at, dout, a, scalars) where {FX, FY, T}
    x, dx, y = feature(m.A, i, m.L), feature(m.dA, i, m.L), unsafe_load(m.S, at)
    s = zero(T)
    @simd ivdep for l in 1:(m.L)
        vx, d = unsafe_load(x, l), unsafe_load(dout, l)
        unsafe_store!(dx, muladd(fx(vx, y, a), d, unsafe_load(dx, l)), l)
        s = muladd(fy(vx, y, a), d, s)
    end
    scalars && unsafe_store!(m.dS, unsafe_load(m.dS, at) + s, at)
    return nothing
end

function sum_back!(op::Op, table, m::Arena{T}, scalars) where {T}
    a, L = T(op.a), m.L
    for j in 0:(op.n - 1), k in 0:(op.inputs - 1)
        id, dy = number(op.x, table, j * op.inputs + k), feature(m.dA, op.out + j, L)
        if id >= 0
            add_lanes!(feature(m.dA, id, L), dy, L, a)
        elseif scalars
            add_sum!(m.dS, -id, dy, L, a)
        end
    end
    return nothing
end

"dS[at] += rate * (sum of dout over the lanes)"
@inline function add_sum!(dS::Ptr{T}, at, dout::Ptr{T}, L, rate::T) where {T}
    s = zero(T)
    @simd for l in 1:L
        s += unsafe_load(dout, l)
    end
    unsafe_store!(dS, muladd(rate, s, unsafe_load(dS, at)), at)
    return nothing
end
