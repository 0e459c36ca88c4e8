# A host in Julia: u' = tanh(W u + b cos t) - c u on n numbers, with analytic products, its callbacks
# given as C functions on one workspace, and the same right-hand side for ForwardDiff.

using LinearAlgebra
using PyJuliaODE
using PyJuliaODE: AdjointRequest, Request, HANDLES, WORKSPACES, adjoint!, discard!, interpolate!, release!, solve!, steps!,
    tableau, workspace!

const N = 3
const P = N * N + N + 1

unpacked(p) = (reshape(p[1:(N * N)], N, N), p[(N * N + 1):(N * N + N)], p[end])

function field(u, p, t)
    W, b, c = unpacked(p)
    return tanh.(W * u .+ b .* cos(t)) .- c .* u
end

mutable struct Host
    p::Vector{Float64}
    id::Int
    status::Vector{Int32}
    calls::Dict{Symbol, Int}
    fail_at::Tuple{Symbol, Int}
end

const HOST = Ref{Host}()

function called(name)
    host = HOST[]
    host.calls[name] = get(host.calls, name, 0) + 1
    return host.fail_at != (name, host.calls[name])
end

function on_workspace(body, name)
    ws = WORKSPACES[HOST[].id]
    if called(name)
        body(ws)
        unsafe_store!(ws.status, Int32(1), 1)
    end
    return nothing
end

rhs_of(ws, t) = field(ws.u, HOST[].p, t)

function products(ws, t)
    W, b, c = unpacked(HOST[].p)
    z = 1 .- tanh.(W * ws.u .+ b .* cos(t)) .^ 2
    λ = ws.lam
    gu = W' * (z .* λ) .- c .* λ
    gp = vcat(vec((z .* λ) * ws.u'), z .* λ .* cos(t), -dot(λ, ws.u))
    return gu, gp
end

host_rhs(t::Cdouble)::Cvoid = on_workspace(ws -> (ws.du .= rhs_of(ws, t)), :rhs)
host_vjp_u(t::Cdouble)::Cvoid = on_workspace(ws -> (ws.gu .= products(ws, t)[1]), :vjp_u)
host_vjp_p(t::Cdouble)::Cvoid = on_workspace(ws -> (ws.gp .= products(ws, t)[2]), :vjp_p)
host_vjp(t::Cdouble)::Cvoid = on_workspace(:vjp) do ws
    ws.du .= rhs_of(ws, t)
    gu, gp = products(ws, t)
    ws.gu .= gu
    length(ws.gp) == P && (ws.gp .= gp)
end
host_jac(t::Cdouble)::Cvoid = on_workspace(:jac) do ws
    W, b, c = unpacked(HOST[].p)
    z = 1 .- tanh.(W * ws.u .+ b .* cos(t)) .^ 2
    ws.jac .= vec(z .* W - c * I)
end
host_event(t::Cdouble)::Cvoid = on_workspace(ws -> (ws.gu[1] = ws.u[1] - EVENT_LEVEL[]), :event)

host_poll(t::Cdouble)::Cvoid = on_workspace(identity, :poll)

const PARAMETERS = [sin(1.3 * i) for i in 1:P]
const EVENT_LEVEL = Ref(0.0)
const START = [1.0, -0.5, 0.3]

"Run `body(host)` with a fresh workspace."
function with_host(body; T = Float64, nparams = P, fail_at = (:none, 0))
    status = zeros(Int32, 2)
    pointers = (
        @cfunction(host_rhs, Cvoid, (Cdouble,)), @cfunction(host_vjp_u, Cvoid, (Cdouble,)),
        @cfunction(host_vjp_p, Cvoid, (Cdouble,)), @cfunction(host_vjp, Cvoid, (Cdouble,)),
        @cfunction(host_jac, Cvoid, (Cdouble,)), @cfunction(host_event, Cvoid, (Cdouble,)),
        @cfunction(host_poll, Cvoid, (Cdouble,)),
    )
    id = workspace!(
        string(T), "cpu", (zeros(T, N) for _ in 1:4)..., zeros(T, max(nparams, 1)), zeros(T, N * N),
        nparams, UInt(pointer(status)), (UInt(p) for p in pointers)...
    )
    HOST[] = Host(copy(PARAMETERS), id, status, Dict{Symbol, Int}(), fail_at)
    try
        return GC.@preserve status body(HOST[])
    finally
        discard!(id)
    end
end

address(x) = UInt(pointer(x))

"Solve as a host does: (retcode, rows N x T, report)."
function solved(host, method, times; T = Float64, u0 = START, keep = "", kwargs...)
    y0, ts = convert(Vector{T}, u0), collect(Float64, times)
    out, report = fill(T(NaN), N * length(ts)), zeros(10)
    request = Ref(
        Request(;
            y0 = address(y0), times = address(ts), ntimes = length(ts), out = address(out),
            abstol = 1.0e-10, reltol = 1.0e-10, kwargs...
        )
    )
    code = GC.@preserve y0 ts out report request solve!(
        host.id, method, keep, UInt(Base.unsafe_convert(Ptr{Request}, request)), address(report)
    )
    return code, reshape(out, N, :), report
end

"Gradient as a host gets it: (retcode, du0, dp, report)."
function differentiated(kept, method, kind, times, cotangents; T = Float64, nparams = P, kwargs...)
    ts, rows = collect(Float64, times), convert(Vector{T}, vec(cotangents))
    du0, dp, report = zeros(T, N), zeros(T, max(nparams, 1)), zeros(8)
    request = Ref(
        AdjointRequest(;
            times = address(ts), ntimes = length(ts), cotangents = address(rows),
            du0 = address(du0), dp = address(dp), abstol = 1.0e-10, reltol = 1.0e-10, kwargs...
        )
    )
    code = GC.@preserve ts rows du0 dp report request adjoint!(
        kept, method, kind, UInt(Base.unsafe_convert(Ptr{AdjointRequest}, request)), address(report)
    )
    return code, du0, dp, report
end
