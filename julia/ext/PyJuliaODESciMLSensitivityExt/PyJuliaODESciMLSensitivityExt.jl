module PyJuliaODESciMLSensitivityExt

using LinearAlgebra: Diagonal
using PyJuliaODE: PyJuliaODE, AdjointRequest, Cotangent, Handle, QUIET, Watch, ascending,
    at_address, failure, float64s, gather!, initialization_of, met, ode_function, reset!, setproperties,
    since, spy, time_at
using PrecompileTools: @compile_workload, @setup_workload
using SciMLBase: CallbackSet
using SciMLSensitivity: BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint, QuadratureAdjoint,
    ZygoteVJP, adjoint_sensitivities

# The host's products come first wherever they exist; the choice named here is never called. It must
# still be this one: `nothing` probes the right-hand side with dual numbers and swallows exceptions,
# `true` allocates dense Jacobians, others trace the right-hand side.
const INERT = ZygoteVJP()

function sensealg(kind, checkpointing, abstol, reltol)
    kind == "gauss" && return GaussAdjoint(; autojacvec = INERT, checkpointing)
    kind == "interpolating" && return InterpolatingAdjoint(; autojacvec = INERT, checkpointing)
    kind == "backsolve" && return BacksolveAdjoint(; autojacvec = INERT, checkpointing = true)
    # its quadrature takes tolerances from here only
    kind == "quadrature" && return QuadratureAdjoint(; autojacvec = INERT, abstol, reltol)
    throw(ArgumentError("no continuous adjoint $kind"))
end

# The adjoint of these holds the parameters too, and SciMLSensitivity makes the pattern of its Jacobian of
# the forward one's with nothing where the parameters meet the state: Newton's matrix is then wrong, and
# what comes of it (counts of evaluations, at times no result) changes from run to run.
function without_jacobian(handle, sol, kind)
    handle.jacobian && kind in ("interpolating", "backsolve") || return sol
    mass = sol.prob.f.mass_matrix
    f = ode_function(handle.workspace; mass = mass isa Diagonal ? mass.diag : nothing)
    return setproperties(sol, (; prob = setproperties(sol.prob, (; f))))
end

function PyJuliaODE.run_adjoint(
        handle::Handle, sol, alg, kind::String, asked::AdjointRequest, report::Vector{Float64}
    )
    ws = handle.workspace
    T, n = eltype(ws), length(ws)
    fill!(report, 0)
    clock = ws.clock
    ts = since.(Ref(clock), float64s(asked.times, asked.ntimes))
    # unsorted times give wrong gradients, repeated ones count as events
    ascending(ts) || throw(ArgumentError("times must ascend strictly, got $ts"))
    rows = at_address(ws.u, asked.cotangents, n * asked.ntimes)
    dense = sol.dense
    if kind == "quadrature" && !dense  # it would interpolate linearly, in silence
        throw(ArgumentError("the quadrature adjoint needs a dense solution"))
    end
    row = collect(1:length(ts))
    if kind == "quadrature" && handle.jacobian
        # its quadrature would step over the layers of a stiff system: break it at the solver's steps
        all_times = sort!(unique!(vcat(ts, sol.t[2:end])))
        row = [(i = searchsortedfirst(ts, t); i <= length(ts) && ts[i] == t ? i : 0) for t in all_times]
        ts = all_times
    end
    sol = without_jacobian(handle, sol, kind)
    reset!(ws; fused = kind in ("interpolating", "backsolve"))
    ws.swapped = handle.swapped
    watch, again = Watch(), handle.watch   # of the backward solve, of forward solves in between
    again.failed = nothing
    abstol, reltol = T(asked.abstol), T(asked.reltol)
    options = (; abstol, reltol, asked.maxiters, adaptive = asked.adaptive != 0)
    asked.dt > 0 && (options = (; options..., asked.dt))
    if kind != "quadrature"
        options = (; options..., checkpoints = sol.t)
    end
    jumps = met(clock, float64s(asked.jumps, asked.njumps))
    isempty(jumps) || (options = (; options..., d_discontinuities = jumps))
    mass = sol.prob.f.mass_matrix
    if mass isa AbstractMatrix
        options = (; options..., initializealg = initialization_of("brown"))
    end
    local du0, dp
    clock.reverse = true
    try
        # by invokelatest, so that nothing is inferred of it here: see gradient_of
        du0, dp = invokelatest(
            gradient_of, sol, alg, sensealg(kind, asked.checkpointing != 0 || !dense, abstol, reltol),
            ts, Cotangent(rows, n, handle.swapped, row), CallbackSet(spy(watch)), options
        )
    finally
        clock.reverse = false
        ws.swapped = false
        watch.current === nothing || report_steps!(report, watch.current, clock)
        again.current = nothing
        report_work!(report, ws)
        ws.fused = ws.pending_f = ws.pending_p = false
    end
    seen = watch.current !== nothing
    for watched in (watch, again)
        failed = failure(watched)
        if failed !== nothing
            report[8] = time_at(clock, failed[2])
            return failed[1]
        end
    end
    seen || error("the adjoint solve was not watched: SciMLSensitivity changed")
    mass isa AbstractMatrix && (du0 = mass' * du0)
    gather!(at_address(ws.u, asked.du0, n), du0, handle.swapped)
    ws.nparams > 0 && copyto!(at_address(ws.u, asked.dp, ws.nparams), vec(dp))
    return "Success"
end

# Where inference does not know the type of `sensealg` it follows SciMLSensitivity's automatic choice of
# products as well, through Enzyme and ReverseDiff. That takes seconds, and `ReverseDiff.TrackedArray`
# has a supertype that contains it: a package image with such a type cannot be loaded (Julia segfaults
# in must_be_new_dt, JuliaLang/julia issue 62047).
function gradient_of(sol, alg, sensealg, ts, cotangent, callback, options)
    return adjoint_sensitivities(
        sol, alg; t = ts, dgdu_discrete = cotangent, sensealg, callback, verbose = QUIET, options...
    )
end

function report_work!(report, ws)
    report[1] = ws.fused ? 0 : ws.nvjp
    report[2] = ws.nvjp_p
    report[3] = ws.fused ? ws.nvjp : 0
    report[4] = ws.nf
    report[7] = ws.njac
    return report
end

function report_steps!(report, integrator, clock)
    report[5], report[6] = integrator.stats.naccept, integrator.stats.nreject
    report[8] = time_at(clock, integrator.t)
    return report
end

include("workload.jl")

end
