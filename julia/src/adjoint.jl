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
    adjoint!(handle, method, kind, times, ntimes, cotangents, du0, dp, report; options...) -> retcode

Gradient of a kept solution by a continuous adjoint: `kind` is "gauss", "interpolating",
"quadrature" or "backsolve", `method` the algorithm of the backward solve.

`cotangents` is the address of dL/du at the `ntimes` ascending times (N x ntimes); dL/du0 (N) and
dL/dp (P) are written. The report (8 Float64) receives: vjp_u, vjp_p and joint products, evaluations,
accepted and rejected steps of the backward solve, Jacobians, time reached. A retcode other than
"Success" means that no gradient was written. For a singular mass matrix dL/du0 is M' times the
adjoint state: entries of algebraic variables are zero.

Options: `abstol`, `reltol`, `maxiters`, `dt`, `adaptive`, `checkpointing`.
"""
function adjoint!(
        id::Int, method::String, kind::String, times::Integer, ntimes::Int, cotangents::Integer,
        du0::Integer, dp::Integer, report::Integer; kwargs...
    )
    handle = HANDLES[id]
    alg = algorithm(method)
    slots = at_address(Float64[], report, 8)
    return on_device(handle.workspace.u) do
        invokelatest(
            run_adjoint, handle, handle.solution, alg, kind, times, ntimes, cotangents, du0, dp,
            slots; kwargs...
        )
    end
end

"Defined in the extension for SciMLSensitivity."
function run_adjoint end

"dL/du at the i-th time, written into `out` in the solver's order."
struct Cotangent{V <: AbstractVector}
    rows::V
    n::Int
    swapped::Bool
end

function (c::Cotangent)(out, u, p, t, i)
    gather!(out, view(c.rows, ((i - 1) * c.n + 1):(i * c.n)), c.swapped)
    return nothing
end
