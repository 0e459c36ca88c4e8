# From a workspace to a SciML problem.

"The function of the first-order system, with the host's products."
function ode_function(ws::Workspace; jacobian::Bool = false, mass = nothing, like = ws.u)
    jacobian || mass !== nothing || return ode_function_plain(ws)
    products = (; vjp = HostVJP(ws), vjp_p = HostVJPp(ws))
    if jacobian
        n = length(ws)
        prototype = fill!(similar(like, n, n), 0)
        products = (; products..., jac = HostJac(ws), jac_prototype = prototype)
    end
    if mass !== nothing
        products = (; products..., mass_matrix = Diagonal(mass))
    end
    return ODEFunction{true, FullSpecialize}(HostRHS(ws); products...)
end

# The parameters' values never leave the host: here they are a length and an element type. Gauss
# needs at least one.
token(ws::Workspace, like = ws.u) = fill!(similar(like, max(ws.nparams, 1)), 0)

"The acceleration v' = f(v, h) of a second-order system, the second half of the host's slope."
struct Acceleration{W <: Workspace}
    ws::W
end

function (f::Acceleration)(dv, v, h, p, t)
    ws = f.ws
    n = length(h)
    gather!(ws.u, ArrayPartition(v, h), true)
    call(ws, Val(:rhs), t)
    copyto!(dv, 1, ws.du, n + 1, n)
    ws.nf += 1
    return nothing
end

position_rate(dh, v, h, p, t) = (copyto!(dh, v); nothing)

"The problem of the plain case, of a type that is known when this is compiled."
plain_problem(ws::Workspace, y0, tspan) =
    ODEProblem{true}(ode_function_plain(ws), y0, tspan, token(ws))

ode_function_plain(ws::Workspace) = ODEFunction{true, FullSpecialize}(
    HostRHS(ws); vjp = HostVJP(ws), vjp_p = HostVJPp(ws)
)

"The problem that is solved, and its first-order twin that an adjoint reads."
function problems(ws::Workspace, y0, tspan; second_order, jacobian, mass, kwargs...)
    p = token(ws, y0)
    f = ode_function(ws; jacobian, mass, like = y0)
    if !second_order
        problem = ODEProblem{true}(f, y0, tspan, p; kwargs...)
        return problem, problem
    end
    n = length(y0) ÷ 2
    h, v = y0[1:n], y0[(n + 1):end]
    g = DynamicalODEFunction{true, FullSpecialize}(Acceleration(ws), position_rate)
    problem = DynamicalODEProblem(g, v, h, tspan, p; kwargs...)
    return problem, ODEProblem{true}(f, vcat(v, h), tspan, p; kwargs...)
end

"How a system with a singular mass matrix gets consistent initial values: checked, or solved for."
function initialization_of(name::String)
    name == "check" && return SciMLBase.CheckInit()
    name == "brown" && return constructor_of(:OrdinaryDiffEqNonlinearSolve, :BrownFullBasicInit)()
    throw(ArgumentError("initialization must be \"check\" or \"brown\", got $name"))
end
