# What is installed, and whether it is a version that was run.

"""
    versions() -> String

Lines `name version` of Julia and of the packages that decide about right gradients.
"""
function versions()
    io = IOBuffer()
    println(io, "julia ", VERSION)
    println(io, "PyJuliaODE ", pkgversion(PyJuliaODE))
    println(io, "SciMLBase ", pkgversion(SciMLBase))
    println(io, "OrdinaryDiffEqCore ", pkgversion(OrdinaryDiffEqCore))
    for id in (
            SENSITIVITY,
            Base.PkgId(Base.UUID("6099a3de-0909-46bc-b1f4-468b9a2dfc0d"), "PythonCall"),
            Base.PkgId(Base.UUID("53c2dc0f-f7d5-43fd-8906-6c0220547083"), "DLPack"),
            Base.PkgId(Base.UUID("052768ef-5323-5732-b1bb-66c8b64840ba"), "CUDA"),
        )
        loaded = get(Base.loaded_modules, id, nothing)
        loaded === nothing || println(io, id.name, ' ', pkgversion(loaded))
    end
    println(io, "threads ", Threads.nthreads())
    return String(take!(io))
end
