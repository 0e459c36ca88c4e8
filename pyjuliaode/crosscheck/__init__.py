"""crosscheck: one model and its data through several solvers, and whether they agree.

:func:`crosscheck` runs what is asked for and holds it to a reference; :class:`CrossCheck` is what
it found.
"""

from .compare import crosscheck as crosscheck
from .result import CrossCheck as CrossCheck
from .result import DisagreementError as DisagreementError

__all__ = ["CrossCheck", "DisagreementError", "crosscheck"]
