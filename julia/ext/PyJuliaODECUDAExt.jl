module PyJuliaODECUDAExt

using CUDA: CUDA, CuPtr, CuVector
using PyJuliaODE: PyJuliaODE

PyJuliaODE.vector_type(::Val{:cuda}, ::Type{T}) where {T} = CuVector{T, CUDA.DeviceMemory}

PyJuliaODE.at_address(::CuVector{T}, address::Integer, n::Integer) where {T} =
    unsafe_wrap(CuVector{T}, CuPtr{T}(UInt(address)), Int(n))

# The host's kernels run on the default stream.
function PyJuliaODE.on_device(run, ::CuVector)
    return CUDA.stream!(run, CUDA.default_stream())
end

end
