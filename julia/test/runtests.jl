# The Julia half without Python: host callbacks are C functions.

using Test

include("host.jl")

@testset "PyJuliaODE" begin
    include("solves.jl")
    include("adjoints.jl")
    include("native.jl")
    include("guards.jl")
end
