# The operations: forward on an arena A of L lanes a feature, and backward on its cotangents dA. S and
# dS are the scalars'. For operations on S itself A is S, and L is 1.

struct Arena{T}
    A::Ptr{T}
    dA::Ptr{T}
    S::Ptr{T}
    dS::Ptr{T}
    L::Int
end

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

@inline function fill_lanes!(out::Ptr, x, n)
    for l in 1:n
        unsafe_store!(out, x, l)
    end
    return nothing
end

function linear!(op::Op, m::Arena{T}) where {T}
    W = m.S + op.weight * sizeof(T)
    bias = op.bias >= 0 ? m.S + op.bias * sizeof(T) : C_NULL
    for g in 0:(op.n ÷ op.outputs - 1)
        x = feature(m.A, op.x.first + g * op.inputs, m.L)
        y = feature(m.A, op.out + g * op.outputs, m.L)
        m.L == 1 ? affine_lane!(y, W, bias, x, op.inputs, op.outputs) :
            affine_lanes!(y, W, bias, x, op.inputs, op.outputs, m.L)
    end
    return nothing
end

function affine_lane!(y::Ptr{T}, W::Ptr{T}, bias::Ptr, x::Ptr{T}, fi, fo) where {T}
    for o in 1:fo
        s = bias == C_NULL ? zero(T) : unsafe_load(Ptr{T}(bias), o)
        row = W + (o - 1) * fi * sizeof(T)
        @simd for i in 1:fi
            s = muladd(unsafe_load(row, i), unsafe_load(x, i), s)
        end
        unsafe_store!(y, s, o)
    end
    return nothing
end

# Some outputs at a time on two vectors of lanes: the sums stay in registers, a weight is loaded once
# for both, a vector of inputs once for all.
function affine_lanes!(y::Ptr{T}, W::Ptr{T}, bias::Ptr, x::Ptr{T}, fi, fo, L) where {T}
    o = 0
    while o < fo
        k = fo - o >= 6 ? 6 : fo - o >= 4 ? 4 : fo - o >= 2 ? 2 : 1
        out, rows = feature(y, o, L), W + o * fi * sizeof(T)
        b = bias == C_NULL ? bias : bias + o * sizeof(T)
        k == 6 ? rows!(Val(6), out, rows, b, x, fi, L) : k == 4 ? rows!(Val(4), out, rows, b, x, fi, L) :
            k == 2 ? rows!(Val(2), out, rows, b, x, fi, L) : rows!(Val(1), out, rows, b, x, fi, L)
        o += k
    end
    return nothing
end

function rows!(k::Val{K}, y::Ptr{T}, W, bias, x, fi, L) where {K, T}
    N = width(T)
    l = 0
    while L - l >= 2N
        tile!(k, Val(2), Val(N), y + l * sizeof(T), W, bias, x + l * sizeof(T), fi, L)
        l += 2N
    end
    if L - l >= N
        tile!(k, Val(1), Val(N), y + l * sizeof(T), W, bias, x + l * sizeof(T), fi, L)
        l += N
    end
    while l < L
        tile!(k, Val(1), Val(1), y + l * sizeof(T), W, bias, x + l * sizeof(T), fi, L)
        l += 1
    end
    return nothing
end

"K outputs of `y = W x + bias` on C vectors of N lanes."
@inline @generated function tile!(
        ::Val{K}, ::Val{C}, vw::Val{N}, y::Ptr{T}, W::Ptr{T}, bias, x::Ptr{T}, fi, L
    ) where {K, C, N, T}
    acc(k, c) = Symbol(:acc_, k, :_, c)
    v(c) = Symbol(:x_, c)
    step = N * sizeof(T)
    return quote
        $((:($(acc(k, 1)) = splat(vw, bias == C_NULL ? zero(T) : unsafe_load(Ptr{T}(bias), $k))) for k in 1:K)...)
        $((:($(acc(k, c)) = $(acc(k, 1))) for k in 1:K, c in 2:C)...)
        for i in 1:fi
            $((:($(v(c)) = vload(vw, x + $((c - 1) * step))) for c in 1:C)...)
            $((
                quote
                    w = splat(vw, unsafe_load(W, $(k - 1) * fi + i))
                    $((:($(acc(k, c)) = vmuladd(w, $(v(c)), $(acc(k, c)))) for c in 1:C)...)
                end for k in 1:K
            )...)
            x += L * sizeof(T)
        end
        $((:(vstore!(feature(y, $(k - 1), L) + $((c - 1) * step), $(acc(k, c)))) for k in 1:K, c in 1:C)...)
        return nothing
    end
end

# ------------------------------------------------------------------------------------------ backward

"`scalars`: cotangents of S too."
function backward!(op::Op, table, m::Arena, scalars::Bool)
    op.code < 32 ? with_function(f -> unary_back!(f, op, table, m, scalars), op.code) :
        op.code == LINEAR ? linear_back!(op, m, scalars) :
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

"dS[at] += rate * (sum of dout over the lanes)"
@inline function add_sum!(dS::Ptr{T}, at, dout::Ptr{T}, L, rate::T) where {T}
    s = zero(T)
    @simd for l in 1:L
        s += unsafe_load(dout, l)
    end
    unsafe_store!(dS, muladd(rate, s, unsafe_load(dS, at)), at)
    return nothing
end

function linear_back!(op::Op, m::Arena{T}, scalars) where {T}
    fi, fo, L = op.inputs, op.outputs, m.L
    W, dW = m.S + op.weight * sizeof(T), m.dS + op.weight * sizeof(T)
    for g in 0:(op.n ÷ fo - 1)
        x, dx = feature(m.A, op.x.first + g * fi, L), feature(m.dA, op.x.first + g * fi, L)
        dy = feature(m.dA, op.out + g * fo, L)
        if L == 1
            scalars ? lane_back!(dx, dW, W, x, dy, fi, fo) : lane_back!(dx, W, dy, fi, fo)
        else
            inputs_back!(dx, W, dy, fi, fo, L)
            scalars && weights_back!(dW, x, dy, fi, fo, L)
        end
        if scalars && op.bias >= 0
            for o in 1:fo
                add_sum!(m.dS, op.bias + o, feature(dy, o - 1, L), L, one(T))
            end
        end
    end
    return nothing
end

function lane_back!(dx::Ptr{T}, W::Ptr{T}, dy::Ptr{T}, fi, fo) where {T}
    for o in 1:fo
        d, row = unsafe_load(dy, o), W + (o - 1) * fi * sizeof(T)
        @simd ivdep for i in 1:fi
            unsafe_store!(dx, muladd(unsafe_load(row, i), d, unsafe_load(dx, i)), i)
        end
    end
    return nothing
end

function lane_back!(dx::Ptr{T}, dW::Ptr{T}, W::Ptr{T}, x::Ptr{T}, dy::Ptr{T}, fi, fo) where {T}
    for o in 1:fo
        d, at = unsafe_load(dy, o), (o - 1) * fi * sizeof(T)
        row, drow = W + at, dW + at
        @simd ivdep for i in 1:fi
            unsafe_store!(dx, muladd(unsafe_load(row, i), d, unsafe_load(dx, i)), i)
            unsafe_store!(drow, muladd(unsafe_load(x, i), d, unsafe_load(drow, i)), i)
        end
    end
    return nothing
end

"dx += W' dy, some inputs at a time."
function inputs_back!(dx::Ptr{T}, W::Ptr{T}, dy::Ptr{T}, fi, fo, L) where {T}
    i = 0
    while i < fi
        k = fi - i >= 6 ? 6 : fi - i >= 4 ? 4 : fi - i >= 2 ? 2 : 1
        out, columns = feature(dx, i, L), W + i * sizeof(T)
        k == 6 ? columns!(Val(6), out, columns, dy, fi, fo, L) :
            k == 4 ? columns!(Val(4), out, columns, dy, fi, fo, L) :
            k == 2 ? columns!(Val(2), out, columns, dy, fi, fo, L) :
            columns!(Val(1), out, columns, dy, fi, fo, L)
        i += k
    end
    return nothing
end

function columns!(k::Val{K}, dx::Ptr{T}, W, dy, fi, fo, L) where {K, T}
    N = width(T)
    l = 0
    while L - l >= 2N
        tile_back!(k, Val(2), Val(N), dx + l * sizeof(T), W, dy + l * sizeof(T), fi, fo, L)
        l += 2N
    end
    if L - l >= N
        tile_back!(k, Val(1), Val(N), dx + l * sizeof(T), W, dy + l * sizeof(T), fi, fo, L)
        l += N
    end
    while l < L
        tile_back!(k, Val(1), Val(1), dx + l * sizeof(T), W, dy + l * sizeof(T), fi, fo, L)
        l += 1
    end
    return nothing
end

"K inputs of `dx += W' dy` on C vectors of N lanes."
@inline @generated function tile_back!(
        ::Val{K}, ::Val{C}, vw::Val{N}, dx::Ptr{T}, W::Ptr{T}, dy::Ptr{T}, fi, fo, L
    ) where {K, C, N, T}
    acc(k, c) = Symbol(:acc_, k, :_, c)
    v(c) = Symbol(:d_, c)
    step = N * sizeof(T)
    at(k, c) = :(feature(dx, $(k - 1), L) + $((c - 1) * step))
    return quote
        $((:($(acc(k, c)) = vload(vw, $(at(k, c)))) for k in 1:K, c in 1:C)...)
        for _ in 1:fo
            $((:($(v(c)) = vload(vw, dy + $((c - 1) * step))) for c in 1:C)...)
            $((
                quote
                    w = splat(vw, unsafe_load(W, $k))
                    $((:($(acc(k, c)) = vmuladd(w, $(v(c)), $(acc(k, c)))) for c in 1:C)...)
                end for k in 1:K
            )...)
            dy += L * sizeof(T)
            W += fi * sizeof(T)
        end
        $((:(vstore!($(at(k, c)), $(acc(k, c)))) for k in 1:K, c in 1:C)...)
        return nothing
    end
end

"dW += dy x', summed over the lanes; four rows and four columns at a time."
function weights_back!(dW::Ptr{T}, x::Ptr{T}, dy::Ptr{T}, fi, fo, L) where {T}
    N = Val(width(T))
    o = 0
    while o < fo
        rows = fo - o >= 4 ? 4 : fo - o >= 2 ? 2 : 1
        i = 0
        while i < fi
            columns = fi - i >= 4 ? 4 : fi - i >= 2 ? 2 : 1
            at, dz, xs = dW + (o * fi + i) * sizeof(T), feature(dy, o, L), feature(x, i, L)
            rows == 4 && columns == 4 ? outer!(Val(4), Val(4), N, at, dz, xs, fi, L) :
                rows == 4 && columns == 2 ? outer!(Val(4), Val(2), N, at, dz, xs, fi, L) :
                rows == 2 && columns == 4 ? outer!(Val(2), Val(4), N, at, dz, xs, fi, L) :
                rows == 2 && columns == 2 ? outer!(Val(2), Val(2), N, at, dz, xs, fi, L) :
                outer_rest!(N, at, dz, xs, rows, columns, fi, L)
            i += columns
        end
        o += rows
    end
    return nothing
end

function outer_rest!(N, dW::Ptr{T}, dy, x, rows, columns, fi, L) where {T}
    for o in 0:(rows - 1), i in 0:(columns - 1)
        outer!(Val(1), Val(1), N, dW + (o * fi + i) * sizeof(T), feature(dy, o, L), feature(x, i, L), fi, L)
    end
    return nothing
end

@generated function outer!(
        ::Val{O}, ::Val{I}, vw::Val{N}, dW::Ptr{T}, dy::Ptr{T}, x::Ptr{T}, fi, L
    ) where {O, I, N, T}
    acc(k, j) = Symbol(:acc_, k, :_, j)
    return quote
        $((:($(acc(k, j)) = splat(vw, zero(T))) for k in 1:O, j in 1:I)...)
        l = 0
        while L - l >= N
            $((:($(Symbol(:x_, j)) = vload(vw, feature(x, $(j - 1), L) + l * sizeof(T))) for j in 1:I)...)
            $((
                quote
                    d = vload(vw, feature(dy, $(k - 1), L) + l * sizeof(T))
                    $((:($(acc(k, j)) = vmuladd(d, $(Symbol(:x_, j)), $(acc(k, j)))) for j in 1:I)...)
                end for k in 1:O
            )...)
            l += N
        end
        $((
            quote
                s = vsum($(acc(k, j)))
                for r in (l + 1):L
                    s = muladd(
                        unsafe_load(feature(dy, $(k - 1), L), r), unsafe_load(feature(x, $(j - 1), L), r), s
                    )
                end
                unsafe_store!(dW, unsafe_load(dW, $(k - 1) * fi + $j) + s, $(k - 1) * fi + $j)
            end for k in 1:O, j in 1:I
        )...)
        return nothing
    end
end
