# Build a system image: julia --project=ENVIRONMENT sysimage.jl PATH
#
# PythonCall stays out: its initialisation needs the Python that embeds it.

using PackageCompiler: create_sysimage

create_sysimage(
    ["PyJuliaODE", "SciMLSensitivity"];
    sysimage_path = only(ARGS), incremental = true, include_transitive_dependencies = true,
    precompile_execution_file = joinpath(@__DIR__, "sysimage_workload.jl")
)
