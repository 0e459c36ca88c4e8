"""From a module's graph of torch operations to a Tape.

Every tensor of the graph is followed as a tensor of *names* of its shape: a name >= 0 is
feature * B + sample, a name -k the k-th scalar (the time, constants, parameters and what is made
of these). An operation that only moves numbers (views, slices, stacks, broadcasts) is applied to
the names by torch itself and costs nothing later; one that computes makes new names.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from .tape import ADD, CONVOLUTION, DIV, FUNCTIONS, LINEAR, MUL, Op, Operand, Tape

aten = torch.ops.aten
_MOST_FEATURES = 100_000
_LATER = 1 << 40  # names of scalars that depend on the time begin here until all others are known


class Untranslatable(Exception):
    """Why a field cannot be run natively."""


def translate(func: nn.Module, t: Tensor, y: Tensor) -> Tape:
    """The tape of ``func(t, y)`` at the shape and dtype of ``y``.

    Raises:
        Untranslatable: with the name of the operation, or what else stands in the way.
    """
    with torch.no_grad():
        try:
            graph = make_fx(func, pre_dispatch=True)(t, y)
        except Exception as error:  # whatever the user's module and the tracer make of each other
            raise Untranslatable(f"tracing it raised {type(error).__name__}: {error}") from error
    reason = None
    for axis in _axes(y):
        try:
            return _Translation(graph, y, axis).tape
        except _MixedSamples as error:
            reason = error
    raise Untranslatable(str(reason)) from reason


class _MixedSamples(Exception):
    """An axis of the state along which the field is not one sample after the other."""


def _axes(y: Tensor) -> list[int | None]:
    """Axes that may be the batch, the longest first; None: the state is one sample."""
    axes = [i for i in range(y.ndim - 1) if y.shape[i] > 1]
    return [*sorted(axes, key=lambda i: -y.shape[i]), None]


class _Translation:
    def __init__(self, graph: torch.fx.GraphModule, y: Tensor, axis: int | None):
        self.dtype = y.dtype
        self.batch = 1 if axis is None else y.shape[axis]
        before = 1 if axis is None else y.shape[:axis].numel()
        after = y.numel() if axis is None else y.shape[axis + 1 :].numel()
        self.tape = tape = Tape(shape=(before, self.batch, after), features=before * after)
        self._constants: dict[float, int] = {}
        self._tensors: dict[int, Tensor] = {}
        self._static = 1  # the time
        self._timely = 0
        features = torch.arange(before * after).view(before, 1, after)
        names = features * self.batch + torch.arange(self.batch).view(1, -1, 1)
        self._inputs = iter([torch.tensor(-1), names.view(y.shape)])
        values: dict[torch.fx.Node, Any] = {}
        for node in graph.graph.nodes:
            found = values[node] = self._value(graph, node, values)
        if not isinstance(found, Tensor) or found.shape != y.shape:
            raise Untranslatable("it does not return a tensor of the shape of its state")
        lane, (names,), _ = self._aligned(found)
        if self.batch > 1 and lane is not None and lane != axis:
            raise _MixedSamples("its result mixes the samples of the batch")
        tape.result = self._operand(names)
        self._renumber()

    # ---------------------------------------------------------------------------------- the graph

    def _value(self, graph: torch.fx.GraphModule, node: torch.fx.Node, values: dict) -> Any:
        if node.op == "placeholder":
            return next(self._inputs)
        if node.op == "get_attr":
            return self._tensor(getattr(graph, node.target))
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        if node.op == "output":
            return args[0]
        if node.target is operator.getitem:
            return args[0][args[1]]
        if node.target in _MOVES:
            return node.target(*args, **kwargs)
        if node.target in _SAME:
            return self._same(node, args[0])
        compute = _COMPUTES.get(node.target)
        if compute is None:
            raise Untranslatable(f"operation {node.target} has no native form")
        return compute(self, *args, **kwargs)

    def _same(self, node: torch.fx.Node, names: Tensor) -> Tensor:
        if node.meta["tensor_meta"].dtype != self.dtype:  # of the result
            raise Untranslatable(f"operation {node.target} changes the dtype")
        return names

    def _tensor(self, value: Tensor) -> Tensor:
        """Names of a parameter, a buffer or a constant tensor."""
        known = self._tensors.get(id(value))
        if known is None:
            if value.dtype != self.dtype or value.device.type != "cpu":
                raise Untranslatable(
                    f"it uses a tensor of {value.dtype} on {value.device}, and its state is "
                    f"{self.dtype} on cpu"
                )
            if not value.is_contiguous():
                raise Untranslatable("one of its tensors is not contiguous")
            self.tape.tensors.append((value, self._static))
            known = -torch.arange(self._static + 1, self._static + 1 + value.numel())
            known = self._tensors[id(value)] = known.view(value.shape)
            self._static += value.numel()
        return known

    def _constant(self, value: float) -> Tensor:
        """Name of a number, a 0-d tensor; constants are held like one-element tensors."""
        if value not in self._constants:
            held = torch.tensor(value, dtype=self.dtype)
            self._constants[value] = int(self._tensor(held))
        return torch.tensor(self._constants[value])

    # ------------------------------------------------------------------------------------ operands

    def _aligned(self, *operands: Tensor) -> tuple[int | None, list[Tensor], torch.Size]:
        """Operands at one shape, without the batch: its axis (None: no samples), names, shape.

        Names of samples come back as feature numbers.
        """
        spread = torch.broadcast_tensors(*operands)
        shape = spread[0].shape
        of_samples = [bool((x >= 0).any()) for x in spread]
        if not any(of_samples):
            return None, [x.reshape(-1) for x in spread], shape
        if self.batch == 1:
            return None, [x.reshape(-1) for x in spread], shape
        lane = self._lane(spread, shape)
        found = []
        for x in spread:
            x = x.movedim(lane, 0)
            names = torch.where(x >= 0, x.div(self.batch, rounding_mode="floor"), x)
            if bool((names != names[:1]).any()):
                raise _MixedSamples("it mixes the samples of the batch")
            found.append(names[0].reshape(-1))
        return lane, found, shape

    def _lane(self, operands: Sequence[Tensor], shape: torch.Size) -> int:
        for axis, size in enumerate(shape):
            if size != self.batch:
                continue
            along = torch.arange(size).view(-1, *(1 for _ in shape[axis + 1 :]))
            if all(bool(((x < 0) | (x % self.batch == along)).all()) for x in operands):
                return axis
        raise _MixedSamples("it mixes the samples of the batch")

    def _operand(self, names: Tensor) -> Operand:
        listed = names.tolist()
        first = listed[0]
        if first >= 0 and listed == list(range(first, first + len(listed))):
            return Operand(0, first)
        at = len(self.tape.table)
        self.tape.table += listed
        return Operand(at, -1)

    def _emit(
        self,
        lane: int | None,
        operands: list[Tensor],
        shape: Sequence[int],
        n: int,
        geometry: Sequence[int] = (),
        **parts: Any,
    ) -> Tensor:
        """An operation whose result has ``shape``, n numbers of it in each sample.

        ``geometry``, of a convolution, takes the place of a second operand.
        """
        scalar = all(bool((x < 0).all()) for x in operands)
        if scalar:
            timely = any(bool(((x == -1) | (x <= -_LATER)).any()) for x in operands)
            out = _LATER + self._timely if timely else self._static
            names = -torch.arange(out + 1, out + 1 + n).view(tuple(shape))
            if timely:
                self._timely += n
            else:
                self._static += n
            operands = [-x - 1 for x in operands]  # numbers of the arena S itself
        else:
            out = self.tape.features
            self.tape.features += n
            if self.tape.features > _MOST_FEATURES:
                raise Untranslatable(f"it has more than {_MOST_FEATURES} numbers in a sample")
            rest = [s for i, s in enumerate(shape) if i != lane]
            names = torch.arange(out, out + n).view(rest)
            if lane is None:
                names = names.view(tuple(shape))
            else:
                along = torch.arange(self.batch).view(-1, *(1 for _ in rest))
                names = (names[None] * self.batch + along).movedim(0, lane)
        x, y = (*(self._operand(o) for o in operands), Operand(0, 0))[:2]
        if geometry:
            y = Operand(len(self.tape.table), -1)
            self.tape.table += geometry
        op = Op(n=n, out=out, x=x, y=y, **parts)
        tape = self.tape
        (tape.ops if not scalar else tape.timely if timely else tape.before_time).append(op)
        return names

    # ---------------------------------------------------------------------------------- operations

    def unary(self, name: str, x: Tensor, a: float = 0.0, b: float = 0.0) -> Tensor:
        return self._elementwise(FUNCTIONS[name], (x,), float(a), float(b))

    def binary(self, code: int, x: Tensor, y: Tensor, a: float = 1.0) -> Tensor:
        return self._elementwise(code, (x, y), float(a))

    def _elementwise(
        self, code: int, operands: Sequence[Tensor], a: float, b: float = 0.0
    ) -> Tensor:
        lane, operands, shape = self._aligned(*operands)
        if all(bool((x < 0).all()) for x in operands):  # what was spread out is computed once
            once, where = torch.stack(operands).unique(dim=1, return_inverse=True)
            names = self._emit(
                None, list(once), (once.shape[1],), once.shape[1], code=code, a=a, b=b
            )
            return names[where].view(shape)
        return self._emit(lane, operands, shape, len(operands[0]), code=code, a=a, b=b)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        weights = self._run(weight)
        biases = -1 if bias is None else self._run(bias)
        lane, (names,), shape = self._aligned(x)
        if lane == len(shape) - 1:
            raise _MixedSamples("a linear map mixes the samples of the batch")
        outputs, inputs = weight.shape
        if bool((names < 0).all()):
            once, where = names.view(-1, inputs).unique(dim=0, return_inverse=True)
            if len(once) < len(where):
                found = self.linear(once, weight, bias)
                return found[where].view(*shape[:-1], outputs)
        step = -1 if int(names[0]) < 0 else 1
        if bool((names.diff() != step).any()):  # its kernel reads one run
            copied = self._copied(lane, names, shape)
            _, (names,), _ = self._aligned(copied)
        n = len(names) // inputs * outputs
        linear = {"inputs": inputs, "outputs": outputs, "weight": weights, "bias": biases}
        return self._emit(lane, [names], (*shape[:-1], outputs), n, code=LINEAR, **linear)

    def convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
    ) -> Tensor:
        """Names (B, C, H, W), a weight (O, C, kH, kW); zeros before and after on both axes."""
        lane, (names,), shape = self._aligned(x)
        if lane != 0:
            if lane is not None:
                raise _MixedSamples("a convolution mixes the samples of the batch")
            if shape[0] > 1:
                return torch.cat(
                    [self.convolution(y, weight, bias, padding, dilation) for y in x.split(1)]
                )
        outputs, channels, *kernel = weight.shape
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(max(p) > r for p, r in zip(padding, reach, strict=True)):
            raise Untranslatable("a convolution is padded beyond its kernel")
        size = list(shape[2:])
        out = [s + sum(p) - r for s, p, r in zip(size, padding, reach, strict=True)]
        if kernel == [1, 1]:  # one row
            size = out_size = [1, size[0] * size[1]]
        else:
            out_size = out
        return self._emit(
            lane,
            [names],
            (shape[0], outputs, *out),
            outputs * out[0] * out[1],
            geometry=[channels, *size, *kernel, *(p[0] for p in padding), *dilation, *out_size],
            code=CONVOLUTION,
            inputs=channels * kernel[0] * kernel[1],
            outputs=outputs,
            weight=self._run(weight),
            bias=-1 if bias is None else self._run(bias),
        )

    def _copied(self, lane: int | None, names: Tensor, shape: Sequence[int]) -> Tensor:
        """The same numbers in one run, in the order of ``names``."""
        return self._emit(lane, [names], shape, len(names), code=FUNCTIONS["affine"], a=1.0)

    def _run(self, names: Tensor) -> int:
        """The first scalar, from 0, of the weight or bias of a linear map."""
        listed = names.reshape(-1)
        if bool((listed >= 0).any()):
            raise Untranslatable("the weight of a linear map depends on the state")
        if bool((listed.diff() != -1).any()):
            listed = self._copied(None, listed, (len(listed),))
        first = int(listed[0])
        if first == -1 or first <= -_LATER:
            raise Untranslatable("the weight of a linear map depends on the time")
        return -first - 1

    def number(self, x: Any) -> Any:
        """A Python number of a tensor argument that is one, or the argument."""
        return x if isinstance(x, Tensor) else float(x)

    # ---------------------------------------------------------------------------------------- end

    def _renumber(self) -> None:
        """Scalars that depend on the time, behind all others."""
        tape, shift = self.tape, _LATER - self._static
        tape.later, tape.scalars = self._static, self._static + self._timely

        def at(k: int) -> int:
            return k - shift if k >= _LATER else k

        def operand(x: Operand) -> Operand:
            return Operand(x.at, at(x.first))

        def moved(op: Op) -> Op:
            parts = {**vars(op), "out": at(op.out), "x": operand(op.x), "y": operand(op.y)}
            return Op(**parts)

        tape.table = [-at(-k - 1) - 1 if k < 0 else at(k) for k in tape.table]
        tape.timely = [moved(op) for op in tape.timely]


# -------------------------------------------------------------------------- what torch calls them

_MOVES = {
    getattr(getattr(aten, name), overload)
    for name, overloads in {
        "view": ("default",),
        "_unsafe_view": ("default",),
        "reshape": ("default",),
        "flatten": ("using_ints",),
        "unflatten": ("int",),
        "select": ("int",),
        "slice": ("Tensor",),
        "narrow": ("default",),
        "unbind": ("int",),
        "split": ("Tensor", "sizes"),
        "split_with_sizes": ("default",),
        "chunk": ("default",),
        "unsqueeze": ("default",),
        "squeeze": ("default", "dim", "dims"),
        "expand": ("default",),
        "expand_as": ("default",),
        "broadcast_to": ("default",),
        "permute": ("default",),
        "transpose": ("int",),
        "movedim": ("int", "intlist"),
        "t": ("default",),
        "numpy_T": ("default",),
        "mT": ("default",),
        "cat": ("default",),
        "concat": ("default",),
        "stack": ("default",),
        "repeat": ("default",),
        "flip": ("default",),
        "roll": ("default",),
        "view_as": ("default",),
        "reshape_as": ("default",),
    }.items()
    for overload in overloads
    if hasattr(getattr(aten, name), overload)
}
_SAME = {
    aten.clone.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
}


def _unary(name: str) -> Callable[..., Tensor]:
    return lambda tr, x: tr.unary(name, x)


def _add(tr: _Translation, x: Any, y: Any, *, alpha: float = 1.0) -> Tensor:
    x, y = tr.number(x), tr.number(y)
    if isinstance(y, float):
        return tr.unary("affine", x, 1.0, alpha * y)
    if isinstance(x, float):
        return tr.unary("affine", y, alpha, x)
    return tr.binary(ADD, x, y, alpha)


def _sub(tr: _Translation, x: Any, y: Any, *, alpha: float = 1.0) -> Tensor:
    return _add(tr, x, y, alpha=-alpha)


def _rsub(tr: _Translation, x: Any, y: Any, alpha: float = 1.0) -> Tensor:
    y = tr.number(y)
    if isinstance(y, float):
        return tr.unary("affine", x, -alpha, y)
    return tr.binary(ADD, y, x, -alpha)


def _mul(tr: _Translation, x: Any, y: Any) -> Tensor:
    x, y = tr.number(x), tr.number(y)
    if isinstance(y, float):
        return tr.unary("affine", x, y, 0.0)
    if isinstance(x, float):
        return tr.unary("affine", y, x, 0.0)
    if x is y or (x.shape == y.shape and torch.equal(x, y)):
        return tr.unary("power", x, 2.0)
    return tr.binary(MUL, x, y)


def _div(tr: _Translation, x: Any, y: Any) -> Tensor:
    x, y = tr.number(x), tr.number(y)
    if isinstance(y, float):
        return tr.unary("affine", x, 1.0 / y, 0.0)
    return tr.binary(DIV, x, y)


def _addcmul(tr: _Translation, x: Tensor, y: Tensor, z: Tensor, *, value: float = 1.0) -> Tensor:
    return tr.binary(ADD, x, _mul(tr, y, z), value)


def _addmm(tr: _Translation, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return tr.linear(x, weight.t(), bias)


def _matmul(tr: _Translation, x: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim != 2 or bool((weight >= 0).any()):
        raise Untranslatable("a product of two tensors is native with a matrix of parameters only")
    return tr.linear(x, weight.t())


def _convolution(
    tr: _Translation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """conv1d and conv2d, of a batch or of one image."""
    axes = weight.ndim - 2
    if x.ndim == axes + 1:
        parts = (weight, bias, stride, padding, dilation, groups)
        return _convolution(tr, x[None], *parts)[0]
    if set(_of_axes(stride, axes)) != {1}:
        raise Untranslatable("a convolution with a stride has no native form")
    dilation = _of_axes(dilation, axes)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if padding == "same":
        pads = [(r // 2, r - r // 2) for r in reach]
    else:
        pads = [(p, p) for p in _of_axes(0 if padding == "valid" else padding, axes)]
    if axes == 1:  # a row
        x, weight = x[:, :, None], weight[:, :, None]
        dilation, pads = [1, *dilation], [(0, 0), *pads]
    biases = [None] * groups if bias is None else bias.chunk(groups)
    found = [
        tr.convolution(part, w, b, pads, dilation)
        for part, w, b in zip(x.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
    ]
    out = torch.cat(found, 1)
    return out[:, :, 0] if axes == 1 else out


def _of_axes(value: Any, axes: int) -> list[int]:
    """One number for every axis."""
    listed = list(value) if isinstance(value, list | tuple) else [value]
    return listed * axes if len(listed) == 1 else listed


def _power(tr: _Translation, x: Tensor, exponent: float) -> Tensor:
    return tr.unary("power", x, exponent)


def _clamp(tr: _Translation, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low, high = (-torch.inf if low is None else low), (torch.inf if high is None else high)
    return tr.unary("clamp", x, low, high)


def _elu(
    tr: _Translation, x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> Tensor:
    if scale != 1.0 or input_scale != 1.0:
        raise Untranslatable("operation aten.elu with scales (SELU, CELU) has no native form")
    return tr.unary("elu", x, alpha)


def _dropout(tr: _Translation, x: Tensor, p: float, train: bool) -> Tensor:
    if train and p > 0:
        raise Untranslatable("dropout is random; call eval() first")
    return x


def _softplus(tr: _Translation, x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return tr.unary("softplus", x, beta, threshold)


def _gelu(tr: _Translation, x: Tensor, *, approximate: str = "none") -> Tensor:
    return tr.unary("gelu_tanh" if approximate == "tanh" else "gelu", x)


def _filled(value: float) -> Callable[..., Tensor]:
    def fill(tr: _Translation, like: Any, *_: Any, **__: Any) -> Tensor:
        shape = like.shape if isinstance(like, Tensor) else tuple(like)
        return tr._constant(value).expand(shape)

    return fill


def _full(tr: _Translation, like: Any, value: Any, **_: Any) -> Tensor:
    shape = like.shape if isinstance(like, Tensor) else tuple(like)
    return tr._constant(float(value)).expand(shape)


_COMPUTES: dict[Any, Callable[..., Tensor]] = {
    aten.linear.default: lambda tr, x, w, b=None: tr.linear(x, w, b),
    aten.addmm.default: _addmm,
    aten.mm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.add.Tensor: _add,
    aten.add.Scalar: _add,
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
    aten.rsub.Scalar: _rsub,
    aten.rsub.Tensor: _rsub,
    aten.mul.Tensor: _mul,
    aten.mul.Scalar: _mul,
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.addcmul.default: _addcmul,
    aten.pow.Tensor_Scalar: _power,
    aten.square.default: lambda tr, x: tr.unary("power", x, 2.0),
    aten.neg.default: lambda tr, x: tr.unary("affine", x, -1.0, 0.0),
    aten.clamp.default: _clamp,
    aten.clamp_min.default: lambda tr, x, low: _clamp(tr, x, low),
    aten.clamp_max.default: lambda tr, x, high: _clamp(tr, x, None, high),
    aten.hardtanh.default: lambda tr, x, low=-1.0, high=1.0: _clamp(tr, x, low, high),
    aten.relu.default: lambda tr, x: tr.unary("leaky_relu", x, 0.0),
    aten.leaky_relu.default: lambda tr, x, slope=0.01: tr.unary("leaky_relu", x, slope),
    aten.elu.default: _elu,
    aten.dropout.default: _dropout,
    aten.softplus.default: _softplus,
    aten.gelu.default: _gelu,
    aten.reciprocal.default: _unary("inv"),
    aten.ones_like.default: _filled(1.0),
    aten.zeros_like.default: _filled(0.0),
    aten.ones.default: _filled(1.0),
    aten.zeros.default: _filled(0.0),
    aten.full.default: _full,
    aten.full_like.default: _full,
    aten.scalar_tensor.default: lambda tr, value, **_: tr._constant(float(value)),
    **{
        getattr(aten, name).default: _unary(name)
        for name in ("tanh", "sigmoid", "silu", "exp", "log", "sqrt", "sin", "cos", "abs")
    },
}
