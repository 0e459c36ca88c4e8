# Workspaces and solutions by number: the host keeps integers, never Julia objects.

"A solution that is kept for dense output or for an adjoint."
struct Handle
    solution::Any
    workspace::Workspace
    swapped::Bool       # of a second-order solve: its order is (velocity, position)
    jacobian::Bool
    watch::Watch        # follows the solves that an adjoint repeats
end

const WORKSPACES = Dict{Int, Workspace}()
const HANDLES = Dict{Int, Handle}()
const COUNTER = Ref(0)

next_id() = (COUNTER[] += 1)

"""
    as_vector(x, V)

A flat vector of type `V` that shares the memory of `x`. Methods for tensors of Python (DLPack) come
with PythonCall.
"""
as_vector(x::V, ::Type{V}) where {V <: AbstractVector} = x

"The type of vectors on a device, which is Val(:cpu) or, with CUDA, Val(:cuda)."
vector_type(::Val{:cpu}, ::Type{T}) where {T} = Vector{T}

"Run `f` as the device of `like` wants it."
on_device(f, like) = f()

"""
    at_address(like, address, n)

A vector of the kind of `like` on `n` numbers of the host's memory, for the length of one call.
"""
at_address(::Vector{T}, address::Integer, n::Integer) where {T} =
    unsafe_wrap(Vector{T}, Ptr{T}(UInt(address)), Int(n))

float64s(address::Integer, n::Integer) =
    n == 0 ? Float64[] : copy(at_address(Float64[], address, n))

"""
    workspace!(precision, device, u, du, lam, gu, gp, jac, nparams, status, callbacks...) -> id

Register the vectors that the host shares. `precision` is "Float32" or "Float64", `device` "cpu" or
"cuda", `status` the address of two Int32, `callbacks` the seven addresses of [`Callbacks`](@ref).
"""
function workspace!(
        precision::String, device::String, u, du, lam, gu, gp, jac, nparams::Int, status::Integer,
        callbacks::Integer...
    )
    T = precision == "Float32" ? Float32 : Float64
    V = vector_type(Val(Symbol(device)), T)
    vectors = map(x -> as_vector(x, V), (u, du, lam, gu, gp, jac))
    ws = Workspace(vectors..., Callbacks(callbacks...), Ptr{Int32}(UInt(status)), nparams)
    id = next_id()
    WORKSPACES[id] = ws
    return id
end

"""
    discard!(id)

Forget a workspace.
"""
discard!(id::Int) = (delete!(WORKSPACES, id); nothing)

"""
    release!(id)

Forget a kept solution.
"""
release!(id::Int) = (delete!(HANDLES, id); nothing)

"Numbers of workspaces and of kept solutions."
alive() = (length(WORKSPACES), length(HANDLES))

function keep!(handle::Handle)
    id = next_id()
    HANDLES[id] = handle
    return id
end
