"""A function of a reversible network as the forward pass finds it, for its second calls."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import activation, pooling
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from ..graph import leaves, nodes
from ..problem import parameters_of
from .calls import AS_IT_IS, GENERATORS, Instead, refused, version

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_STANDARD = vars(nn.Module()).keys() - {"training"}
_FREEZING = threading.RLock()

# path of a module, its parameters or buffers, a name there, what it was, and its version
Entry = tuple[str, dict[str, Tensor], str, Tensor, int]

# modules of torch whose forward draws no random numbers, by the file that they are of
_DRAWS_NOTHING = {
    f"torch.nn.modules.{name}"
    for name in (
        *("linear", "conv", "batchnorm", "instancenorm", "normalization", "activation"),
        *("pooling", "padding", "flatten", "upsampling", "pixelshuffle", "container"),
    )
}
_DRAWS = (
    *(_DropoutNd, activation.RReLU, activation.MultiheadAttention),
    *(pooling.FractionalMaxPool2d, pooling.FractionalMaxPool3d),
)


class Function:
    """One of the functions, with what its calls have to know of it.

    Attributes:
        module: the function.
        k: the number of its first layer.
        params: its parameters that require gradients.
        may_draw: whether it may draw random numbers.

    Raises:
        InvalidArgumentError: it has hooks that a second call would call again.
    """

    def __init__(self, module: nn.Module, k: int):
        self.module, self.k = module, k
        self.params = [p for p in parameters_of(module) if p.requires_grad]
        self.may_draw = self._draws = closed = False
        self._parts = list(module.named_modules())
        self._norms: list[_NormBase] = []
        self._tensors: list[Entry] = []  # but for running statistics that training updates
        for path, part in self._parts:
            if part._forward_hooks or part._forward_pre_hooks:
                _refuse_hooks(module, k, path, part)
            draws = isinstance(part, _DRAWS)
            self._draws |= draws and part.training
            self.may_draw |= draws or type(part).__module__ not in _DRAWS_NOTHING
            closed |= "_orig_mod" in part._modules or isinstance(part, nn.SyncBatchNorm)
            skipped: tuple[str, ...] = ()
            if isinstance(part, _NormBase) and part.training:
                self._norms.append(part)
                skipped = STATISTICS
            for holder in (part._parameters, part._buffers):
                self._tensors += [
                    (path, holder, name, x, version(x))
                    for name, x in holder.items()
                    if x is not None and name not in skipped
                ]
        self._buffers = [entry for entry in self._tensors if not isinstance(entry[3], nn.Parameter)]
        # what a compiled function or a collective does is not seen from outside
        self._closed = closed and bool(self._norms)

    # ------------------------------------------------------------------------------ first calls

    def calling(self) -> contextlib.AbstractContextManager[Any]:
        """Around a first call: no thread disturbs it."""
        if self._closed:
            return _FREEZING
        return GENERATORS if self._draws else AS_IT_IS

    def check_buffers(self) -> None:
        """Raise where a first call has changed a buffer, but for running statistics.

        Raises:
            InvalidArgumentError: names it.
        """
        for name, _ in _changes(self._buffers):
            what = (
                f"changes its buffer {name!r} when it is called, so that it cannot be called "
                "again as it was; use mode='backprop'"
            )
            raise refused(self.module, self.k, what)

    def check_graph(self, out: Tensor, known: Sequence[Tensor], began: int) -> None:
        """Raise where a gradient of ``out`` would go to a tensor that is not known.

        Arguments:
            out: the value of a first call.
            known: the tensors to which gradients go.
            began: number of a node of the graph made just before the call.

        Raises:
            InvalidArgumentError: says what to do with it.
        """
        ids = {id(x) for x in known}
        for node in nodes(out, *(x for x in known if not x.is_leaf)):
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in ids:
                what = (
                    f"uses a tensor of shape {tuple(leaf.shape)} that requires a gradient and is "
                    "neither one of its parameters nor an argument: pass it to the network as an "
                    "argument, or use mode='backprop'"
                )
                raise refused(self.module, self.k, what)
            if node._sequence_nr() < began and _holds_tensors(node):
                what = (
                    "uses a tensor that was computed from its parameters before it was called, "
                    "and whose graph serves one call only: compute it in the function, pass it to "
                    "the network as an argument, or use mode='backprop'"
                )
                raise refused(self.module, self.k, what)

    # ----------------------------------------------------------------------------- second calls

    def note(self) -> None:
        """Remember the function as it is after the forward pass."""
        self._tensors = [(*entry[:4], version(entry[3])) for entry in self._tensors]
        self._attributes = [(path, vars(part), dict(vars(part))) for path, part in self._parts]

    def written(self) -> list[str]:
        """Parameters and buffers that are not what they were, in words."""
        return [f"{self._called(name)} {what}" for name, what in _changes(self._tensors)]

    def switched(self) -> list[str]:
        """Modes and other attributes that are not what they were, in words."""
        return [
            f"{self._called(path)}.{name} was {_shown(old)}, is {_shown(now.get(name))}"
            for path, now, before in self._attributes
            for name, old in before.items()
            if name not in _STANDARD and not _same(old, now.get(name))
        ]

    def stand_ins(self) -> list[tuple[Tensor, Tensor]]:
        """What a second call takes in place of tensors of the function.

        Of parameters with hooks, which are for the whole gradient, and of those that require none
        any more: others of the same memory. Of running statistics, which have been updated: copies.
        """
        hooked = [p for p in self.params if p._backward_hooks or not p.requires_grad]
        aliases = [(p, p.detach().requires_grad_()) for p in hooked]
        if self._closed:
            return aliases
        statistics = [m._buffers.get(name) for m in self._norms for name in STATISTICS]
        return aliases + [(x, x.clone()) for x in statistics if x is not None]

    def calling_again(
        self, stand_ins: Sequence[tuple[Tensor, Tensor]]
    ) -> contextlib.AbstractContextManager[Any]:
        """Around a second call: the function leaves its state as it is."""
        if self._closed:
            return self._frozen()
        return Instead(stand_ins) if stand_ins else AS_IT_IS

    def check_stand_ins(self, out: Tensor, stand_ins: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Raise where the value of a second call depends on parameters that have a stand-in.

        Raises:
            InvalidArgumentError: says so.
        """
        hidden = {id(old) for old, _ in stand_ins if isinstance(old, nn.Parameter)}
        if hidden and any(id(leaf) in hidden for leaf in leaves(out)):
            what = (
                "has a parameter with a hook, and is compiled or hands it to a function of its "
                "own: the hook would see parts of the gradient; use mode='backprop'"
            )
            raise refused(self.module, self.k, what)

    # --------------------------------------------------------------------------------- statistics

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """Within, normalisations of a closed function have no running statistics.

        What they return in training does not depend on these.
        """
        with _FREEZING:
            kept = [{name: m._buffers.get(name) for name in STATISTICS} for m in self._norms]
            try:
                for m in self._norms:
                    m._buffers.update(dict.fromkeys(STATISTICS))
                yield
            finally:
                for m, buffers in zip(self._norms, kept, strict=True):
                    m._buffers.update(buffers)

    def _called(self, path: str) -> str:
        return f"functions[{self.k}].{path}".rstrip(".")


def _changes(tensors: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """Names of those that are not what they were, and how."""
    for path, holder, name, old, was in tensors:
        now = holder.get(name)
        if now is not old:
            yield f"{path}.{name}".lstrip("."), "is another tensor"
        elif version(now) != was:
            yield f"{path}.{name}".lstrip("."), "has been modified by an inplace operation"


def _refuse_hooks(module: nn.Module, k: int, path: str, part: nn.Module) -> None:
    for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
        where = getattr(hook, "__module__", None) or type(hook).__module__
        if not where.startswith("torch."):  # torch's own make weights, or shard them
            what = (
                f"has a forward hook{f' on {path!r}' if path else ''}, which would be called again "
                "on the way back, and whose tensors get no gradient: remove it, or use "
                "mode='backprop'"
            )
            raise refused(module, k, what)


def _holds_tensors(node: Any) -> bool:
    """Whether a node of the graph keeps tensors, which its first backward pass sets free."""
    names = [name for name in dir(node) if name.startswith("_saved_")]
    saved = [getattr(node, "saved_tensors", ()), *(getattr(node, name) for name in names)]
    return any(isinstance(x, Tensor) for x in pytree.tree_leaves(saved))


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    plain = (bool, int, float, str)
    return isinstance(a, plain) and type(a) is type(b) and a == b


def _shown(x: Any) -> str:
    return repr(x) if isinstance(x, (bool, int, float, str, type(None))) else type(x).__name__
