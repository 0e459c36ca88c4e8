# Methods by name, from the table that the host reads too.

struct Method
    package::Symbol
    kind::Symbol
    name::Symbol
end

const METHODS_FILE = joinpath(dirname(@__DIR__), "methods.txt")
include_dependency(METHODS_FILE)

const METHODS = let table = Dict{Symbol, Method}()
    for line in eachline(METHODS_FILE)
        (isempty(strip(line)) || startswith(line, '#')) && continue
        package, kind, names = strip.(split(line, '|'))
        package == "withheld" && continue
        for name in split(replace(names, r"[=*]" => ""))
            table[Symbol(name)] = Method(Symbol(package), Symbol(kind), Symbol(name))
        end
    end
    table
end

method_of(name::AbstractString) = get(METHODS, Symbol(name)) do
    throw(ArgumentError("no method $name in PyJuliaODE's table"))
end

"""
A name of one of this package's dependencies, loaded if need be.

By its identity: asked by name alone, within the workload of an extension, Julia looks the name up in
the environment as well, where it need not be; it then holds the extension's image to be out of date,
and compiles it in every process.
"""
function constructor_of(package::Symbol, name::Symbol)
    id = Base.identify_package(PyJuliaODE, String(package))
    id === nothing && throw(ArgumentError("PyJuliaODE does not depend on $package"))
    loaded = Base.require(id)
    invokelatest(isdefined, loaded, name) ||
        throw(ArgumentError("$package has no $name in the version that is installed"))
    make = invokelatest(getproperty, loaded, name)
    return (args...; kwargs...) -> invokelatest(make, args...; kwargs...)
end

const ALGORITHMS = Dict{String, Any}()

"""
    algorithm(name)

The algorithm of a name such as "Tsit5", "Rodas5P" or "AutoTsit5(Rodas5P)". Jacobians come from the
host or from finite differences, never from dual numbers, which a host cannot take. Interpolation
stages are evaluated with the step: evaluated later they are wrong at the last time
(`sol(t, continuity = :right)` fills them with a step of length zero), and with them every adjoint.
"""
algorithm(name::String) = get!(() -> make_algorithm(name), ALGORITHMS, name)

function make_algorithm(name::String)
    outer, inner = split_name(name)
    method = method_of(outer)
    make = constructor_of(method.package, method.name)
    kind = method.kind
    inner === nothing || kind === :auto ||
        throw(ArgumentError("$outer takes no second method; only the Auto... methods do"))
    kind === :lazy && return make(; lazy = Val(false))
    kind in (:implicit, :bdf) && return make(; autodiff = AutoFiniteDiff())
    kind === :default && return make(; lazy = Val(false), autodiff = AutoFiniteDiff())
    if kind === :auto
        stiff = algorithm(something(inner, "Rosenbrock23"))
        startswith(outer, "AutoVern") && return make(stiff; lazy = Val(false))
        return make(stiff)
    end
    return make()
end

function split_name(name)
    m = match(r"^(\w+)\((\w+)(?:\(\))?\)$", name)
    m === nothing && return String(strip(name)), nothing
    return String(m[1]), String(m[2])
end

"Whether a method may meet a system with a Jacobian: implicit, or switching to implicit."
function is_implicit(name::String)
    return method_of(first(split_name(name))).kind in (:implicit, :bdf, :auto, :default)
end
