# Vectors of lanes, as far as the kernels need them: LLVM's own, without a package.

const Vec{N, T} = NTuple{N, VecElement{T}}

llvm_name(::Type{Float64}) = "double"
llvm_name(::Type{Float32}) = "float"

"Lanes of a vector: 64 bytes, which narrower machines take in parts."
width(::Type{T}) where {T} = 64 ÷ sizeof(T)

@inline splat(::Val{N}, x::T) where {N, T} = ntuple(_ -> VecElement(x), Val(N))

# `unsafe_load` and `unsafe_store!` take any address: they ask for no alignment.
@inline vload(::Val{N}, p::Ptr{T}) where {N, T} = unsafe_load(Ptr{Vec{N, T}}(p))
@inline vstore!(p::Ptr{T}, x::Vec{N, T}) where {N, T} = unsafe_store!(Ptr{Vec{N, T}}(p), x)

"a b + c, fused where the machine can."
@generated function vmuladd(a::Vec{N, T}, b::Vec{N, T}, c::Vec{N, T}) where {N, T}
    v = "<$N x $(llvm_name(T))>"
    ir = """
    %m = fmul contract $v %0, %1
    %r = fadd contract $v %m, %2
    ret $v %r
    """
    return :(Base.llvmcall($ir, Vec{N, T}, Tuple{Vec{N, T}, Vec{N, T}, Vec{N, T}}, a, b, c))
end

@inline function vsum(x::Vec{N, T}) where {N, T}
    s = zero(T)
    for i in 1:N
        @inbounds s += x[i].value
    end
    return s
end
