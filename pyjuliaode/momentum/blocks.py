"""Residual blocks of a model run as one momentum network, and as what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .net import MomentumNet

Container = nn.Sequential | nn.ModuleList


class MomentumBlocks(MomentumNet):
    """The momentum network of consecutive blocks of a container, skip connections inside.

    Arguments:
        blocks: the modules.
        names: of the blocks in the container that they come from.
        gamma, init_speed, mode: as of :class:`MomentumNet`.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        names: Sequence[str],
        gamma: float,
        init_speed: float | nn.Module,
        mode: str,
    ):
        super().__init__(blocks, gamma, init_speed, mode, residual=False)
        self.names = tuple(names)

    @property
    def self_attn(self) -> nn.Module:
        """Of the first block: nn.TransformerEncoder and Decoder ask it what ``batch_first`` is."""
        return self.functions[0].self_attn


class Residual(nn.Module):
    """x + f(x).

    Arguments:
        function: f(x, *args, **kwargs) -> a tensor of the shape of x.
    """

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Of the shape of x."""
        return x + self.function(x, *args, **kwargs)


def gather(container: Container, runs: Mapping[int, MomentumBlocks]) -> None:
    """Put every run in place of its blocks; the keys are the positions of their first ones.

    Children of an nn.Sequential keep their names, those of an nn.ModuleList are numbered anew: it
    finds them by number.
    """
    children: list[tuple[str, nn.Module]] = []
    end = 0
    for i, (name, child) in enumerate(container._modules.items()):
        if i in runs:
            child, end = runs[i], i + runs[i].depth
        if i in runs or i >= end:
            children.append((name, child))
    _set_children(container, children)
    container._register_load_state_dict_pre_hook(rename_keys, with_module=True)


def spread(container: Container) -> None:
    """The inverse of :func:`gather`."""
    children: list[tuple[str, nn.Module]] = []
    for name, child in container._modules.items():
        if isinstance(child, MomentumBlocks):
            children += zip(child.names, child.functions, strict=True)
        else:
            children.append((name, child))
    _set_children(container, children)
    hooks = container._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if hook.hook is rename_keys]:
        del hooks[key]


def _set_children(container: Container, children: Sequence[tuple[str, nn.Module]]) -> None:
    if isinstance(container, nn.ModuleList):
        children = [(str(i), child) for i, (_, child) in enumerate(children)]
    # not by del container[i], which would give the others new names
    container._modules.clear()
    container._modules.update(children)


def rename_keys(container: Container, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before the state of the container is loaded: keys as of the original model become its own."""
    runs = [name for name, c in container._modules.items() if isinstance(c, MomentumBlocks)]
    own = tuple(f"{prefix}{name}.functions." for name in runs)
    if any(key.startswith(own) for key in state_dict):
        return
    moves, renamed = _moves(container), {}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name, dot, rest = key[len(prefix) :].partition(".")
        if name in moves and dot:
            renamed[f"{prefix}{moves[name]}.{rest}"] = state_dict.pop(key)
    state_dict.update(renamed)  # not one by one: a new key may be an old one of another child


def _moves(container: Container) -> dict[str, str]:
    """Where the children of the original container are now."""
    moves: dict[str, str] = {}
    for name, child in container._modules.items():
        if isinstance(child, MomentumBlocks):
            moves.update((old, f"{name}.functions.{k}") for k, old in enumerate(child.names))
        else:
            old = str(len(moves)) if isinstance(container, nn.ModuleList) else name
            moves[old] = name
    return moves
