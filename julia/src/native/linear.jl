# x W' + bias, W by rows (outputs, inputs): on each run of `inputs` features of x.

function linear!(op::Op, m::Arena{T}) where {T}
    fi, fo, L = op.inputs, op.outputs, m.L
    W, bias = m.S + op.weight * sizeof(T), bias_of(op, m)
    for g in 0:(op.n ÷ fo - 1)
        x, y = feature(m.A, op.x.first + g * fi, L), feature(m.A, op.out + g * fo, L)
        L == 1 ? lane!(y, W, bias, x, fi, fo) :
            sums!(y, L * sizeof(T), FromBias(bias), fo, W, fi, 1, x, Strided(L * sizeof(T)), fi, L)
    end
    return nothing
end

@inline bias_of(op::Op, m::Arena{T}) where {T} =
    op.bias >= 0 ? m.S + op.bias * sizeof(T) : Ptr{T}(C_NULL)

function lane!(y::Ptr{T}, W::Ptr{T}, bias::Ptr{T}, x::Ptr{T}, fi, fo) where {T}
    for o in 1:fo
        s = bias == C_NULL ? zero(T) : unsafe_load(bias, o)
        row = W + (o - 1) * fi * sizeof(T)
        @simd for i in 1:fi
            s = muladd(unsafe_load(row, i), unsafe_load(x, i), s)
        end
        unsafe_store!(y, s, o)
    end
    return nothing
end

function linear_back!(op::Op, m::Arena{T}, scalars) where {T}
    fi, fo, L = op.inputs, op.outputs, m.L
    W, dW, step = m.S + op.weight * sizeof(T), m.dS + op.weight * sizeof(T), L * sizeof(T)
    for g in 0:(op.n ÷ fo - 1)
        x, dx = feature(m.A, op.x.first + g * fi, L), feature(m.dA, op.x.first + g * fi, L)
        dy = feature(m.dA, op.out + g * fo, L)
        if L == 1
            scalars ? lane_back!(dx, dW, W, x, dy, fi, fo) : lane_back!(dx, W, dy, fi, fo)
        else
            sums!(dx, step, FromOutput(), fi, W, 1, fi, dy, Strided(step), fo, L)
            scalars && outer_sums!(dW, dy, step, fo, x, Strided(step), fi, L)
        end
        scalars && bias_back!(op, m, dy, L)
    end
    return nothing
end

"The bias's cotangents, from those of outputs of `lanes` numbers each."
function bias_back!(op::Op, m::Arena{T}, dy::Ptr{T}, lanes) where {T}
    op.bias >= 0 || return nothing
    for o in 1:op.outputs
        add_sum!(m.dS, op.bias + o, feature(dy, o - 1, lanes), lanes, one(T))
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
