# What a kept solution is asked for: states at any time, the accepted steps.

"""
    interpolate!(handle, times, ntimes, out)

Write the states at `ntimes` Float64 within the span into `out` (N x ntimes), by the method's own
interpolant.
"""
function interpolate!(id::Int, times::Integer, ntimes::Int, out::Integer)
    handle = HANDLES[id]
    return invokelatest(run_interpolate, handle, handle.solution, times, ntimes, out)
end

function run_interpolate(handle, sol, times, ntimes, out)
    like = handle.workspace.u
    n = length(like)
    rows = at_address(like, out, n * ntimes)
    T = eltype(like)
    for (i, t) in enumerate(float64s(times, ntimes))
        row = view(rows, ((i - 1) * n + 1):(i * n))
        gather!(row, t == last(sol.t) ? last(sol.u) : sol(T(t)), false)
    end
    return nothing
end

"""
    steps!(handle, times, states)

Write the times of the accepted steps (S Float64) and the states there (N x S).
"""
function steps!(id::Int, times::Integer, states::Integer)
    handle = HANDLES[id]
    return invokelatest(run_steps, handle, handle.solution, times, states)
end

function run_steps(handle, sol, times, states)
    like = handle.workspace.u
    n, count = length(like), length(sol.t)
    copyto!(at_address(Float64[], times, count), sol.t)
    rows = at_address(like, states, n * count)
    for (i, u) in enumerate(sol.u)
        gather!(view(rows, ((i - 1) * n + 1):(i * n)), u, false)
    end
    return nothing
end
