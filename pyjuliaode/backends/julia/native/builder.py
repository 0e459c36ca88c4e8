"""Builder: operations on names of numbers, as a Tape.

Every tensor is followed as a tensor of *names* of its shape: a name >= 0 is feature * B + sample, a
name -k the k-th scalar (the time, constants, parameters and what is made of these). Whatever only
moves numbers (views, slices, stacks, broadcasts) torch itself does to the names, and it costs
nothing later; what computes makes new names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .tape import CONVOLUTION, FUNCTIONS, LINEAR, SUM, Op, Operand, Tape

_MOST_FEATURES = 300_000
_LATER = 1 << 40  # names of scalars that depend on the time begin here until all others are known


class Untranslatable(Exception):
    """Why a field cannot be run natively."""


class MixedSamples(Exception):
    """An axis of the state along which the field is not one sample after the other."""


class Builder:
    """A tape in the making, for states of ``shape`` with the samples along ``axis`` (None: one).

    Attributes:
        tape: what has been built.
        dtype: of the state, and so of every number.
        time, state: names.
    """

    def __init__(self, shape: torch.Size, axis: int | None, dtype: torch.dtype):
        self.dtype, self._axis, self._shape = dtype, axis, shape
        self.batch = 1 if axis is None else shape[axis]
        before = 1 if axis is None else shape[:axis].numel()
        after = shape.numel() if axis is None else shape[axis + 1 :].numel()
        self.tape = Tape(shape=(before, self.batch, after), features=before * after)
        self._constants: dict[float, int] = {}
        self._tensors: dict[int, Tensor] = {}
        self._static = 1  # the time
        self._timely = 0
        features = torch.arange(before * after).view(before, 1, after)
        names = features * self.batch + torch.arange(self.batch).view(1, -1, 1)
        self.time, self.state = torch.tensor(-1), names.view(shape)

    def finish(self, found: Any) -> Tape:
        """The tape whose result is ``found``."""
        if not isinstance(found, Tensor) or found.shape != self._shape:
            raise Untranslatable("it does not return a tensor of the shape of its state")
        lane, (names,), _ = self._aligned(found)
        if self.batch > 1 and lane is not None and lane != self._axis:
            raise MixedSamples("its result mixes the samples of the batch")
        self.tape.result = self._operand(names)
        half = found.numel() // 2
        self.tape.position_first = torch.equal(
            found.reshape(-1)[:half], self.state.reshape(-1)[half:]
        )
        self._renumber()
        return self.tape

    def tensor(self, value: Tensor) -> Tensor:
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

    def constant(self, value: float) -> Tensor:
        """Name of a number, a 0-d tensor; constants are held like one-element tensors."""
        if value not in self._constants:
            held = torch.tensor(value, dtype=self.dtype)
            self._constants[value] = int(self.tensor(held))
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
                raise MixedSamples("it mixes the samples of the batch")
            found.append(names[0].reshape(-1))
        return lane, found, shape

    def _lane(self, operands: Sequence[Tensor], shape: torch.Size) -> int:
        for axis, size in enumerate(shape):
            if size != self.batch:
                continue
            along = torch.arange(size).view(-1, *(1 for _ in shape[axis + 1 :]))
            if all(bool(((x < 0) | (x % self.batch == along)).all()) for x in operands):
                return axis
        raise MixedSamples("it mixes the samples of the batch")

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
            raise MixedSamples("a linear map mixes the samples of the batch")
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
                raise MixedSamples("a convolution mixes the samples of the batch")
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

    def sum(self, x: Tensor, axes: Sequence[int], scale: float = 1.0) -> Tensor:
        """scale * the sum over axes, which remain with size 1."""
        axes = sorted(axis % x.ndim for axis in axes)
        ordered = x.movedim(axes, list(range(x.ndim - len(axes), x.ndim)))
        rest = ordered.shape[: x.ndim - len(axes)]
        ordered = ordered.reshape(*rest, -1)
        lane, (names,), shape = self._aligned(ordered)
        if lane == len(rest):
            raise MixedSamples("a sum mixes the samples of the batch")
        terms = shape[-1]
        found = self._emit(
            lane, [names], rest, len(names) // terms, code=SUM, inputs=terms, a=float(scale)
        )
        for axis in axes:
            found = found.unsqueeze(axis)
        return found

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
