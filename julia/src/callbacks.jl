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

"""
Event functions of the host, looked at where a step ends and at times within it. Every element is on
the side of its sign, and the first that leaves its side ends the solve. One that is zero at the
start, or within rounding of it, as in the state at an event that was found before, is on no side
until it has a sign; one that is NaN stays where it was. Zero is no side of a positive or negative
number: a function may be flat beyond its event.
"""
mutable struct Event{W <: Workspace, T}
    const ws::W
    const values::Vector{T}
    const start::Vector{T}      # the values there
    const side::Vector{T}       # signs; 0: on none
    settled::Bool
    element::Int                # which left its side; 0: none
    before::Float64             # the solver's time just before it did
end

Event(ws::Workspace, count::Int) =
    Event(ws, (zeros(eltype(ws), count) for _ in 1:3)..., false, 0, 0.0)

const EVENT_POINTS = 10

side_of(value) = isnan(value) ? zero(value) : sign(value)
has_left(side, value) = side != 0 && !isnan(value) && sign(value) != side

function values!(e::Event, u, s)
    ws = e.ws
    gather!(ws.u, u, false)
    call(ws, Val(:event), s)
    return copyto!(e.values, 1, ws.gu, 1, length(e.values))
end

state_at(integrator, s) = s == integrator.t ? integrator.u : integrator(s)

function begin_watch(callback, u, t, integrator)
    e = callback.condition
    copyto!(e.start, values!(e, u, t))
    e.side .= side_of.(e.start)
    SciMLBase.derivative_discontinuity!(integrator, false)
    return nothing
end

"Elements that were zero at the start, but for rounding: the side that comes next."
function settle!(e::Event, integrator)
    from, span = integrator.tprev, integrator.t - integrator.tprev
    early = from + 1.0e-4 * span
    values = values!(e, state_at(integrator, early), early)
    rounding = 100 * eps(eltype(values)) * (abs(e.ws.clock(from)) + span)
    for (i, value) in enumerate(values)
        slope = abs(value - e.start[i]) / (early - from)
        abs(e.start[i]) <= slope * rounding && (e.side[i] = side_of(value))
    end
    e.settled = true
    return nothing
end

"After a step: whether there was an event in it; if so the integrator is moved there."
function (e::Event)(u, t, integrator)
    e.settled || settle!(e, integrator)
    low, span = integrator.tprev, integrator.t - integrator.tprev
    for k in 1:EVENT_POINTS
        s = k == EVENT_POINTS ? integrator.t : integrator.tprev + span * k / EVENT_POINTS
        values = values!(e, state_at(integrator, s), s)
        if any(has_left.(e.side, values))
            SciMLBase.change_t_via_interpolation!(
                integrator, bisect!(e, integrator, low, s), Val{false}, SciMLBase.NoInit()
            )
            return true
        end
        e.side .= ifelse.(e.side .== 0, side_of.(values), e.side)
        low = s
    end
    return false
end

"The event between two times of a step, to the last digits."
function bisect!(e::Event, integrator, low, high)
    e.element = findfirst(has_left.(e.side, e.values))
    while high - low > 4 * eps(high)
        mid = 0.5 * (low + high)
        found = findfirst(has_left.(e.side, values!(e, state_at(integrator, mid), mid)))
        if found === nothing
            low = mid
        else
            high, e.element = mid, found
        end
    end
    e.before = low
    return high
end

function stop(integrator)
    # no new start from the state there, whose algebraic part is as good as the interpolant
    SciMLBase.derivative_discontinuity!(integrator, false)
    return terminate!(integrator)
end

watch_events(e::Event) =
    DiscreteCallback(e, stop; save_positions = (false, false), initialize = begin_watch)
