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
        op.code == LINEAR ? linear!(op, table, m) :
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

function linear!(op::Op, table, m::Arena{T}) where {T}
    L, fi, fo = m.L, op.inputs, op.outputs
    W = m.S + op.weight * sizeof(T)
    for g in 0:(op.n ÷ fo - 1)
        out = op.out + g * fo
        if L == 1
            for o in 0:(fo - 1)
                s = op.bias >= 0 ? unsafe_load(m.S, op.bias + o + 1) : zero(T)
                row = W + o * fi * sizeof(T)
                if op.x.first >= 0
                    x = m.A + (op.x.first + g * fi) * sizeof(T)
                    @simd for i in 1:fi
                        s = muladd(unsafe_load(row, i), unsafe_load(x, i), s)
                    end
                else
                    for i in 1:fi
                        id = number(op.x, table, g * fi + i - 1)
                        x = id >= 0 ? unsafe_load(m.A, id + 1) : unsafe_load(m.S, -id)
                        s = muladd(unsafe_load(row, i), x, s)
                    end
                end
                unsafe_store!(m.A, s, out + o + 1)
            end
        else
            linear_group!(op, table, m, W, g, out)
        end
    end
    return nothing
end

# Four outputs at a time on two vectors of lanes: eight sums stay in registers, and a weight is loaded
# once for both.
function linear_group!(op::Op, table, m::Arena{T}, W::Ptr{T}, g, out) where {T}
    L, fi, fo, N = m.L, op.inputs, op.outputs, width(T)
    vw = Val(N)
    l = 0
    while l < L
        two = L - l >= 2N
        whole = L - l >= N
        o = 0
        while o < fo
            four = fo - o >= 4
            if four && two
                block!(Val(4), Val(2), vw, op, table, m, W, g, out, o, l)
            elseif whole
                four ? block!(Val(4), Val(1), vw, op, table, m, W, g, out, o, l) :
                    block!(Val(1), Val(two ? 2 : 1), vw, op, table, m, W, g, out, o, l)
            else
                rest!(op, table, m, W, g, out, o, l, four ? 4 : 1)
            end
            o += four ? 4 : 1
        end
        l += two ? 2N : whole ? N : L - l
    end
    return nothing
end

@inline @generated function block!(
        ::Val{O}, ::Val{C}, vw::Val{N}, op, table, m::Arena{T}, W, g, out, o, l
    ) where {O, C, N, T}
    acc(k, c) = Symbol(:acc_, k, :_, c)
    quote
        L, fi = m.L, op.inputs
        $((:($(acc(k, 1)) = splat(vw, op.bias >= 0 ? unsafe_load(m.S, op.bias + o + $k) : zero(T))) for k in 1:O)...)
        $((:($(acc(k, c)) = $(acc(k, 1))) for k in 1:O, c in 2:C)...)
        row = W + o * fi * sizeof(T)
        for i in 0:(fi - 1)
            id = number(op.x, table, g * fi + i)
            if id >= 0
                x = feature(m.A, id, L) + l * sizeof(T)
                $((:($(Symbol(:x_, c)) = vload(vw, x + $((c - 1) * N) * sizeof(T))) for c in 1:C)...)
            else
                x_1 = splat(vw, unsafe_load(m.S, -id))
                $((:($(Symbol(:x_, c)) = x_1) for c in 2:C)...)
            end
            $((
                quote
                    w = splat(vw, unsafe_load(row, $(k - 1) * fi + i + 1))
                    $((:($(acc(k, c)) = vmuladd(w, $(Symbol(:x_, c)), $(acc(k, c)))) for c in 1:C)...)
                end for k in 1:O
            )...)
        end
        $((
            :(vstore!(feature(m.A, out + o + $(k - 1), L) + (l + $((c - 1) * N)) * sizeof(T), $(acc(k, c))))
                for k in 1:O, c in 1:C
        )...)
        return nothing
    end
end

"The lanes that fill no vector."
function rest!(op, table, m::Arena{T}, W, g, out, o, l, count) where {T}
    L, fi = m.L, op.inputs
    for k in o:(o + count - 1)
        y = feature(m.A, out + k, L)
        s = op.bias >= 0 ? unsafe_load(m.S, op.bias + k + 1) : zero(T)
        for r in (l + 1):L
            unsafe_store!(y, s, r)
        end
        for i in 0:(fi - 1)
            w = unsafe_load(W, k * fi + i + 1)
            id = number(op.x, table, g * fi + i)
            if id >= 0
                x = feature(m.A, id, L)
                @simd ivdep for r in (l + 1):L
                    unsafe_store!(y, muladd(w, unsafe_load(x, r), unsafe_load(y, r)), r)
                end
            else
                for r in (l + 1):L
                    unsafe_store!(y, muladd(w, unsafe_load(m.S, -id), unsafe_load(y, r)), r)
                end
            end
        end
    end
    return nothing
end

# ------------------------------------------------------------------------------------------ backward

"`scalars`: cotangents of S too."
function backward!(op::Op, table, m::Arena, scalars::Bool)
    op.code < 32 ? with_function(f -> unary_back!(f, op, table, m, scalars), op.code) :
        op.code == LINEAR ? linear_back!(op, table, m, scalars) :
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
            scalars && add_sum!(m.dS, -id, dy, L, l -> rate)
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
            x, y = feature(m.A, i, L), feature(m.A, k, L)
            add_lanes!(feature(m.dA, i, L), dout, L, l -> fx(unsafe_load(x, l), unsafe_load(y, l), a))
            add_lanes!(feature(m.dA, k, L), dout, L, l -> fy(unsafe_load(x, l), unsafe_load(y, l), a))
        elseif i >= 0
            x, y = feature(m.A, i, L), unsafe_load(m.S, -k)
            add_lanes!(feature(m.dA, i, L), dout, L, l -> fx(unsafe_load(x, l), y, a))
            scalars && add_sum!(m.dS, -k, dout, L, l -> fy(unsafe_load(x, l), y, a))
        elseif k >= 0
            x, y = unsafe_load(m.S, -i), feature(m.A, k, L)
            add_lanes!(feature(m.dA, k, L), dout, L, l -> fy(x, unsafe_load(y, l), a))
            scalars && add_sum!(m.dS, -i, dout, L, l -> fx(x, unsafe_load(y, l), a))
        elseif scalars
            x, y = unsafe_load(m.S, -i), unsafe_load(m.S, -k)
            add_sum!(m.dS, -i, dout, L, l -> fx(x, y, a))
            add_sum!(m.dS, -k, dout, L, l -> fy(x, y, a))
        end
    end
    return nothing
end

@inline function add_lanes!(dx::Ptr, dout::Ptr, L, f::F) where {F}
    @simd ivdep for l in 1:L
        unsafe_store!(dx, muladd(f(l), unsafe_load(dout, l), unsafe_load(dx, l)), l)
    end
    return nothing
end

@inline function add_sum!(dS::Ptr{T}, at, dout::Ptr{T}, L, f::F) where {T, F}
    s = zero(T)
    @simd for l in 1:L
        s = muladd(f(l), unsafe_load(dout, l), s)
    end
    unsafe_store!(dS, unsafe_load(dS, at) + s, at)
    return nothing
end

function linear_back!(op::Op, table, m::Arena{T}, scalars) where {T}
    fo = op.outputs
    W, dW = m.S + op.weight * sizeof(T), m.dS + op.weight * sizeof(T)
    for g in 0:(op.n ÷ fo - 1)
        out = op.out + g * fo
        if m.L == 1
            one_lane_back!(op, table, m, W, dW, g, out, scalars)
        else
            inputs_back!(op, table, m, W, g, out)
            scalars && weights_back!(op, table, m, dW, g, out)
        end
    end
    return nothing
end

function one_lane_back!(op, table, m::Arena{T}, W, dW, g, out, scalars) where {T}
    fi = op.inputs
    for o in 0:(op.outputs - 1)
        dz = unsafe_load(m.dA, out + o + 1)
        row, drow = W + o * fi * sizeof(T), dW + o * fi * sizeof(T)
        if op.x.first >= 0
            x = m.A + (op.x.first + g * fi) * sizeof(T)
            dx = m.dA + (op.x.first + g * fi) * sizeof(T)
            @simd ivdep for i in 1:fi
                unsafe_store!(dx, muladd(unsafe_load(row, i), dz, unsafe_load(dx, i)), i)
            end
            if scalars
                @simd ivdep for i in 1:fi
                    unsafe_store!(drow, muladd(unsafe_load(x, i), dz, unsafe_load(drow, i)), i)
                end
            end
        else
            for i in 1:fi
                id = number(op.x, table, g * fi + i - 1)
                x = id >= 0 ? unsafe_load(m.A, id + 1) : unsafe_load(m.S, -id)
                w = unsafe_load(row, i)
                if id >= 0
                    unsafe_store!(m.dA, muladd(w, dz, unsafe_load(m.dA, id + 1)), id + 1)
                elseif scalars
                    unsafe_store!(m.dS, muladd(w, dz, unsafe_load(m.dS, -id)), -id)
                end
                scalars && unsafe_store!(drow, muladd(x, dz, unsafe_load(drow, i)), i)
            end
        end
        if scalars && op.bias >= 0
            at = op.bias + o + 1
            unsafe_store!(m.dS, unsafe_load(m.dS, at) + dz, at)
        end
    end
    return nothing
end

"dx += W' dz, four inputs at a time."
function inputs_back!(op, table, m::Arena{T}, W, g, out) where {T}
    L, fi, N = m.L, op.inputs, width(T)
    whole = L ÷ N * N
    i = 0
    while i < fi
        four = fi - i >= 4 && all(k -> number(op.x, table, g * fi + i + k) >= 0, 0:3)
        if four
            l = 0
            while L - l >= 2N
                inputs_block!(Val(4), Val(2), Val(N), op, table, m, W, g, out, i, l)
                l += 2N
            end
            L - l >= N && inputs_block!(Val(4), Val(1), Val(N), op, table, m, W, g, out, i, l)
        elseif number(op.x, table, g * fi + i) >= 0
            for l in 0:N:(whole - 1)
                inputs_block!(Val(1), Val(1), Val(N), op, table, m, W, g, out, i, l)
            end
        end
        for k in i:(i + (four ? 3 : 0))
            id = number(op.x, table, g * fi + k)
            (whole == L || id < 0) && continue
            dx = feature(m.dA, id, L)
            for o in 0:(op.outputs - 1)
                w, dz = unsafe_load(W, o * fi + k + 1), feature(m.dA, out + o, L)
                @simd ivdep for l in (whole + 1):L
                    unsafe_store!(dx, muladd(w, unsafe_load(dz, l), unsafe_load(dx, l)), l)
                end
            end
        end
        i += four ? 4 : 1
    end
    return nothing
end

@inline @generated function inputs_block!(
        ::Val{I}, ::Val{C}, vw::Val{N}, op, table, m::Arena{T}, W, g, out, i, l
    ) where {I, C, N, T}
    acc(k, c) = Symbol(:acc_, k, :_, c)
    at(k) = Symbol(:dx_, k)
    quote
        L, fi = m.L, op.inputs
        $((:($(at(k)) = feature(m.dA, number(op.x, table, g * fi + i + $(k - 1)), L) + l * sizeof(T)) for k in 1:I)...)
        $((:($(acc(k, c)) = vload(vw, $(at(k)) + $((c - 1) * N) * sizeof(T))) for k in 1:I, c in 1:C)...)
        for o in 0:(op.outputs - 1)
            dz = feature(m.dA, out + o, L) + l * sizeof(T)
            $((:($(Symbol(:z_, c)) = vload(vw, dz + $((c - 1) * N) * sizeof(T))) for c in 1:C)...)
            $((
                quote
                    w = splat(vw, unsafe_load(W, o * fi + i + $k))
                    $((:($(acc(k, c)) = vmuladd(w, $(Symbol(:z_, c)), $(acc(k, c)))) for c in 1:C)...)
                end for k in 1:I
            )...)
        end
        $((:(vstore!($(at(k)) + $((c - 1) * N) * sizeof(T), $(acc(k, c)))) for k in 1:I, c in 1:C)...)
        return nothing
    end
end

"dW += dz x', db += dz, summed over the lanes; four rows and two columns at a time."
function weights_back!(op, table, m::Arena{T}, dW, g, out) where {T}
    L, fi, fo, N = m.L, op.inputs, op.outputs, width(T)
    o = 0
    while o < fo
        four = fo - o >= 4
        i = 0
        while i < fi
            two = fi - i >= 2 && number(op.x, table, g * fi + i) >= 0 &&
                number(op.x, table, g * fi + i + 1) >= 0
            if four && two
                weights_block!(Val(4), Val(2), Val(N), op, table, m, dW, g, out, o, i)
            elseif number(op.x, table, g * fi + i) >= 0
                for k in o:(o + (four ? 3 : 0))
                    weights_block!(Val(1), Val(1), Val(N), op, table, m, dW, g, out, k, i)
                end
            else
                constant_input_back!(op, table, m, dW, g, out, o, four ? 4 : 1, i)
            end
            i += four && two ? 2 : 1
        end
        if op.bias >= 0
            for k in o:(o + (four ? 3 : 0))
                add_sum!(m.dS, op.bias + k + 1, feature(m.dA, out + k, L), L, l -> one(T))
            end
        end
        o += four ? 4 : 1
    end
    return nothing
end

@inline @generated function weights_block!(
        ::Val{O}, ::Val{I}, vw::Val{N}, op, table, m::Arena{T}, dW, g, out, o, i
    ) where {O, I, N, T}
    acc(k, j) = Symbol(:acc_, k, :_, j)
    x(j) = Symbol(:x_, j)
    z(k) = Symbol(:z_, k)
    quote
        L, fi = m.L, op.inputs
        $((:($(x(j)) = feature(m.A, number(op.x, table, g * fi + i + $(j - 1)), L)) for j in 1:I)...)
        $((:($(z(k)) = feature(m.dA, out + o + $(k - 1), L)) for k in 1:O)...)
        $((:($(acc(k, j)) = splat(vw, zero(T))) for k in 1:O, j in 1:I)...)
        l = 0
        while L - l >= N
            $((:($(Symbol(:vx_, j)) = vload(vw, $(x(j)) + l * sizeof(T))) for j in 1:I)...)
            $((
                quote
                    vz = vload(vw, $(z(k)) + l * sizeof(T))
                    $((:($(acc(k, j)) = vmuladd(vz, $(Symbol(:vx_, j)), $(acc(k, j)))) for j in 1:I)...)
                end for k in 1:O
            )...)
            l += N
        end
        $((
            quote
                s = vsum($(acc(k, j)))
                for r in (l + 1):L
                    s = muladd(unsafe_load($(z(k)), r), unsafe_load($(x(j)), r), s)
                end
                at = (o + $(k - 1)) * fi + i + $j
                unsafe_store!(dW, unsafe_load(dW, at) + s, at)
            end for k in 1:O, j in 1:I
        )...)
        return nothing
    end
end

"An input that is the same in all lanes, such as the time."
function constant_input_back!(op, table, m::Arena{T}, dW, g, out, o, count, i) where {T}
    fi = op.inputs
    id = -number(op.x, table, g * fi + i)
    x = unsafe_load(m.S, id)
    for k in o:(o + count - 1)
        dz = feature(m.dA, out + k, m.L)
        s = zero(T)
        @simd for l in 1:m.L
            s += unsafe_load(dz, l)
        end
        at = k * fi + i + 1
        unsafe_store!(dW, muladd(x, s, unsafe_load(dW, at)), at)
        w = unsafe_load(m.S, op.weight + at)
        unsafe_store!(m.dS, muladd(w, s, unsafe_load(m.dS, id)), id)
    end
    return nothing
end
