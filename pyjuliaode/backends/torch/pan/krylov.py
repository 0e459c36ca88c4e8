"""GMRES without restarts, for operators that are known by their products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gmres(apply: Callable[[Tensor], Tensor], b: Tensor, tol: float, most: int) -> Tensor:
    """x with |apply(x) - b| <= tol |b|, or the best after ``most`` products (Saad & Schultz 1986).

    b and x are vectors (n,).
    """
    size = torch.linalg.vector_norm(b)
    if float(size) == 0.0:
        return torch.zeros_like(b)
    vectors = [b / size]
    h = b.new_zeros(most + 1, most)
    for k in range(most):
        w = apply(vectors[k])
        basis = torch.stack(vectors)
        for _ in range(2):  # once more, for what rounding left
            found = basis @ w
            h[: k + 1, k] += found
            w = w - found @ basis
        h[k + 1, k] = torch.linalg.vector_norm(w)
        target = b.new_zeros(k + 2)
        target[0] = size
        small = h[: k + 2, : k + 1]
        y = torch.linalg.lstsq(small, target[:, None]).solution[:, 0]
        left = torch.linalg.vector_norm(small @ y - target)
        if float(left) <= tol * float(size) or float(h[k + 1, k]) <= 1e-14 * float(size):
            break
        vectors.append(w / h[k + 1, k])
    return y @ torch.stack(vectors[: len(y)])
