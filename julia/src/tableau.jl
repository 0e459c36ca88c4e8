# Butcher tableaus, read off a method by running it once.

# With y0 = 0, h = 1 and the i-th evaluation returning the i-th unit vector, the state that the j-th
# evaluation is given is row j of the matrix A, its time is c_j, and the result is b. An explicit
# Runge-Kutta method is linear in its slopes, so this is its tableau whatever form its authors gave
# it, and the same holds for its interpolant at any θ.

const PROBE_SIZE = 64

mutable struct Probe
    u::Vector{Float64}
    du::Vector{Float64}
    status::Vector{Int32}
    times::Vector{Float64}
    states::Vector{Vector{Float64}}
end

const PROBE = Probe(zeros(PROBE_SIZE), zeros(PROBE_SIZE), zeros(Int32, 2), Float64[], Vector{Float64}[])

function probe_rhs(t::Cdouble)::Cvoid
    probe = PROBE
    push!(probe.times, t)
    push!(probe.states, copy(probe.u))
    fill!(probe.du, 0)
    if length(probe.times) <= PROBE_SIZE
        probe.du[length(probe.times)] = 1
        probe.status[1] = 1
    end
    return nothing
end

function probe_workspace()
    rhs = @cfunction(probe_rhs, Cvoid, (Cdouble,))
    empty() = Float64[]
    return Workspace(
        PROBE.u, PROBE.du, empty(), empty(), empty(), empty(),
        Callbacks(rhs, C_NULL, C_NULL, C_NULL, C_NULL, C_NULL, C_NULL), pointer(PROBE.status), 0
    )
end

"""
    tableau(method; degree = 12) -> String

The Butcher tableau of an explicit Runge-Kutta method with its interpolant, as text for the host:
lines `c`, `b`, one line for each row of A, and one line `i d_1 ... d_degree` for each slope that the
interpolant reads: y(θ) = y0 + h Σ_i k_i Σ_j d_ij θ^j. Numbers are printed so that they read back
exactly. Empty where the method is no explicit Runge-Kutta method.
"""
function tableau(name::String; degree::Int = 12)
    kind = method_of(first(split_name(name))).kind
    kind in (:explicit, :lazy, :hermite, :lowstorage) || return ""
    return invokelatest(run_tableau, algorithm(name), degree)
end

function run_tableau(alg, degree)
    empty!(PROBE.times)
    empty!(PROBE.states)
    fill!(PROBE.status, 0)
    ws = probe_workspace()
    none = Float64[]
    one_step = Stepping(1.0, 1.0, 1.0, 0.0, 1.0, false, 10, none, none, none, true, true)
    sol = solve_with(plain_problem(ws, zeros(PROBE_SIZE), (0.0, 1.0)), alg, one_step)
    weights = copy(last(sol.u))
    θ = [(1 - cospi((2i - 1) / (2 * 2degree))) / 2 for i in 1:(2degree)]
    values = reduce(hcat, [copy(sol(x)) for x in θ])            # may evaluate further slopes
    s = length(PROBE.times)
    s <= PROBE_SIZE || return ""
    consistent(weights, s) || return ""
    dense = interpolant(θ, values[1:s, :], degree)
    io = IOBuffer()
    println(io, "c ", join(PROBE.times, ' '))
    println(io, "b ", join(weights[1:s], ' '))
    for i in 2:s
        println(io, "a ", join(PROBE.states[i][1:(i - 1)], ' '))
    end
    if dense !== nothing
        for i in 1:s
            println(io, "d ", join(dense[:, i], ' '))
        end
    end
    return String(take!(io))
end

"""
Coefficients (degree x slopes) of polynomials in θ without constant term through the values (slopes x
points), of the lowest degree that fits; nothing where none does.
"""
function interpolant(θ, values, most)
    for degree in 1:most
        powers = [x^j for x in big.(θ), j in 1:degree]
        found = powers \ big.(values')
        maximum(abs, powers * found - values'; init = 0.0) < 1.0e-12 && return Float64.(found)
    end
    return nothing
end

"Whether the probed method is an explicit Runge-Kutta method: rows of A sum to c, b to 1."
function consistent(b, s)
    isapprox(sum(b[1:s]), 1; atol = 1.0e-12) || return false
    for i in 1:s
        row = PROBE.states[i]
        all(iszero, @view row[i:end]) || return false
        isapprox(sum(row), PROBE.times[i]; atol = 1.0e-12) || return false
    end
    return true
end
