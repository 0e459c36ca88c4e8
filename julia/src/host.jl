# Calls into the host: C function pointers, shared vectors, one status cell.

"""
    Callbacks(rhs, vjp_u, vjp_p, vjp, jac, event, poll)

C function pointers `void f(double t)`, each on the vectors of its [`Workspace`](@ref):

- `rhs`:   du <- f(u, t)
- `vjp_u`: gu <- (df/du)' lam
- `vjp_p`: gp <- (df/dp)' lam
- `vjp`:   both products and du, from one evaluation
- `jac`:   jac <- df/du, column-major, N x N
- `event`: gu[1:m] <- the m event functions
- `poll`:  nothing, but the host may be interrupted in it
"""
struct Callbacks
    rhs::Ptr{Cvoid}
    vjp_u::Ptr{Cvoid}
    vjp_p::Ptr{Cvoid}
    vjp::Ptr{Cvoid}
    jac::Ptr{Cvoid}
    event::Ptr{Cvoid}
    poll::Ptr{Cvoid}
end

Callbacks(addresses::Integer...) = Callbacks((Ptr{Cvoid}(UInt(a)) for a in addresses)...)

"""
    HostAbort()

A callback did not report success: the host keeps the reason. An exception that was stored by the
host, or, where none was, an interrupt that arrived before the callback could store it.
"""
struct HostAbort <: Exception end
Base.showerror(io::IO, ::HostAbort) = print(io, "HostAbort: a host callback did not succeed")

"""
    Workspace(u, du, lam, gu, gp, jac, callbacks, status)

Flat vectors of length N (gp: of length max(P, 1); jac: N^2 or 0) that host and solver share, and
counts of the host's work. `status` points to two Int32: a callback writes 1 to the first when it has
succeeded, the host writes non-zero to the second to stop the solve.
"""
mutable struct Workspace{V <: AbstractVector, T}
    const u::V
    const du::V
    const lam::V
    const gu::V
    const gp::V
    const jac::V
    const callbacks::Callbacks
    const status::Ptr{Int32}
    nparams::Int
    nf::Int
    nvjp::Int
    nvjp_p::Int
    njac::Int
    swapped::Bool       # the solver's order is (velocity, position), the host's (position, velocity)
    fused::Bool         # one joint product serves vjp, vjp_p and f at the same point
    pending_p::Bool
    pending_f::Bool
    pending_at::Tuple{UInt, Float64}
    polls::Int
    clock::Clock
    native::Union{Nothing, Native{T}}   # computes the field and its products instead of the host
    spare::Union{Nothing, Native{T}}    # what it was for the last solve
end

function Workspace(u::V, du::V, lam::V, gu::V, gp::V, jac::V, callbacks, status, nparams) where {V}
    return Workspace{V, eltype(V)}(
        u, du, lam, gu, gp, jac, callbacks, status, nparams,
        0, 0, 0, 0, false, false, false, false, (UInt(0), 0.0), 0, Clock(), nothing, nothing
    )
end

Base.eltype(::Workspace{V}) where {V} = eltype(V)
Base.length(ws::Workspace) = length(ws.u)

function reset!(ws::Workspace; fused::Bool = false)
    ws.nf = ws.nvjp = ws.nvjp_p = ws.njac = 0
    ws.fused, ws.pending_p, ws.pending_f = fused, false, false
    return ws
end

"One of the host's callbacks, or a tape in its place, at the host's time of a solver's."
@inline function call(ws::Workspace, which::Val{name}, s) where {name}
    native, t = ws.native, ws.clock(Float64(s))
    if native !== nothing && name in (:rhs, :vjp_u, :vjp_p, :vjp)
        evaluate!(native, ws, which, t)
        return poll(ws)
    end
    return call_host(ws, getfield(ws.callbacks, name), t)
end

"Let the host look for an interrupt now and then: a tape runs nothing of it."
@inline function poll(ws::Workspace)
    ws.polls += 1
    ws.polls & 0xff == 0 && call_host(ws, ws.callbacks.poll, 0.0)
    return nothing
end

@inline function call_host(ws::Workspace, f::Ptr{Cvoid}, t)
    unsafe_load(ws.status, 2) == 0 || throw(HostAbort())
    unsafe_store!(ws.status, Int32(0), 1)
    ccall(f, Cvoid, (Cdouble,), t)
    unsafe_load(ws.status, 1) == 1 || throw(HostAbort())
    return nothing
end

# Moves between a solver's array and a host vector.
function gather!(host, x::AbstractVector, swapped::Bool)
    swapped || return copyto!(host, x)
    n = length(host) ÷ 2
    copyto!(host, 1, x, n + 1, n)
    copyto!(host, n + 1, x, 1, n)
    return host
end

function gather!(host, x::ArrayPartition, swapped::Bool)
    v, h = x.x
    n = length(h)
    copyto!(host, 1, h, 1, n)
    copyto!(host, n + 1, v, 1, n)
    return host
end

scatter!(x::AbstractVector, host, swapped::Bool) = gather!(x, host, swapped)

function scatter!(x::ArrayPartition, host, ::Bool)
    v, h = x.x
    n = length(h)
    copyto!(h, 1, host, 1, n)
    copyto!(v, 1, host, n + 1, n)
    return x
end

@noinline no_duals(::Type{T}) where {T} = throw(
    ArgumentError(
        "numbers of type $T reached the host's right-hand side, which takes floating-point " *
            "numbers only: use autodiff = AutoFiniteDiff() or give a Jacobian"
    )
)

"The right-hand side, called as `f(du, u, p, t)`."
struct HostRHS{W <: Workspace}
    ws::W
end

function (f::HostRHS)(du, u, p, t)
    eltype(u) <: AbstractFloat || no_duals(eltype(u))
    ws = f.ws
    if ws.pending_f
        ws.pending_f = false
        if ws.pending_at == (objectid(u), Float64(t))
            scatter!(du, ws.du, ws.swapped)
            return nothing
        end
    end
    ws.pending_p = false
    gather!(ws.u, u, ws.swapped)
    call(ws, Val(:rhs), t)
    scatter!(du, ws.du, ws.swapped)
    ws.nf += 1
    return nothing
end

"`vjp(Jv, v, u, p, t)`: Jv = (df/du)' v."
struct HostVJP{W <: Workspace}
    ws::W
end

function (f::HostVJP)(Jv, v, u, p, t)
    ws = f.ws
    gather!(ws.u, u, ws.swapped)
    gather!(ws.lam, v, ws.swapped)
    ws.fused ? call(ws, Val(:vjp), t) : call(ws, Val(:vjp_u), t)
    scatter!(Jv, ws.gu, ws.swapped)
    ws.nvjp += 1
    if ws.fused
        ws.pending_p = ws.pending_f = true
        ws.pending_at = (objectid(u), Float64(t))
    end
    return nothing
end

"`vjp_p(Jv, v, u, p, t)`: Jv = (df/dp)' v."
struct HostVJPp{W <: Workspace}
    ws::W
end

function (f::HostVJPp)(Jv, v, u, p, t)
    ws = f.ws
    if ws.nparams == 0
        fill!(Jv, zero(eltype(Jv)))
        return nothing
    end
    if ws.pending_p && ws.pending_at == (objectid(u), Float64(t))
        ws.pending_p = false
        copyto!(Jv, ws.gp)
        return nothing
    end
    gather!(ws.u, u, ws.swapped)
    gather!(ws.lam, v, ws.swapped)
    call(ws, Val(:vjp_p), t)
    copyto!(Jv, ws.gp)
    ws.nvjp_p += 1
    return nothing
end

"`jac(J, u, p, t)`: J = df/du."
struct HostJac{W <: Workspace}
    ws::W
end

function (f::HostJac)(J, u, p, t)
    ws = f.ws
    gather!(ws.u, u, ws.swapped)
    call(ws, Val(:jac), t)
    copyto!(J, ws.jac)
    ws.njac += 1
    return nothing
end
