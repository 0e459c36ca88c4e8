# Forward solves.

"""
    solve!(id, method, y0, times, ntimes, out, report; options...) -> retcode

Solve from `times[1]` and write the states at all times that are reached into `out` (N x ntimes).

`y0`, `times`, `out`, `report` are addresses of the host: N numbers, `ntimes` Float64 in ascending
order, N * ntimes numbers, 8 Float64. The report receives: rows written, time reached, evaluations,
accepted and rejected steps, Jacobians, the number of the solution that is kept (0: none), its steps.

Options, all numbers, strings or addresses:
- `keep`: "" (nothing), "dense" (all steps with their interpolant), "steps" (all steps), "checkpoints"
  (the times, and `ncheckpoints` others evenly spaced)
- `abstol`, `reltol` (numbers), or `abstol_at`, `reltol_at` (addresses of N numbers)
- `dt`, `dtmin`, `dtmax` (0: the solver's own), `adaptive`, `maxiters`
- `tstops`, `ntstops`: times on which a step has to end; `jumps`, `njumps`: discontinuities
- `jacobian`: whether the host gives Jacobians; `mass_at`: address of the diagonal of a mass matrix;
  `second_order`: (h, v) with h' = v; `initialization`: "check" or "brown", for a mass matrix
"""
function solve!(
        id::Int, method::String, y0::Integer, times::Integer, ntimes::Int, out::Integer,
        report::Integer; kwargs...
    )
    ws = WORKSPACES[id]
    slots = at_address(Float64[], report, 8)
    alg = algorithm(method)
    return on_device(ws.u) do
        invokelatest(run_solve, ws, alg, method, y0, times, ntimes, out, slots; kwargs...)
    end
end

function run_solve(
        ws::Workspace, alg, method::String, y0::Integer, times::Integer, ntimes::Int, out::Integer,
        report::Vector{Float64};
        keep::String = "", ncheckpoints::Int = 0, abstol::Float64 = 1.0e-6,
        reltol::Float64 = 1.0e-6, abstol_at::Integer = 0, reltol_at::Integer = 0,
        dt::Float64 = 0.0, dtmin::Float64 = 0.0, dtmax::Float64 = 0.0, adaptive::Bool = true,
        maxiters::Int = 10_000, tstops::Integer = 0, ntstops::Int = 0, jumps::Integer = 0,
        njumps::Int = 0, jacobian::Bool = false, mass_at::Integer = 0, second_order::Bool = false,
        initialization::String = "check", nevents::Int = 0
    )
    T, n = eltype(ws), length(ws)
    fill!(report, 0)
    reset!(ws)
    ts = convert(Vector{T}, float64s(times, ntimes))
    issorted(ts) && allunique(ts) ||
        throw(ArgumentError("times must ascend strictly in $T, got $ts"))
    start = copy(at_address(ws.u, y0, n))
    rows = at_address(ws.u, out, n * ntimes)
    mass = mass_at == 0 ? nothing : copy(at_address(ws.u, mass_at, n))
    jacobian = jacobian && is_implicit(method)
    stepping = (; adaptive, maxiters)
    dt > 0 && (stepping = (; stepping..., dt = T(dt)))
    dtmin > 0 && (stepping = (; stepping..., dtmin = T(dtmin)))
    dtmax > 0 && (stepping = (; stepping..., dtmax = T(dtmax)))
    watch = Watch()
    inside = keep == "checkpoints" ? (; stepping..., callback = spy(watch)) : stepping
    problem, twin = problems(
        ws, start, (ts[1], ts[end]); second_order, jacobian, mass, inside...
    )
    tolerances = (;
        abstol = abstol_at == 0 ? T(abstol) : copy(at_address(ws.u, abstol_at, n)),
        reltol = reltol_at == 0 ? T(reltol) : copy(at_address(ws.u, reltol_at, n)),
    )
    options = (; tolerances..., verbose = SciMLLogging.None())
    ntstops > 0 && (options = (; options..., tstops = T.(float64s(tstops, ntstops))))
    njumps > 0 && (options = (; options..., d_discontinuities = T.(float64s(jumps, njumps))))
    if mass !== nothing
        options = (; options..., initializealg = initialization_of(initialization))
    end
    event = nothing
    if nevents > 0
        event = Event(ws, nevents)
        options = (; options..., callback = watch_events(event))
    end
    saving = saving_of(keep, ts, ncheckpoints)
    sol = SciMLBase.solve(problem, alg; options..., saving...)
    second_order && (sol = setproperties(sol, (; prob = twin)))
    stats = sol.stats
    report[2] = last(sol.t)
    report[3] = ws.nf
    report[4], report[5], report[6] = stats.naccept, stats.nreject, max(stats.njacs, ws.njac)
    report[1] = write_rows!(rows, n, sol, ts, !sol.dense)
    if !isempty(keep) || nevents > 0
        report[7] = keep!(Handle(sol, ws, second_order, jacobian, watch))
        report[8] = length(sol.t)
    end
    return String(Symbol(sol.retcode))
end

function saving_of(keep, ts, ncheckpoints)
    keep == "dense" && return (; dense = true)
    keep == "steps" && return (; dense = false, save_everystep = true)
    at = ts
    if keep == "checkpoints" && ncheckpoints > 0
        at = sort!(unique!(vcat(ts, collect(range(ts[1], ts[end]; length = ncheckpoints + 2)))))
    end
    return (; saveat = at, save_start = true, save_end = true, dense = false)
end

"Write the states at the times that were reached; return how many."
function write_rows!(out, n, sol, ts, saved::Bool)
    reached = last(sol.t)
    j = 1
    for (i, t) in enumerate(ts)
        row = view(out, ((i - 1) * n + 1):(i * n))
        if saved || t == reached || t == first(sol.t)
            while j <= length(sol.t) && sol.t[j] < t
                j += 1
            end
            if t == reached
                gather!(row, last(sol.u), false)
            elseif j <= length(sol.t) && sol.t[j] == t
                gather!(row, sol.u[j], false)
            else
                return i - 1
            end
        elseif t < reached
            gather!(row, sol(t), false)
        else
            return i - 1
        end
    end
    return length(ts)
end
