# Forward solves.

"""
    Request(; fields...)

What a host asks of a solve, as a C structure of 8-byte fields that both halves declare alike.
Addresses are of the host's memory; 0 stands for "none".

- `y0` (N numbers), `times` (`ntimes` Float64, strictly ascending, also as differences from the first),
  `out` (N x ntimes numbers)
- `abstol`, `reltol`, or addresses of N numbers `abstol_at`, `reltol_at`
- `dt`, `dtmin`, `dtmax` (0: the solver's own), `adaptive`, `maxiters`; a step of `dtmin` is accepted
  whatever its error
- `tstops`, `ntstops`: times on which a step has to end; `jumps`, `njumps`: discontinuities
- `jacobian`: the host gives Jacobians; `mass_at`: diagonal of a mass matrix; `brown`: solve for
  consistent initial values of such a system rather than check them
- `second_order`: the state is (h, v) with h' = v
- `ncheckpoints`: states to keep beside those at the times; `nevents`: event functions to watch
- `tape`: computes the field instead of the host's callbacks, with parameters at the addresses listed
  at `tensors`; `backwards`: its time is minus the solver's ([`attach!`](@ref))
"""
Base.@kwdef struct Request
    y0::UInt = 0
    times::UInt = 0
    ntimes::Int = 0
    out::UInt = 0
    abstol::Float64 = 1.0e-6
    reltol::Float64 = 1.0e-6
    abstol_at::UInt = 0
    reltol_at::UInt = 0
    dt::Float64 = 0.0
    dtmin::Float64 = 0.0
    dtmax::Float64 = 0.0
    adaptive::Int = 1
    maxiters::Int = 10_000
    tstops::UInt = 0
    ntstops::Int = 0
    jumps::UInt = 0
    njumps::Int = 0
    jacobian::Int = 0
    mass_at::UInt = 0
    brown::Int = 0
    second_order::Int = 0
    ncheckpoints::Int = 0
    nevents::Int = 0
    tape::Int = 0
    tensors::UInt = 0
    backwards::Int = 0
end

# Made once: from a level of logging it takes a third of a millisecond.
const QUIET = DiffEqBase.DEVerbosity(SciMLLogging.None())

"""
    solve!(id, method, keep, request, report) -> retcode

Solve from the first of the times and write the states at all that are reached.

`keep` is "" (nothing), "dense" (all steps with their interpolant), "steps" (all steps) or
"checkpoints" (the times, and others evenly spaced). `request` is the address of a [`Request`](@ref),
`report` of 10 Float64, which receive: rows written, time reached, evaluations, accepted and rejected
steps, Jacobians, the number of the solution that is kept (0: none), its steps, and which element of
the event functions ended the solve (0: none) with a time just before it.
"""
function solve!(id::Int, method::String, keep::String, request::Integer, report::Integer)
    ws = WORKSPACES[id]
    asked = unsafe_load(Ptr{Request}(UInt(request)))
    attach!(id, asked.tape, asked.tensors, asked.backwards)
    alg = algorithm(method)
    jacobian = asked.jacobian != 0 && is_implicit(method)
    asked.mass_at == 0 || initialization_of("brown")   # loads its package, before the solve
    slots = at_address(Float64[], report, 10)
    return on_device(ws.u) do
        # the method's package may have been loaded a moment ago
        invokelatest(run_solve, ws, alg, keep, asked, jacobian, slots)
    end
end

"What a solver is told, all of it of known types: keywords of unknown ones cost more than a solve."
struct Stepping{A, R}
    abstol::A
    reltol::R
    dt::Float64
    dtmin::Float64
    dtmax::Float64
    adaptive::Bool
    maxiters::Int
    tstops::Vector{Float64}
    jumps::Vector{Float64}
    saveat::Vector{Float64}
    everystep::Bool
    dense::Bool
end

function run_solve(ws, alg, keep::String, asked::Request, jacobian::Bool, report::Vector{Float64})
    T, n = eltype(ws), length(ws)
    fill!(report, 0)
    reset!(ws)
    times, stops, jumps = float64s(asked.times, asked.ntimes), float64s(asked.tstops, asked.ntstops),
        float64s(asked.jumps, asked.njumps)
    ws.clock = Clock(times, stops, jumps, T)
    ts = since.(Ref(ws.clock), times)
    ascending(ts) || throw(ArgumentError("times must ascend strictly, got $times"))
    y0 = copy(at_address(ws.u, asked.y0, n))
    watch, event = Watch(), asked.nevents == 0 ? nothing : Event(ws, asked.nevents)
    abstol = asked.abstol_at == 0 ? T(asked.abstol) : copy(at_address(ws.u, asked.abstol_at, n))
    reltol = asked.reltol_at == 0 ? T(asked.reltol) : copy(at_address(ws.u, asked.reltol_at, n))
    stepping = Stepping(
        abstol, reltol, asked.dt, asked.dtmin, asked.dtmax > 0 ? asked.dtmax : ts[end],
        asked.adaptive != 0, asked.maxiters, since.(Ref(ws.clock), stops), met(ws.clock, jumps),
        saved_times(keep, ts, asked.ncheckpoints), keep in ("dense", "steps"), keep == "dense"
    )
    common = !jacobian && asked.mass_at == 0 && asked.second_order == 0 && event === nothing &&
        keep != "checkpoints"
    sol = if common
        solve_with(plain_problem(ws, y0, (0.0, ts[end])), alg, stepping)
    else
        solve_unusual(ws, alg, keep, asked, jacobian, y0, (0.0, ts[end]), stepping, watch, event)
    end
    report[2] = time_at(ws.clock, last(sol.t))
    report[3] = ws.nf
    report[4], report[5] = sol.stats.naccept, sol.stats.nreject
    report[6] = max(sol.stats.njacs, ws.njac)
    report[1] = write_rows!(at_address(ws.u, asked.out, n * length(ts)), n, sol, ts)
    if event !== nothing
        report[9], report[10] = event.element, time_at(ws.clock, event.before)
    end
    if !isempty(keep) || event !== nothing
        report[7] = keep!(Handle(sol, ws, asked.second_order != 0, jacobian, watch))
        report[8] = length(sol.t)
    end
    return String(Symbol(sol.retcode))
end

ascending(ts) = all(i -> ts[i] < ts[i + 1], 1:(length(ts) - 1))

"Times between the first and the last at which a state is saved; those two always are."
function saved_times(keep, ts, ncheckpoints)
    keep in ("dense", "steps") && return Float64[]
    between = ts[2:(end - 1)]
    if keep == "checkpoints" && ncheckpoints > 0
        others = range(ts[1], ts[end]; length = ncheckpoints + 2)[2:(end - 1)]
        between = sort!(unique!(vcat(between, collect(others))))
    end
    return between
end

function solve_with(problem, alg, s::Stepping; kwargs...)
    if s.dt > 0
        return SciMLBase.solve(
            problem, alg; s.abstol, s.reltol, s.dt, s.dtmin, s.dtmax, s.adaptive, s.maxiters,
            s.tstops, d_discontinuities = s.jumps, s.saveat, save_everystep = s.everystep,
            save_start = true, save_end = true, s.dense, force_dtmin = s.dtmin > 0, verbose = QUIET,
            kwargs...
        )
    end
    return SciMLBase.solve(
        problem, alg; s.abstol, s.reltol, s.dtmin, s.dtmax, s.adaptive, s.maxiters, s.tstops,
        d_discontinuities = s.jumps, s.saveat, save_everystep = s.everystep, save_start = true,
        save_end = true, s.dense, force_dtmin = s.dtmin > 0, verbose = QUIET, kwargs...
    )
end

"Everything but the plain case: mass matrices, Jacobians, second-order systems, events, checkpoints."
function solve_unusual(ws, alg, keep, asked, jacobian, y0, tspan, stepping, watch, event)
    # an adjoint solves from checkpoint to checkpoint with the problem's own keywords, and with the
    # numbers of states that were interpolated at Float64 times
    again = (;)
    if keep == "checkpoints"
        y0 = Float64.(y0)
        again = (; callback = spy(watch), stepping.adaptive, stepping.maxiters)
        stepping.dt > 0 && (again = (; again..., stepping.dt))
    end
    mass = asked.mass_at == 0 ? nothing : eltype(y0).(at_address(ws.u, asked.mass_at, length(ws)))
    problem, twin = problems(
        ws, y0, tspan; second_order = asked.second_order != 0, jacobian, mass, again...
    )
    extra = (;)
    if mass !== nothing
        extra = (; initializealg = initialization_of(asked.brown != 0 ? "brown" : "check"))
    end
    event === nothing || (extra = (; extra..., callback = watch_events(event)))
    sol = solve_with(problem, alg, stepping; extra...)
    return asked.second_order != 0 ? setproperties(sol, (; prob = twin)) : sol
end

"Write the states at the times that were reached; return how many."
function write_rows!(out, n, sol, ts)
    reached = last(sol.t)
    j = 1
    for (i, t) in enumerate(ts)
        row = view(out, ((i - 1) * n + 1):(i * n))
        while j < length(sol.t) && sol.t[j] < t
            j += 1
        end
        if t == reached
            gather!(row, last(sol.u), false)
        elseif t < reached && sol.t[j] == t
            gather!(row, sol.u[j], false)
        elseif t < reached && sol.dense
            gather!(row, sol(t), false)
        else
            return i - 1
        end
    end
    return length(ts)
end
