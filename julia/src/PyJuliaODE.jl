"""
    PyJuliaODE

The Julia half of pyjuliaode. A host (Python, through juliacall; C callbacks in the tests) owns the
right-hand side and its vector-Jacobian products; this package solves, interpolates and differentiates.

The host shares flat vectors with a [`Workspace`](@ref) and hands over C function pointers
([`Callbacks`](@ref)). Everything else that crosses is a number, a string or an address, so that the
entry points compile once: [`workspace!`](@ref), [`solve!`](@ref), [`interpolate!`](@ref),
[`steps!`](@ref), [`adjoint!`](@ref), [`tableau`](@ref), [`release!`](@ref), [`versions`](@ref).

Time runs forward here: a host that integrates backward maps t to -t. Solves run in the time since the
host's first ([`Clock`](@ref)); the host hands over and receives times of its own.
"""
module PyJuliaODE

using ADTypes: AutoFiniteDiff
using ConstructionBase: setproperties
using DiffEqBase: DiffEqBase
using LinearAlgebra: Diagonal
using OrdinaryDiffEqCore: OrdinaryDiffEqCore
using OrdinaryDiffEqLowOrderRK: OrdinaryDiffEqLowOrderRK
using OrdinaryDiffEqTsit5: OrdinaryDiffEqTsit5
using PrecompileTools: @compile_workload, @setup_workload
using RecursiveArrayTools: ArrayPartition
using SciMLBase: SciMLBase, DiscreteCallback,
    DynamicalODEFunction, DynamicalODEProblem, FullSpecialize, ODEFunction, ODEProblem,
    successful_retcode, terminate!
using SciMLLogging: SciMLLogging

include("native/simd.jl")
include("native/functions.jl")
include("native/tape.jl")
include("native/tiles.jl")
include("native/kernels.jl")
include("native/linear.jl")
include("native/convolution.jl")
include("native/evaluate.jl")
include("clock.jl")
include("host.jl")
include("callbacks.jl")
include("workspace.jl")
include("algorithms.jl")
include("problem.jl")
include("forward.jl")
include("dense.jl")
include("adjoint.jl")
include("tableau.jl")
include("native/attach.jl")
include("native/replay.jl")
include("versions.jl")
include("precompile.jl")

end
