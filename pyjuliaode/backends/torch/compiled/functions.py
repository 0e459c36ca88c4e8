"""What is compiled: one Runge-Kutta step, and the product of a cotangent with its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ....problem import Problem
from ...runge_kutta import combine
from ...tableau import Tableau

Field = Callable[[Tensor, Tensor], Tensor]


def flat_field(problem: Problem) -> Field:
    """f(t, y) on the flat state."""
    func, structure = problem.func, problem.structure
    return lambda t, y: structure.pack(func(t, structure.unpack(y)))


def _stages(clock: Tensor, tableau: Tableau) -> tuple[Tensor, list[Tensor]]:
    """h, and the times of the stages but the first, of a clock [t, h, end]."""
    t, h, end = clock.unbind(0)
    return h, [end if c == 1.0 else t + c * h for c in tableau.c[1:]]


def start_function(field: Field) -> Callable[..., list[Tensor]]:
    """start(clock, y, rtol, atol) -> [f(t, y), (d0, d1, d2, h0)], clock = [t, direction, room].

    What :meth:`Control.initial_step` computes, for the root mean square.
    """

    def start(clock: Tensor, y: Tensor, rtol: Tensor, atol: Tensor) -> list[Tensor]:
        t, direction, room = clock.unbind(0)
        scale = atol + rtol * y.abs()

        def norm(x: Tensor) -> Tensor:
            return torch.linalg.vector_norm(x / scale) / x.numel() ** 0.5

        f0 = field(t, y)
        d0, d1 = norm(y), norm(f0)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).minimum(room)
        f1 = field(t + direction * h0, y + (direction * h0) * f0)
        return [f0, torch.stack([d0, d1, norm(f1 - f0) / h0, h0])]

    return start


def step_function(field: Field, tableau: Tableau, scaled: bool) -> Callable[..., list[Tensor]]:
    """step(clock, y, k0, rtol, atol) -> [y1, slopes (stages, N), error], clock = [t, h, end].

    ``error`` is the 2-norm of h * error / (atol + rtol max(|y|, |y1|)) where ``scaled``, else the
    error divided by h; without an embedded method it is left out, as are the tolerances.
    """

    def step(clock: Tensor, y: Tensor, k0: Tensor, *tolerances: Tensor) -> list[Tensor]:
        h, times = _stages(clock, tableau)
        k, yi = [k0], y
        for t, a in zip(times, tableau.a, strict=True):
            yi = combine(y, h, a, k)
            k.append(field(t, yi))
        y1 = yi if tableau.fsal else combine(y, h, tableau.b, k)
        found = [y1, torch.stack(k)]
        if tableau.error is None:
            return found
        error = combine(None, 1.0, tableau.error, k)
        if scaled:
            rtol, atol = tolerances
            scale = atol + rtol * torch.maximum(y.abs(), y1.abs())
            error = torch.linalg.vector_norm(h * error / scale)
        return [*found, error]

    return step


def product_function(
    field: Field, tableau: Tableau, params: Sequence[Tensor], within: bool
) -> Callable[..., list[Tensor | None]]:
    """product(clock, y, cotangent, *totals) -> [y1, gradient of y, *totals with params' added].

    The first slope of the step is evaluated too. None stands for a gradient that is zero. Where
    ``within``, the totals follow after the cotangents (rows, N) of the slopes that the continuous
    extension reads.
    """
    stages = tableau.stages if within else tableau.core

    def product(
        clock: Tensor, y: Tensor, cotangent: Tensor, *totals: Tensor
    ) -> list[Tensor | None]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            h, times = _stages(clock, tableau)
            k = [field(clock[0], y)]
            for time, a in zip(times[: stages - 1], tableau.a, strict=False):
                k.append(field(time, combine(y, h, a, k)))
            y1 = combine(y, h, tableau.b, k)
            outputs, cotangents = [y1], [cotangent]
            if within:
                if tableau.rows > stages:
                    k.append(field(clock[2], y1))
                for c, a in tableau.extra:
                    k.append(field(clock[0] + c * h, combine(y, h, a, k)))
                of_slopes, *totals = totals
                outputs.append(torch.stack(k))
                cotangents.append(of_slopes)
        g_y, *grads = torch.autograd.grad(outputs, [y, *params], cotangents, allow_unused=True)
        added = [None if g is None else x + g for x, g in zip(totals, grads, strict=True)]
        return [y1.detach(), g_y, *added]

    return product


def vjp_function(
    field: Field, params: Sequence[Tensor], state: bool
) -> Callable[..., list[Tensor | None]]:
    """vjp(t, y, cotangent) -> [f(t, y), gradient of y where ``state``, *gradients of params]."""

    def vjp(t: Tensor, y: Tensor, cotangent: Tensor) -> list[Tensor | None]:
        with torch.enable_grad():
            y = y.detach()
            inputs = [y.requires_grad_(), *params] if state else [*params]
            out = field(t, y)
        if not (inputs and out.requires_grad):
            return [out.detach(), *(None for _ in inputs)]
        grads = torch.autograd.grad(out, inputs, cotangent, allow_unused=True)
        return [out.detach(), *grads]

    return vjp
