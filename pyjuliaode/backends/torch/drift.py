"""Whether a state that was solved backward has come back to where it was."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import GradientWarning, solver_error, warn
from ...problem import Problem
from ...solution import Retcode
from .plan import Plan

# Of the distance from the state of the forward solve, relative to the size of that state: beyond
# the second the gradient belongs to another trajectory. With error control the first is a number
# of tolerances.
FIXED_STEPS, REFUSED, TOLERANCES = 1e-3, 0.1, 100


class Drift:
    """The largest distance of y from the states of the forward solve, at the requested times."""

    def __init__(self, problem: Problem, plan: Plan):
        self.problem = problem
        rtol, atol = (torch.as_tensor(x) for x in (plan.rtol, plan.atol))
        if plan.chooses_steps:
            eps = torch.finfo(problem.y0.dtype).eps
            self.rtol = max(TOLERANCES * float(rtol.max()), 1e3 * eps)
            self.atol = TOLERANCES * float(atol.max())
        else:
            self.rtol, self.atol = FIXED_STEPS, 0.0
        self.largest, self.at = 0.0, 0.0

    def look(self, t: float, y: Tensor, before: Tensor) -> None:
        """Compare the state at a requested time with that of the forward solve."""
        norms = torch.stack([torch.linalg.vector_norm(x) for x in (before, y - before)])
        size, apart = norms.tolist()
        if apart <= self.rtol * size + self.atol * y.numel() ** 0.5:
            return
        found = apart / size if size > 0.0 else 1.0
        if not found <= self.largest:
            self.largest, self.at = found, t

    def tell(self) -> None:
        """Warn, or raise, where the trajectory has not come back.

        Raises:
            SolverError: by more than a tenth of its size: the gradient would mean nothing.
        """
        if self.largest == 0.0:
            return
        what = (
            f"adjoint 'backsolve' solves the state backward, which at t = {self.at:g} came back "
            f"{self.largest:.2g} of its size away from where it was"
        )
        remedy = (
            "Use adjoint='gauss' or 'direct', which keep the states; or smaller tolerances, or "
            "more requested times, at each of which it begins anew"
        )
        if not self.largest <= REFUSED:
            raise solver_error(
                f"{what}: the gradient would be of another trajectory. {remedy}.",
                Retcode.UNSTABLE,
                drop_in=self.problem.drop_in,
            )
        warn(f"{what}: its gradient is no more accurate than that. {remedy}.", GradientWarning)
