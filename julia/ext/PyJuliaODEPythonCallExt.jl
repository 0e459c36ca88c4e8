module PyJuliaODEPythonCallExt

using DLPack: DLPack
using PyJuliaODE: PyJuliaODE
using PythonCall: Py, PyArray, PyIterable

const Tensor = Union{Py, PyArray, PyIterable}

# One dimension only: DLPack.jl reads neither strides nor offsets of more. The typed form refuses a
# strided tensor and another element type.
PyJuliaODE.as_vector(x::Tensor, ::Type{V}) where {V <: AbstractVector} =
    DLPack.from_dlpack(V, DLPack.ColMajor, Py(x))

end
