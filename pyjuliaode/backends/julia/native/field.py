"""Tapes in use: made once for a module and a shape, checked against torch, dropped when the module
is no longer what it was.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ....adjoints.checks import KEEP
from ....autocast import AutocastField
from ....errors import UnsupportedError
from ....problem import Problem
from ....rhs import RHS, PerFunction
from ...fingerprint import Fingerprint, Kinds, hooked, same_params
from ..runtime import Runtime
from ..workspace import acquire, give_back
from .builder import Untranslatable
from .tape import Tape
from .translate import translate

# Relative to the largest number of a result: rounding in another order, of sums of any length.
_AGREEMENT = {torch.float64: 1e-11, torch.float32: 1e-4}
# Measured: with more weights than the second-level cache holds, or where torch has several threads
# for much work, the callbacks' matrix products are quicker than one thread here.
_MOST_WEIGHTS, _MOST_WORK = 2**16, 2**22
_fields = PerFunction()


class NativeUnchanged:
    """The tensors of a tape as they were: all that it reads, at addresses that Julia holds."""

    def __init__(self, native: NativeField):
        self.native, self.versions = native, native.versions()

    def changes(self) -> list[str]:
        """What was written to, in words."""
        now = self.native.versions()
        pairs = zip(self.native._tensors, self.versions, now, strict=True)
        return [f"a tensor of shape {tuple(x.shape)} was changed" for x, a, b in pairs if a != b]

    def check(self) -> int:
        """Raise where a tensor is not what it was; it takes no evaluations.

        Raises:
            UnsupportedError: says what changed.
        """
        if changes := self.changes():
            raise UnsupportedError(
                f"since the solve whose gradient is asked for {', '.join(changes)}. {KEEP}"
            )
        return 0


class NativeField:
    """A module's tape in Julia, with what it was made of."""

    def __init__(self, runtime: Runtime, problem: Problem, tape: Tape):
        self._tensors = [tensor for tensor, _ in tape.tensors]
        self._kinds = Kinds(self._tensors)  # contiguous, as Julia takes them
        self._numbers = tape.numbers
        self._seen = Fingerprint(problem.func)
        self.params = problem.params
        self._weights, self._work = tape.weights, tape.work
        self.position_first = tape.position_first
        self._all = problem.explicit_params is None
        starts = {id(p): 0 for p in problem.params}
        offset = 0
        for p in problem.params:
            starts[id(p)] = offset
            offset += p.numel()
        listed = [(first, i, x.numel()) for i, (x, first) in enumerate(tape.tensors)]
        wanted = [(first, starts[id(x)], x.numel()) for x, first in tape.tensors if id(x) in starts]
        ops = [*tape.before_time, *tape.timely, *tape.ops]
        header = [
            *(len(tape.before_time), len(tape.timely), len(tape.ops), len(tape.table)),
            *(len(listed), len(wanted), tape.later, tape.scalars, tape.features, *tape.shape),
            *(tape.result.at, tape.result.first),
        ]
        arrays = [
            _array(header),
            _array([x for op in ops for x in op.numbers()]),
            _array(tape.table, torch.int32),
            _array([x for triple in (*listed, *wanted) for x in triple]),
            _array([x for op in ops for x in (op.a, op.b)], torch.float64),
        ]
        with runtime.errors():
            self.id = int(runtime.tape(*(a.data_ptr() for a in arrays), problem.y0.element_size()))
        weakref.finalize(self, runtime.forgotten.append, self.id).atexit = False

    def current(self, problem: Problem) -> bool:
        """Whether the module and its parameters are still those of the tape; if so the problem
        need not look for them.
        """
        if not all(x.unchanged() for x in (self._seen, self._kinds, self._numbers)):
            return False
        return same_params(problem, self.params, self._all)

    def versions(self) -> list[tuple[int, int]]:
        """What tells that a tensor was written to, or given other memory."""
        return [(0 if x.is_inference() else x._version, x.data_ptr()) for x in self._tensors]

    def pays(self) -> bool:
        """Whether it is quicker than callbacks are with torch's threads."""
        alone = torch.get_num_threads() == 1
        return self._weights <= _MOST_WEIGHTS and (alone or self._work <= _MOST_WORK)

    def addresses(self) -> ctypes.Array:
        """Where the tensors lie now."""
        return (ctypes.c_size_t * len(self._tensors))(*map(Tensor.data_ptr, self._tensors))


def _array(values: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values or [0], dtype=dtype, device="cpu")


def recall(problem: Problem) -> NativeField | None:
    """The tape that the problem's field had in an earlier solve, if it still holds."""
    known = _fields.get(problem.func, _key(problem))
    return known if isinstance(known, NativeField) and known.current(problem) else None


def _key(problem: Problem) -> tuple[object, ...]:
    state = (problem.structure.is_tuple, problem.structure.shapes, problem.y0.dtype)
    return (*state, torch.get_default_dtype())


def native_field(runtime: Runtime, problem: Problem) -> NativeField | str:
    """A tape of the problem's field, or why it has none."""
    func, key = problem.func, _key(problem)
    known = _fields.get(func, key)
    if isinstance(known, _Refused) and known.seen.unchanged():
        return known.reason
    if isinstance(func, AutocastField):
        return "torch.autocast is on"
    if not isinstance(func, nn.Module):
        return "func is no torch.nn.Module, so changes of what it uses are not seen"
    if hooked(func):
        return "the module has hooks, which would not be called"
    if any(isinstance(part, _BatchNorm) and part.training for part in func.modules()):
        return "batch normalisation in training mixes the samples of the batch; call eval()"
    if problem.structure.is_tuple:
        return "the state is a tuple of tensors"
    try:
        made: NativeField | _Refused = _made(runtime, problem)
    except Untranslatable as error:
        made = _Refused(str(error), Fingerprint(func))
    _fields.put(func, key, made)
    return made if isinstance(made, NativeField) else made.reason


class _Refused:
    def __init__(self, reason: str, seen: Fingerprint):
        self.reason, self.seen = reason, seen


def _made(runtime: Runtime, problem: Problem) -> NativeField:
    func, rhs = problem.func, RHS(problem)
    t, y = rhs.time(problem.times[0]), problem.y0.detach().view(problem.structure.shapes[0])
    with torch.no_grad():
        rhs.value(t, y)  # what a first call fills (caches of libraries) is no change by the next
    before = Fingerprint(func)
    tape = translate(func, t, y, before.holds)
    if not before.unchanged():
        raise Untranslatable("calling the module changes its attributes, or a global")
    listed = {id(p) for p in problem.params}
    if problem.explicit_params is None and any(
        x.requires_grad and id(x) not in listed for x, _ in tape.tensors
    ):
        raise Untranslatable("it depends on a tensor with a gradient that is no parameter of it")
    native = NativeField(runtime, problem, tape)
    _check(runtime, problem, native)
    return native


def _check(runtime: Runtime, problem: Problem, native: NativeField) -> None:
    """Raise where value or products differ from torch's, at the start and at a random state."""
    y0, times = problem.y0.detach(), problem.times
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(y0.shape, dtype=y0.dtype, generator=generator)
    cotangent = torch.randn(y0.shape, dtype=y0.dtype, generator=generator)
    workspace = acquire(runtime, problem)
    try:
        rhs = workspace.bind(problem, 1.0)
        with runtime.errors():
            tensors = native.addresses()
            runtime.attach(workspace.id, native.id, ctypes.addressof(tensors), 0)
        for t, y in ((times[0], y0), (times[-1], y0 + noise * (1 + y0.abs().mean()))):
            if t in (float("inf"), -float("inf")):
                t = times[0] + 1.0
            value, gu, gp = rhs.vjp(t, y, cotangent)
            workspace.u.copy_(y)
            workspace.lam.copy_(cotangent)
            with runtime.errors():
                runtime.probe(workspace.id, t)
            flat = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(problem.params, gp, strict=True)
            ]
            wanted = torch.cat([g.reshape(-1) for g in flat]) if flat else y.new_zeros(1)
            pairs: list[tuple[str, Tensor, Tensor | None]] = [
                ("value", workspace.du, value),
                ("product with df/dy", workspace.gu, gu),
                ("product with df/dparams", workspace.gp, wanted),
            ]
            for what, found, expected in pairs:
                _compare(what, found, torch.zeros_like(found) if expected is None else expected)
    finally:
        with runtime.errors():
            runtime.attach(workspace.id, 0, 0, 0)
        give_back(workspace)


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    if torch.equal(found.isfinite(), expected.isfinite()):
        finite = expected.isfinite()
        size = float(expected[finite].abs().max()) if bool(finite.any()) else 0.0
        off = float((found[finite] - expected[finite]).abs().max()) if bool(finite.any()) else 0.0
        if off <= _AGREEMENT[found.dtype] * (size + 1e-30):
            return
    raise Untranslatable(f"its {what} came out otherwise than torch's")
