# Compile the entry points once, for hosts that are not here: callbacks of C stand in for them.

const STUB = Ref{Any}(nothing)

stub_ok(ws) = unsafe_store!(ws.status, Int32(1), 1)
stub_rhs(t::Cdouble)::Cvoid = (ws = STUB[]; ws.du .= .-ws.u; stub_ok(ws); nothing)
stub_vjp_u(t::Cdouble)::Cvoid = (ws = STUB[]; ws.gu .= .-ws.lam; stub_ok(ws); nothing)
stub_vjp_p(t::Cdouble)::Cvoid = (ws = STUB[]; fill!(ws.gp, 0); stub_ok(ws); nothing)

function stub_vjp(t::Cdouble)::Cvoid
    ws = STUB[]
    ws.du .= .-ws.u
    ws.gu .= .-ws.lam
    fill!(ws.gp, 0)
    stub_ok(ws)
    return nothing
end

function stub_jac(t::Cdouble)::Cvoid
    ws = STUB[]
    fill!(ws.jac, 0)
    n = length(ws.u)
    for i in 1:n
        ws.jac[(i - 1) * n + i] = -1
    end
    stub_ok(ws)
    return nothing
end

stub_poll(t::Cdouble)::Cvoid = (stub_ok(STUB[]); nothing)

"The tape of u' = tanh(u), on as many samples as the workspace has numbers, and what it must outlive."
function stub_tape(::Type{T}, n::Int) where {T}
    header = [0, 0, 1, 1, 0, 0, 1, 1, 2, 1, n, 1, 0, 1]
    ops, table, triples, floats = [1, 1, 1, 0, 0, 0, 0, 0, 1, 0, -1], Int32[0], [0], [0.0, 0.0]
    return GC.@preserve header ops table triples floats tape!(
        (UInt(pointer(x)) for x in (header, ops, table, triples, floats))..., sizeof(T)
    )
end

function stub_replay(::Type{T}, id, kept) where {T}
    n = length(WORKSPACES[id])
    # Euler's tableau, whatever the method was
    numbers, times, rows = [0.0, 1.0, 0.0, 1.0], [0.0, 0.5, 1.0], ones(T, 3n)
    du0, dp = zeros(T, n), zeros(T, 1)
    GC.@preserve numbers times rows du0 dp replay!(
        kept, 1, 1, (UInt(pointer(x)) for x in (numbers, times))..., 3,
        (UInt(pointer(x)) for x in (rows, du0, dp))...
    )
    return nothing
end

"A workspace for u' = -u with one parameter that does nothing, its id, and what must outlive it."
function stub_workspace(::Type{T}; n::Int = 2) where {T}
    status = zeros(Int32, 2)
    pointers = (
        @cfunction(stub_rhs, Cvoid, (Cdouble,)), @cfunction(stub_vjp_u, Cvoid, (Cdouble,)),
        @cfunction(stub_vjp_p, Cvoid, (Cdouble,)), @cfunction(stub_vjp, Cvoid, (Cdouble,)),
        @cfunction(stub_jac, Cvoid, (Cdouble,)), C_NULL, @cfunction(stub_poll, Cvoid, (Cdouble,)),
    )
    id = workspace!(
        string(T), "cpu", (zeros(T, n) for _ in 1:4)..., zeros(T, 1), zeros(T, n^2), 1,
        UInt(pointer(status)), (UInt(p) for p in pointers)...
    )
    STUB[] = WORKSPACES[id]
    return id, status
end

"One solve with the stubs, as a host would ask for it; returns the number of the kept solution."
function stub_solve(::Type{T}, id, method; keep = "dense", kwargs...) where {T}
    n = length(WORKSPACES[id])
    y0, times, out, report = ones(T, n), [0.0, 0.5, 1.0], zeros(T, 3n), zeros(10)
    GC.@preserve y0 times out report begin
        request = Ref(
            Request(;
                y0 = UInt(pointer(y0)), times = UInt(pointer(times)), ntimes = 3,
                out = UInt(pointer(out)), abstol = 1.0e-4, reltol = 1.0e-4, kwargs...
            )
        )
        GC.@preserve request solve!(
            id, method, keep, UInt(Base.unsafe_convert(Ptr{Request}, request)),
            UInt(pointer(report))
        )
    end
    return Int(report[7])
end

function stub_adjoint(::Type{T}, id, kept, method, kind; kwargs...) where {T}
    n = length(WORKSPACES[id])
    times, rows, du0, dp, report = [0.5, 1.0], ones(T, 2n), zeros(T, n), zeros(T, 1), zeros(8)
    GC.@preserve times rows du0 dp report begin
        request = Ref(
            AdjointRequest(;
                times = UInt(pointer(times)), ntimes = 2, cotangents = UInt(pointer(rows)),
                du0 = UInt(pointer(du0)), dp = UInt(pointer(dp)), abstol = 1.0e-4,
                reltol = 1.0e-4, kwargs...
            )
        )
        GC.@preserve request adjoint!(
            kept, method, kind, UInt(Base.unsafe_convert(Ptr{AdjointRequest}, request)),
            UInt(pointer(report))
        )
    end
    return nothing
end

@setup_workload begin
    @compile_workload begin
        for T in (Float64, Float32)
            id, status = stub_workspace(T)
            GC.@preserve status begin
                for method in ("Tsit5", "DP5"), keep in ("", "steps", "dense")
                    kept = stub_solve(T, id, method; keep)
                    if kept != 0
                        times, passed, rows = zeros(64), zeros(64), zeros(T, 2 * 64)
                        GC.@preserve times passed rows steps!(
                            kept, (UInt(pointer(x)) for x in (times, passed, rows))...
                        )
                        keep == "dense" && GC.@preserve times rows interpolate!(
                            kept, UInt(pointer(times)), 1, UInt(pointer(rows))
                        )
                        release!(kept)
                    end
                end
                tape, none = stub_tape(T, 2), UInt[0]
                GC.@preserve none for keep in ("", "steps")
                    kept = stub_solve(T, id, "DP5"; keep, tape, tensors = UInt(pointer(none)))
                    probe!(id, 0.0)
                    kept == 0 && continue
                    stub_replay(T, id, kept)
                    release!(kept)
                end
                forget_tape!(tape)
                discard!(id)
            end
        end
        foreach(tableau, ("Tsit5", "DP5"))
        versions()
    end
    STUB[] = nothing
    empty!(ALGORITHMS)
    COUNTER[] = 0
end
