# Sums of products over lanes: some outputs at a time on two vectors of lanes, so that the sums stay in
# registers, a weight is loaded once for both, a vector of inputs once for all.

"Where the inputs of a sum lie: `step` bytes after one another, or at listed bytes."
struct Strided
    step::Int
end
struct Listed
    bytes::Ptr{Int}
end
@inline at(x::Strided, r) = r * x.step
@inline at(x::Listed, r) = unsafe_load(x.bytes, r + 1)

"What a sum begins with: a bias (C_NULL: none), or what the output holds."
struct FromBias{T}
    bias::Ptr{T}
end
struct FromOutput end
@inline from(x::FromBias{T}, vw, k, y) where {T} =
    splat(vw, x.bias == C_NULL ? zero(T) : unsafe_load(x.bias, k + 1))
@inline from(::FromOutput, vw, k, y) = vload(vw, y)

"f(Val(k), o) for outputs o + 1 to o + k, up to n; k as large as registers allow, and even."
@inline function in_groups(f::F, n) where {F}
    o = 0
    while o < n
        rest = n - o
        k = rest >= 6 && rest != 8 ? 6 : rest >= 4 ? 4 : rest >= 2 ? 2 : 1
        k == 6 ? f(Val(6), o) : k == 4 ? f(Val(4), o) : k == 2 ? f(Val(2), o) : f(Val(1), o)
        o += k
    end
    return nothing
end

"f(Val(vectors), Val(width), bytes) over n lanes that begin `bytes` further on."
@inline function over_lanes(f::F, ::Type{T}, n) where {F, T}
    N = width(T)
    l = 0
    while n - l >= 2N
        f(Val(2), Val(N), l * sizeof(T))
        l += 2N
    end
    if n - l >= N
        f(Val(1), Val(N), l * sizeof(T))
        l += N
    end
    if n - l >= N ÷ 2
        f(Val(1), Val(N ÷ 2), l * sizeof(T))
        l += N ÷ 2
    end
    if N ÷ 2 > 4 && n - l >= 4
        f(Val(1), Val(4), l * sizeof(T))
        l += 4
    end
    while l < n
        f(Val(1), Val(1), l * sizeof(T))
        l += 1
    end
    return nothing
end

"""
y_o = start + Σ_r W[o wo + r wr] x_r for `outputs` of y, `ystep` bytes apart, each of `lanes` lanes; the
`terms` x_r are at `taps`.
"""
function sums!(y::Ptr{T}, ystep, start, outputs, W::Ptr{T}, wo, wr, x::Ptr{T}, taps, terms, lanes) where {T}
    in_groups(outputs) do k, o
        over_lanes(T, lanes) do c, vw, bytes
            tile!(
                k, c, vw, y + o * ystep + bytes, ystep, start, o, W + o * wo * sizeof(T), wo, wr,
                x + bytes, taps, terms
            )
        end
    end
    return nothing
end

"K outputs on C vectors of N lanes."
@inline @generated function tile!(
        ::Val{K}, ::Val{C}, vw::Val{N}, y::Ptr{T}, ystep, start, o, W::Ptr{T}, wo, wr, x::Ptr{T}, taps,
        terms
    ) where {K, C, N, T}
    acc(k, c) = Symbol(:acc_, k, :_, c)
    v(c) = Symbol(:x_, c)
    step = N * sizeof(T)
    out(k, c) = :(y + $(k - 1) * ystep + $((c - 1) * step))
    return quote
        $((:($(acc(k, c)) = from(start, vw, o + $(k - 1), $(out(k, c)))) for k in 1:K, c in 1:C)...)
        for r in 0:(terms - 1)
            p = x + at(taps, r)
            $((:($(v(c)) = vload(vw, p + $((c - 1) * step))) for c in 1:C)...)
            $((
                quote
                    w = splat(vw, unsafe_load(W, $(k - 1) * wo + r * wr + 1))
                    $((:($(acc(k, c)) = vmuladd(w, $(v(c)), $(acc(k, c)))) for c in 1:C)...)
                end for k in 1:K
            )...)
        end
        $((:(vstore!($(out(k, c)), $(acc(k, c)))) for k in 1:K, c in 1:C)...)
        return nothing
    end
end

"""
dW[o terms + r] += Σ dy_o x_r over lanes; outputs of dy are `dystep` bytes apart, the x_r at `taps`.
"""
function outer_sums!(dW::Ptr{T}, dy::Ptr{T}, dystep, outputs, x::Ptr{T}, taps, terms, lanes) where {T}
    N = Val(width(T))
    o = 0
    while o < outputs
        k = outputs - o >= 4 ? 4 : outputs - o >= 2 ? 2 : 1
        r = 0
        while r < terms
            j = terms - r >= 4 ? 4 : terms - r >= 2 ? 2 : 1
            p, dz = dW + (o * terms + r) * sizeof(T), dy + o * dystep
            rest = (p, terms, dz, dystep, x, taps, r, lanes)
            k == 4 && j == 4 ? outer!(Val(4), Val(4), N, rest...) :
                k == 4 && j == 2 ? outer!(Val(4), Val(2), N, rest...) :
                k == 2 && j == 4 ? outer!(Val(2), Val(4), N, rest...) :
                k == 2 && j == 2 ? outer!(Val(2), Val(2), N, rest...) :
                k == 4 ? outer!(Val(4), Val(1), N, rest...) :
                k == 2 ? outer!(Val(2), Val(1), N, rest...) :
                j == 4 ? outer!(Val(1), Val(4), N, rest...) :
                j == 2 ? outer!(Val(1), Val(2), N, rest...) : outer!(Val(1), Val(1), N, rest...)
            r += j
        end
        o += k
    end
    return nothing
end

@generated function outer!(
        ::Val{O}, ::Val{I}, vw::Val{N}, dW::Ptr{T}, terms, dy::Ptr{T}, dystep, x::Ptr{T}, taps, r, lanes
    ) where {O, I, N, T}
    acc(k, j) = Symbol(:acc_, k, :_, j)
    p(j) = Symbol(:p_, j)
    v(j) = Symbol(:x_, j)
    d(k) = :(dy + $(k - 1) * dystep)
    return quote
        $((:($(acc(k, j)) = splat(vw, zero(T))) for k in 1:O, j in 1:I)...)
        $((:($(p(j)) = x + at(taps, r + $(j - 1))) for j in 1:I)...)
        l = 0
        while lanes - l >= N
            $((:($(v(j)) = vload(vw, $(p(j)) + l * sizeof(T))) for j in 1:I)...)
            $((
                quote
                    w = vload(vw, $(d(k)) + l * sizeof(T))
                    $((:($(acc(k, j)) = vmuladd(w, $(v(j)), $(acc(k, j)))) for j in 1:I)...)
                end for k in 1:O
            )...)
            l += N
        end
        $((
            quote
                s = vsum($(acc(k, j)))
                for i in (l + 1):lanes
                    s = muladd(unsafe_load($(d(k)), i), unsafe_load($(p(j)), i), s)
                end
                i = $(k - 1) * terms + $j
                unsafe_store!(dW, unsafe_load(dW, i) + s, i)
            end for k in 1:O, j in 1:I
        )...)
        return nothing
    end
end
