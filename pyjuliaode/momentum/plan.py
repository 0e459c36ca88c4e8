"""Which blocks of a model :func:`to_momentum` converts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from ..errors import InvalidArgumentError, unknown_name
from .blocks import Container
from .net import MomentumNet
from .report import Kept, Run
from .structure import Finding, examine

_SHOWN = 8  # reasons in an error message


def make(model: nn.Module, layers: str | Sequence[str] | None) -> tuple[list[Run], list[Kept]]:
    """The runs of blocks to convert, and what is kept beside them.

    Raises:
        InvalidArgumentError: a path in ``layers`` leads nowhere, or to no container; there is
            nothing to convert in it, or in the whole model.
    """
    if layers is None:
        return _by_structure(model)
    paths = [layers] if isinstance(layers, str) else list(layers)
    if not paths:
        raise InvalidArgumentError(
            "layers must name at least one container, got none; None finds them by structure"
        )
    runs, kept = [], []
    named = {_named(model, path): path for path in paths}  # one may have several names
    for container, path in named.items():
        found, rest = _inspect(path, container, trusting=True)
        if not found:
            raise InvalidArgumentError(f"no residual block in layers {path!r}: {_reasons(rest)}")
        runs, kept = runs + found, kept + rest
    return runs, kept


def _by_structure(model: nn.Module) -> tuple[list[Run], list[Kept]]:
    runs: list[Run] = []
    kept: list[Kept] = []
    others: list[Kept] = []
    taken: list[str] = []  # paths of converted blocks, into which nobody looks
    for path, container in _containers(model):
        if path.startswith(tuple(taken)):
            continue
        found, rest = _inspect(path, container, trusting=False)
        if not found:
            others += rest
            continue
        runs, kept = runs + found, kept + rest
        names = list(container._modules)
        for run in found:
            taken += [_join(path, name) + "." for name in names[run.first : run.last + 1]]
    if not runs:
        why = _reasons(others) or (
            "it has no nn.Sequential with children, nn.TransformerEncoder or nn.TransformerDecoder"
        )
        raise InvalidArgumentError(
            f"no residual block found in {type(model).__name__}: {why}; an nn.ModuleList is looked "
            "into where layers names it"
        )
    return runs, kept


def _containers(model: nn.Module) -> Iterator[tuple[str, Container]]:
    """Containers whose children are known to run one after another, outer ones first.

    An nn.ModuleList runs as its owner pleases: only the owners of torch are known.
    """
    for path, module in model.named_modules():
        if type(module).forward is nn.Sequential.forward:
            yield path, module
        if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
            yield _join(path, "layers"), module.layers


def _named(model: nn.Module, path: str) -> Container:
    known = dict(model.named_modules(remove_duplicate=False))
    containers = [name for name, m in known.items() if name and isinstance(m, Container)]
    if path not in known:
        raise unknown_name("container in layers", path, containers)
    module = known[path]
    if not isinstance(module, Container):
        near = [name for name in containers if name.startswith(f"{path}.")]
        hint = f"; it has {', '.join(near[:_SHOWN])}" if near else ""
        raise InvalidArgumentError(
            f"layers {path!r} must be an nn.Sequential or an nn.ModuleList, got "
            f"{type(module).__name__}{hint}"
        )
    return module


def _inspect(path: str, container: Container, trusting: bool) -> tuple[list[Run], list[Kept]]:
    """The maximal runs of residual blocks of a container, and its other children.

    A single block is a run too: momentum damps it as the others, and mode "reversible" does
    without the activations inside it.
    """
    runs: list[Run] = []
    kept: list[Kept] = []
    start: int | None = None
    children = list(container._modules.items())
    for i, (name, child) in enumerate([*children, ("", None)]):
        finding = _finding(child)
        if finding.residual or (finding.residual is None and trusting):
            start = i if start is None else start
            continue
        if start is not None:
            kinds = dict.fromkeys(type(block).__name__ for _, block in children[start:i])
            runs.append(Run(path, start, i - 1, ", ".join(kinds)))
            start = None
        if child is not None:
            kept.append(Kept(_join(path, name), type(child).__name__, finding.reason))
    return runs, kept


def _finding(child: nn.Module | None) -> Finding:
    if child is None:
        return Finding(False)
    if isinstance(child, MomentumNet):
        return Finding(False, "is a momentum network already")
    return examine(child)


def _reasons(kept: Sequence[Kept]) -> str:
    said = [f"{block.path} ({block.kind}): {block.reason}" for block in kept[:_SHOWN]]
    rest = len(kept) - len(said)
    return "; ".join(said) + (f"; and {rest} more" if rest > 0 else "")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
