module PyJuliaODESciMLSensitivityExt

using PyJuliaODE: PyJuliaODE, Cotangent, Handle, Watch, at_address, failure, float64s, gather!,
    initialization_of, reset!, spy
using PrecompileTools: @compile_workload, @setup_workload
using SciMLBase: CallbackSet
using SciMLLogging: SciMLLogging
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

function PyJuliaODE.run_adjoint(
        handle::Handle, sol, alg, kind::String, times::Integer, ntimes::Int, cotangents::Integer,
        du0_at::Integer, dp_at::Integer, report::Vector{Float64};
        abstol::Float64 = 1.0e-6, reltol::Float64 = 1.0e-6, maxiters::Int = 100_000,
        dt::Float64 = 0.0, adaptive::Bool = true, checkpointing::Bool = false
    )
    ws = handle.workspace
    T, n = eltype(ws), length(ws)
    fill!(report, 0)
    ts = convert(Vector{T}, float64s(times, ntimes))
    # unsorted times give wrong gradients, repeated ones count as events
    issorted(ts) && allunique(ts) || throw(ArgumentError("times must ascend strictly, got $ts"))
    rows = at_address(ws.u, cotangents, n * ntimes)
    dense = sol.dense
    if kind == "quadrature" && !dense  # it would interpolate linearly, in silence
        throw(ArgumentError("the quadrature adjoint needs a dense solution"))
    end
    reset!(ws; fused = kind in ("interpolating", "backsolve"))
    ws.swapped = handle.swapped
    empty!(handle.watch.integrators)
    watch = Watch()
    options = (; abstol = T(abstol), reltol = T(reltol), maxiters, adaptive)
    dt > 0 && (options = (; options..., dt = T(dt)))
    if kind != "quadrature"
        options = (; options..., checkpoints = sol.t)
    end
    mass = sol.prob.f.mass_matrix
    if mass isa AbstractMatrix
        options = (; options..., initializealg = initialization_of("brown"))
    end
    local du0, dp
    try
        du0, dp = adjoint_sensitivities(
            sol, alg; t = ts, dgdu_discrete = Cotangent(rows, n, handle.swapped),
            sensealg = sensealg(kind, checkpointing || !dense, T(abstol), T(reltol)),
            callback = CallbackSet(spy(watch)), verbose = SciMLLogging.None(), options...
        )
    finally
        ws.swapped = false
        report_work!(report, ws, watch)
        ws.fused = ws.pending_f = ws.pending_p = false
    end
    for watched in (watch, handle.watch)
        failed = failure(watched)
        if failed !== nothing
            report[8] = failed[2]
            return failed[1]
        end
    end
    isempty(watch.integrators) && error("the adjoint solve was not watched: SciMLSensitivity changed")
    mass isa AbstractMatrix && (du0 = mass' * du0)
    gather!(at_address(ws.u, du0_at, n), du0, handle.swapped)
    ws.nparams > 0 && copyto!(at_address(ws.u, dp_at, ws.nparams), vec(dp))
    empty!(handle.watch.integrators)
    return "Success"
end

function report_work!(report, ws, watch)
    report[1] = ws.fused ? 0 : ws.nvjp
    report[2] = ws.nvjp_p
    report[3] = ws.fused ? ws.nvjp : 0
    report[4] = ws.nf
    report[7] = ws.njac
    if !isempty(watch.integrators)
        integrator = last(watch.integrators)
        report[5], report[6] = integrator.stats.naccept, integrator.stats.nreject
        report[8] = integrator.t
    end
    return report
end

include("workload.jl")

end
