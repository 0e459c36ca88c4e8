# Solver callbacks: a watch on solves that would otherwise fail in silence, and events.

"The integrators of watched solves."
struct Watch
    integrators::Vector{Any}
end
Watch() = Watch(Any[])

never(u, t, integrator) = false
nothing_to_do(integrator) = nothing

struct Enrol
    watch::Watch
end

function (e::Enrol)(callback, u, t, integrator)
    push!(e.watch.integrators, integrator)
    SciMLBase.derivative_discontinuity!(integrator, false)
    return nothing
end

"""
    spy(watch)

A callback that changes nothing and enrols the integrator with `watch`. SciMLSensitivity returns
neither retcode nor statistics of the adjoint solve, nor of the forward solves that it repeats; a
failure would come back as a gradient.
"""
spy(watch::Watch) = DiscreteCallback(
    never, nothing_to_do; save_positions = (false, false), initialize = Enrol(watch)
)

"The first failure among watched solves, as (retcode, time), or nothing."
function failure(watch::Watch)
    for integrator in watch.integrators
        code = integrator.sol.retcode
        # a solve that was stopped by an exception keeps its default
        successful_retcode(code) || return String(Symbol(code)), Float64(integrator.t)
    end
    return nothing
end

"Event functions of the host, as the condition of a terminating callback."
struct Event{W <: Workspace}
    ws::W
    count::Int
end

function (e::Event)(out, u, t, integrator)
    ws = e.ws
    gather!(ws.u, u, false)
    call(ws, ws.callbacks.event, t)
    copyto!(out, 1, ws.gu, 1, e.count)
    return nothing
end

stop(integrator, index) = terminate!(integrator)

watch_events(e::Event) = VectorContinuousCallback(
    e, stop, e.count; save_positions = (false, false)
)
