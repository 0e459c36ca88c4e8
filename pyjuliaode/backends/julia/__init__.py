"""The Julia backend's place in the registry; this version of the package does not contain it."""

from __future__ import annotations

from typing import NoReturn

from ...errors import BackendUnavailableError
from ..base import Capabilities

_MISSING = (
    "this version of pyjuliaode does not contain the Julia backend yet; "
    "use backend='torch' (or 'auto')"
)


class JuliaBackend:
    """Refuses by a sentence until the Julia half is built."""

    name = "julia"

    def missing(self) -> str | None:
        return _MISSING

    def capabilities(self) -> Capabilities:
        return Capabilities(methods=(), adjoints=(), devices=(), dtypes=(), structures=())

    def solve(self, *_: object, **__: object) -> NoReturn:
        raise BackendUnavailableError(_MISSING)
