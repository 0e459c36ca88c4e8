"""What is kept from one solve to the next, and must not decide the next wrongly."""

from __future__ import annotations

import pytest
import torch
from problems import F64, Field
from torch import nn

import pyjuliaode as pjo
from pyjuliaode.backends import runge_kutta, tableau
from pyjuliaode.backends.julia.native.field import _key
from pyjuliaode.backends.torch.pan import basis
from pyjuliaode.problem import Problem

CACHED = (runge_kutta._exponents, tableau._weights, basis.basis, basis.clenshaw_curtis)
METHODS = {
    "tsit5": {},
    "dopri8": {},
    "rk4": {"step_size": 0.07},
    "midpoint": {"step_size": 0.07, "interp": "linear"},
    "pan": {},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
def test_a_gradient_after_a_solve_in_inference_mode(method, adjoint):
    """Weights of methods are made once: tensors of inference mode could serve no gradient."""
    if (method, adjoint) == ("dopri8", "gauss"):
        pytest.skip("it needs an interpolant")
    for cached in CACHED:
        cached.cache_clear()
    field, t = Field(), torch.tensor([0.0, 0.33, 1.0], dtype=F64)
    y0 = torch.randn(2, 2, dtype=F64)
    solver = pjo.Solver(method, adjoint=adjoint, backend="torch", options=METHODS[method])
    with torch.inference_mode():
        first = pjo.solve(field, y0, t, solver)
        first(0.5)
    y0.requires_grad_()
    t.requires_grad_()
    y = pjo.solve(field, y0, t, solver).y
    # with a gradient of the times the steps land on them: others, within the tolerance of 1e-6
    torch.testing.assert_close(y.detach(), first.y.clone(), rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    assert bool(y0.grad.isfinite().all())
    assert bool(t.grad.isfinite().all())


def test_a_state_and_a_tuple_of_it_have_programs_of_their_own():
    """A module may take both, and do another thing with each."""

    class Both(nn.Module):
        def forward(self, t, y):
            return (-y[0],) if isinstance(y, tuple) else y

    y = torch.ones(3, dtype=F64)
    one, other = (Problem.build(Both(), state, [0.0, 1.0]) for state in (y, (y,)))
    assert one.structure.shapes == other.structure.shapes
    assert _key(one) != _key(other)
