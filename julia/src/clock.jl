# The host's time and the solver's, which begins at zero.

"""
    Clock(times, stops, jumps, T)

Solvers take a stop within 100 units of rounding as reached, and steps below one as none: near a late
time that is more than a step. So they run in the time since the first of the host's `times`, in
Float64 whatever T, the numbers of the state.

A known time of the host, asked for by it, comes back exactly: also where a step ends within that
distance of it. At one of the `jumps` there are two, one on each side of it in T, in which the host
may round its times; between two known times no other one lies beyond them. `reverse` says that a
solve runs backward: at a jump the side is meant that it comes from. The last time is one as well: an
input that is held until then, and has another value from then on, is none of the solve's. But where
the numbers of T are coarse against the span, a field that is smooth would suffer.
"""
mutable struct Clock
    const origin::Float64
    const since::Vector{Float64}    # of the known times, ascending; and these themselves,
    const at::Vector{Float64}
    const before::Vector{Float64}   # as a solve that comes from earlier times sees them,
    const after::Vector{Float64}    # and one from later times
    reverse::Bool
end

Clock() = Clock(0.0, Float64[], Float64[], Float64[], Float64[], false)

function Clock(times, stops, jumps, ::Type{T}) where {T}
    origin, last = first(times), times[end]
    within(t) = origin <= t <= last
    at = sort!(unique!(vcat(times, filter(within, stops), filter(within, jumps))))
    since = at .- origin
    before, after = copy(at), copy(at)
    held = abs(last) <= 4 * (last - origin) ? [last] : Float64[]
    inside = sort!(unique!(filter(t -> within(t) && isfinite(t), vcat(jumps, held))))
    isempty(inside) || set_sides!(before, after, at, inside, T)
    return Clock(origin, since, at, before, after, false)
end

"Next to a jump on both sides of it; no other known time beyond a jump."
function set_sides!(before, after, at, jumps, ::Type{T}) where {T}
    left = [Float64(t == first(at) ? above(T(t)) : below(T(t))) for t in jumps]
    right = [Float64(t == last(at) ? below(T(t)) : above(T(t))) for t in jumps]
    for (i, t) in enumerate(at)
        j = searchsortedfirst(jumps, t)
        if j <= length(jumps) && jumps[j] == t
            before[i], after[i] = left[j], right[j]
        else
            least = j > 1 ? right[j - 1] : -Inf
            most = j <= length(jumps) ? left[j] : Inf
            before[i] = after[i] = min(max(t, least), most)
        end
    end
    return nothing
end

# next to zero are subnormal numbers, which some hosts flush to it
above(t::T) where {T} = t == 0 ? floatmin(T) : nextfloat(t)
below(t) = -above(-t)

since(clock::Clock, t::Float64) = t - clock.origin

"Of discontinuities, those that the solve meets: behind one before its start it would see no other."
met(clock::Clock, jumps) = filter!(s -> 0 <= s <= last(clock.since), since.(Ref(clock), jumps))

"How near to a known time a solver counts as there."
near(s) = 100 * eps(s)

"The host's time, where its field is called."
function (clock::Clock)(s::Float64)
    known = clock.since
    isempty(known) && return clock.origin + s
    last = searchsortedlast(known, s)
    here = last > 0 && known[last] == s
    left, right = here ? last - 1 : last, last + 1     # the known times on either side
    low = left > 0 ? clock.after[left] : -Inf
    high = right <= length(known) ? clock.before[right] : Inf
    if clock.reverse
        here && return clock.after[last]
        left > 0 && s - known[left] <= near(known[left]) && return low
    else
        here && return clock.before[last]
        right <= length(known) && known[right] - s <= near(known[right]) && return high
    end
    return min(max(clock.origin + s, low), high)
end

"The host's time of a step's end or of a row: a known one as it is."
function time_at(clock::Clock, s::Float64)
    i = searchsortedfirst(clock.since, s)
    i <= length(clock.since) && clock.since[i] == s && return clock.at[i]
    return clock(s)
end
