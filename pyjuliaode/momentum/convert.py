"""Residual networks turned into momentum networks, and back."""

from __future__ import annotations

import copy as copying
from collections.abc import Callable, Sequence
from itertools import chain

from torch import nn

from ..errors import InvalidArgumentError
from . import plan
from .blocks import Container, MomentumBlocks, Residual, gather, spread
from .net import MomentumNet
from .report import MomentumReport, Run

Speed = Callable[[Sequence[nn.Module]], nn.Module]


def to_momentum(
    model: nn.Module,
    layers: str | Sequence[str] | None = None,
    *,
    gamma: float = 0.9,
    init_speed: float | Speed = 0,
    mode: str = "backprop",
    copy: bool = True,
) -> nn.Module:
    """``model`` with momentum in place of its residual connections (Sander et al. 2021, sec. 4).

    Consecutive residual blocks x -> x + f(x) of a container become one :class:`MomentumNet` of the
    same functions and parameters, v <- gamma v + (1 - gamma) f(x), x <- x + v; v begins anew in
    every run of blocks. gamma = 0 is the model itself, to the last bit. Above that outputs differ,
    and the model is to be trained again: f of the k-th of n blocks reaches the end of the run with
    weight 1 - gamma^(n - k) for 1 (k = 0, 1, ...), so that short runs are damped. Of a block that
    ends in an activation or a normalisation, f is its value minus x.

    Found by structure are blocks in an nn.Sequential whose input reaches their value by sums alone
    (an activation or normalisation may follow one), and the layers of nn.TransformerEncoder and
    nn.TransformerDecoder. A block whose skip connection passes a module stays an ordinary one.
    What was done is told by ``print(result.momentum_report)``.

    Keys of a ``state_dict`` are ``CONTAINER.N.functions.K`` in place of ``CONTAINER.M``, with N
    the first block's; ``load_state_dict`` takes those of the original too. Converted encoders take
    no nested tensors: padded places, which have no meaning, have other values than where the
    original takes them.

    Arguments:
        model: any module.
        layers: dotted path, or paths, of the nn.Sequential or nn.ModuleList to convert; None finds
            them. In one that is named, blocks whose forward cannot be traced are converted as
            well. The owner of an nn.ModuleList must do nothing but x = block(x, ...), with the
            same further arguments for all, whatever their number.
        gamma, mode: as of :class:`MomentumNet`; ``mode`` of each may be changed later.
        init_speed: 0, or a function that makes of the blocks of a run the module of its first v.
        copy: whether to copy parameters and buffers; if False the result shares them with
            ``model``, whose structure stays as it is either way.

    Returns:
        The converted model, a new one.

    Raises:
        InvalidArgumentError: an argument that is none of these, or nothing to convert; the message
            gives the reasons.
    """
    _check_module(model)
    if isinstance(init_speed, nn.Module) or not (init_speed == 0 or callable(init_speed)):
        raise InvalidArgumentError(
            "init_speed must be 0 or a function of the blocks of a run that returns a module, "
            f"got {type(init_speed).__name__}"
        )
    MomentumNet([nn.Identity()], gamma, mode=mode)  # raises for what these cannot be
    runs, kept = plan.make(model, layers)
    new = _copied(model, copy)
    # found before any is changed: where one lies in another, paths do not hold any more
    containers = {run.path: new.get_submodule(run.path) for run in runs}
    owners = {path: new.get_submodule(path.rpartition(".")[0]) for path in containers}
    for path, container in containers.items():
        made = {
            run.first: _made(container, run, gamma, init_speed, mode)
            for run in runs
            if run.path == path
        }
        gather(container, made)
        if isinstance(owners[path], nn.TransformerEncoder):
            _switch_nested_tensors(owners[path], off=True)
    new.momentum_report = MomentumReport(float(gamma), tuple(runs), tuple(kept))
    return new


def from_momentum(model: nn.Module, *, copy: bool = True) -> nn.Module:
    """``model`` without momentum: the inverse of :func:`to_momentum`, with the parameters of now.

    A :class:`MomentumNet` that :func:`to_momentum` did not make becomes an nn.Sequential of its
    functions, each as x + f(x) unless its skip connection is inside.

    Arguments:
        model: a module with momentum networks in it, or one itself.
        copy: as of :func:`to_momentum`.

    Raises:
        InvalidArgumentError: ``model`` has no MomentumNet, or one with an initial speed, which a
            residual network cannot have.
    """
    _check_module(model)
    nets = [(path, m) for path, m in model.named_modules() if isinstance(m, MomentumNet)]
    if not nets:
        raise InvalidArgumentError(f"{type(model).__name__} has no MomentumNet to convert")
    for path, net in nets:
        if net.init_speed is not None:
            raise InvalidArgumentError(
                f"{path or 'the model'} has an initial speed, which a residual network cannot "
                "have: set its init_speed to None first, to go without"
            )
    new = _copied(model, copy)
    sequences: dict[nn.Module, nn.Sequential] = {}
    for module in list(new.modules()):
        if isinstance(module, nn.TransformerEncoder):
            _switch_nested_tensors(module, off=False)
        if any(isinstance(child, MomentumBlocks) for child in module._modules.values()):
            spread(module)
        for name, child in module._modules.items():
            if isinstance(child, MomentumNet):
                module._modules[name] = sequences.setdefault(child, _sequence(child))
        vars(module).pop("momentum_report", None)
    return _sequence(new) if isinstance(new, MomentumNet) else new


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _copied(model: nn.Module, tensors: bool) -> nn.Module:
    """New modules, with new parameters and buffers or with the very same ones."""
    same = () if tensors else chain(model.parameters(), model.buffers())
    return copying.deepcopy(model, {id(tensor): tensor for tensor in same})


def _made(
    container: Container, run: Run, gamma: float, init_speed: float | Speed, mode: str
) -> MomentumBlocks:
    children = list(container._modules.items())[run.first : run.last + 1]
    names, blocks = zip(*children, strict=True)
    speed = init_speed(blocks) if callable(init_speed) else 0
    return MomentumBlocks(blocks, names, gamma, speed, mode)


def _sequence(net: MomentumNet) -> nn.Sequential:
    return nn.Sequential(*(Residual(f) if net.residual else f for f in net.functions))


def _switch_nested_tensors(encoder: nn.TransformerEncoder, off: bool) -> None:
    """They take the encoder into the parts of its first layer, which are not where they were."""
    if off:
        encoder.nested_tensor_before = encoder.use_nested_tensor
        encoder.use_nested_tensor = False
    elif hasattr(encoder, "nested_tensor_before"):
        encoder.use_nested_tensor = encoder.nested_tensor_before
        del encoder.nested_tensor_before
