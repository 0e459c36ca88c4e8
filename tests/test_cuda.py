"""Solves, gradients and momentum networks on a GPU, where there is one, beside the CPU's.

Every test runs on the CPU too, so that none is wrong unnoticed where there is no GPU.
"""

import copy

import pytest
import torch
from torch import nn

import pyjuliaode as pjo

F64 = torch.float64
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def field():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def on(device, model, x):
    """Output and gradients of copies of ``model`` and x there, brought back."""
    model, x = copy.deepcopy(model).to(device), x.detach().to(device).requires_grad_()
    y = model(x)
    grads = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
    assert all(g.device.type == device for g in (y, *grads))
    return [g.detach().cpu() for g in (y, *grads)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamics", [pjo.NODE, pjo.HBNODE, pjo.GNesterovNODE])
@pytest.mark.parametrize(
    ("method", "adjoint"),
    [
        *(("dopri5", adjoint) for adjoint in ("direct", "gauss", "interpolating", "backsolve")),
        *(("pan", adjoint) for adjoint in ("direct", "gauss")),
        ("rk4", "direct"),
        ("dopri8", "gauss"),
        ("scipy_solver", "gauss"),
    ],
)
def test_solves_and_gradients(device, dynamics, method, adjoint):
    dt = 0.05 if method == "rk4" else None
    choices = {"backend": "torch", "adjoint": adjoint, "dt": dt}
    solver = pjo.Solver(method, 1e-8, 1e-8, **choices)
    torch.manual_seed(1)
    model = pjo.NeuralODE(dynamics(field()), t=(1.0, 2.0), solver=solver).double()
    x = 0.5 * torch.randn(4, 3, dtype=F64)
    # other step sizes where rounding differs at a decision: a hundred times the tolerance
    torch.testing.assert_close(on(device, model, x), on("cpu", model, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_momentum_networks_are_undone_exactly(device, dtype):
    net = pjo.MomentumNet([field().to(dtype)] * 500, 0.9).to(device)
    x = torch.randn(16, 3, dtype=dtype, device=device)
    x0, v0 = net.reconstruct(x)
    assert torch.equal(x0, x)
    assert not v0.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("autocast", [False, True])
def test_momentum_networks_with_dropout(device, autocast):
    functions = [nn.Sequential(field().float(), nn.Dropout(0.3)) for _ in range(6)]
    x, found = torch.randn(64, 3), []
    for mode in ("backprop", "reversible"):
        net = pjo.MomentumNet(functions, 0.9, mode=mode)
        torch.manual_seed(3)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            found.append(on(device, net, x))
    tolerance = 0.05 if autocast else 1e-4  # bfloat16 has 8 bits, float32 24; six layers
    for a, b in zip(*found, strict=True):
        assert float((a - b).norm() / b.norm()) < tolerance
