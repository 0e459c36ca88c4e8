"""
    PyJuliaODE

The Julia half of the Python package pyjuliaode: it will solve, with OrdinaryDiffEq.jl and
SciMLSensitivity.jl, differential equations whose right-hand side is a PyTorch module. It holds
nothing but its version yet.
"""
module PyJuliaODE

"Version of this package; equal to that of the Python package it is shipped with."
const VERSION = v"0.1.0"

end
