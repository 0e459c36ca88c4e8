# Continuous adjoints; the methods come with SciMLSensitivity.

const SENSITIVITY = Base.PkgId(
    Base.UUID("1ed8b502-d754-442c-8d5d-10ac956f44a1"), "SciMLSensitivity"
)

"""
    load_adjoints()

Load SciMLSensitivity, and with it the methods of [`adjoint!`](@ref).
"""
function load_adjoints()
    haskey(Base.loaded_modules, SENSITIVITY) || Base.require(SENSITIVITY)
    return nothing
end

"""
    AdjointRequest(; fields...)

What a host asks of an adjoint, as [`Request`](@ref): `cotangents` is dL/du at the `ntimes` ascending
times (N x ntimes), `du0` (N) and `dp` (P) receive dL/du0 and dL/dp; `jumps` (`njumps` Float64) are
the discontinuities.
"""
Base.@kwdef struct AdjointRequest
    times::UInt = 0
    ntimes::Int = 0
    cotangents::UInt = 0
    du0::UInt = 0
    dp::UInt = 0
    abstol::Float64 = 1.0e-6
    reltol::Float64 = 1.0e-6
    dt::Float64 = 0.0
    adaptive::Int = 1
    maxiters::Int = 100_000
    checkpointing::Int = 0
    jumps::UInt = 0
    njumps::Int = 0
end

"""
    adjoint!(handle, method, kind, request, report) -> retcode

Gradient of a kept solution by a continuous adjoint: `kind` is "gauss", "interpolating",
"quadrature" or "backsolve", `method` the algorithm of the backward solve.

`request` is the address of an [`AdjointRequest`](@ref). The report (8 Float64) receives: vjp_u,
vjp_p and joint products, evaluations, accepted and rejected steps of the backward solve, Jacobians, time reached. A retcode other than
"Success" means that no gradient was written. For a singular mass matrix dL/du0 is M' times the
adjoint state: entries of algebraic variables are zero.
"""
function adjoint!(id::Int, method::String, kind::String, request::Integer, report::Integer)
    handle = HANDLES[id]
    asked = unsafe_load(Ptr{AdjointRequest}(UInt(request)))
    alg = algorithm(method)
    handle.solution.prob.f.mass_matrix isa AbstractMatrix && initialization_of("brown")
    slots = at_address(Float64[], report, 8)
    return on_device(handle.workspace.u) do
        invokelatest(run_adjoint, handle, handle.solution, alg, kind, asked, slots)
    end
end

"Defined in the extension for SciMLSensitivity."
function run_adjoint end

"dL/du at the i-th time, written into `out` in the solver's order."
struct Cotangent{V <: AbstractVector}
    rows::V
    n::Int
    swapped::Bool
    row::Vector{Int}    # of every time; 0: none
end

function (c::Cotangent)(out, u, p, t, i)
    k = c.row[i]
    k == 0 && return (fill!(out, 0); nothing)
    gather!(out, view(c.rows, ((k - 1) * c.n + 1):(k * c.n)), c.swapped)
    return nothing
end
