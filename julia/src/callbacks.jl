# Solver callbacks: a watch on solves that would otherwise fail in silence, and events.

"The integrator that was last seen at its start, and the first failure of those before it."
mutable struct Watch
    current::Any
    failed::Union{Nothing, Tuple{String, Float64}}
end
Watch() = Watch(nothing, nothing)

"Look at how the current integrator ended, and let go of it: it holds a solution."
function settle!(watch::Watch)
    integrator = watch.current
    if integrator !== nothing && watch.failed === nothing
        code = integrator.sol.retcode
        # a solve that was stopped by an exception keeps its default
        successful_retcode(code) ||
            (watch.failed = (String(Symbol(code)), Float64(integrator.t)))
    end
    watch.current = nothing
    return watch
end

never(u, t, integrator) = false
nothing_to_do(integrator) = nothing

struct Enrol
    watch::Watch
end

function (e::Enrol)(callback, u, t, integrator)
    settle!(e.watch).current = integrator
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
failure(watch::Watch) = settle!(watch).failed

"Event functions of the host, as the condition of a terminating callback."
struct Event{W <: Workspace}
    ws::W
    count::Int
end

function (e::Event)(out, u, t, integrator)
    ws = e.ws
    gather!(ws.u, u, false)
    call(ws, Val(:event), t)
    copyto!(out, 1, ws.gu, 1, e.count)
    return nothing
end

function stop(integrator, index)
    # no new start from the state there, whose algebraic part is as good as the interpolant
    SciMLBase.derivative_discontinuity!(integrator, false)
    return terminate!(integrator)
end

watch_events(e::Event) = VectorContinuousCallback(
    e, stop, e.count; save_positions = (false, false)
)
