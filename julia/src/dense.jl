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
    clock, reached = handle.workspace.clock, last(sol.t)
    for (i, t) in enumerate(float64s(times, ntimes))
        row = view(rows, ((i - 1) * n + 1):(i * n))
        s = since(clock, t)     # the time that was reached came to the host by rounding
        gather!(row, s >= reached ? last(sol.u) : sol(max(s, 0.0)), false)
    end
    return nothing
end

"""
    steps!(handle, times, since, states)

Write the times of the accepted steps (S Float64), the same since the first of the solve (S Float64),
which tell steps apart that the host's numbers are too coarse for, and the states there (N x S).
"""
function steps!(id::Int, times::Integer, since::Integer, states::Integer)
    handle = HANDLES[id]
    return invokelatest(run_steps, handle, handle.solution, times, since, states)
end

function run_steps(handle, sol, times, since, states)
    like = handle.workspace.u
    n, count = length(like), length(sol.t)
    at_address(Float64[], times, count) .= time_at.(Ref(handle.workspace.clock), sol.t)
    copyto!(at_address(Float64[], since, count), sol.t)
    rows = at_address(like, states, n * count)
    for (i, u) in enumerate(sol.u)
        gather!(view(rows, ((i - 1) * n + 1):(i * n)), u, false)
    end
    return nothing
end
