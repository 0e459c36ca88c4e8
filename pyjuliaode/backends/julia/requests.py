"""What Julia is asked, as C structures of 8-byte fields: PyJuliaODE.Request, .AdjointRequest."""

from __future__ import annotations

import ctypes

_ADDRESS, _INTEGER, _NUMBER = ctypes.c_size_t, ctypes.c_int64, ctypes.c_double


class Request(ctypes.Structure):
    """A forward solve; see src/forward.jl. Zero is "none" or the solver's own choice."""

    _fields_ = (
        ("y0", _ADDRESS),
        ("times", _ADDRESS),
        ("ntimes", _INTEGER),
        ("out", _ADDRESS),
        ("abstol", _NUMBER),
        ("reltol", _NUMBER),
        ("abstol_at", _ADDRESS),
        ("reltol_at", _ADDRESS),
        ("dt", _NUMBER),
        ("dtmin", _NUMBER),
        ("dtmax", _NUMBER),
        ("adaptive", _INTEGER),
        ("maxiters", _INTEGER),
        ("tstops", _ADDRESS),
        ("ntstops", _INTEGER),
        ("jumps", _ADDRESS),
        ("njumps", _INTEGER),
        ("jacobian", _INTEGER),
        ("mass_at", _ADDRESS),
        ("brown", _INTEGER),
        ("second_order", _INTEGER),
        ("ncheckpoints", _INTEGER),
        ("nevents", _INTEGER),
        ("tape", _INTEGER),
        ("tensors", _ADDRESS),
        ("backwards", _INTEGER),
    )


class AdjointRequest(ctypes.Structure):
    """A backward solve; see src/adjoint.jl."""

    _fields_ = (
        ("times", _ADDRESS),
        ("ntimes", _INTEGER),
        ("cotangents", _ADDRESS),
        ("du0", _ADDRESS),
        ("dp", _ADDRESS),
        ("abstol", _NUMBER),
        ("reltol", _NUMBER),
        ("dt", _NUMBER),
        ("adaptive", _INTEGER),
        ("maxiters", _INTEGER),
        ("checkpointing", _INTEGER),
        ("jumps", _ADDRESS),
        ("njumps", _INTEGER),
    )


class Report(ctypes.Structure):
    """What a forward solve reports; see PyJuliaODE.solve!."""

    _fields_ = tuple(
        (name, _NUMBER)
        for name in (
            *("rows", "reached", "nf", "accepted", "rejected", "jacobians"),
            *("handle", "steps", "element", "before"),
        )
    )


class AdjointReport(ctypes.Structure):
    """What a backward solve reports; see PyJuliaODE.adjoint!."""

    _fields_ = tuple(
        (name, _NUMBER)
        for name in (
            *("vjp_u", "vjp_p", "vjp", "nf", "accepted", "rejected", "jacobians"),
            "reached",
        )
    )


def doubles(values: list[float]) -> ctypes.Array:
    """A C array of numbers; its address is that of :func:`address`."""
    return (ctypes.c_double * len(values))(*values)


address = ctypes.addressof
