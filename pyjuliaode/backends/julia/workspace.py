"""Workspaces: the vectors that torch and Julia share, and the callbacks that Julia calls."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor

from ...adjoints.checks import Witness
from ...errors import UnsupportedError
from ...problem import Problem
from ...rhs import RHS
from ..base import event_value
from .runtime import Runtime, translated

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_double)
PRECISION = {torch.float32: "Float32", torch.float64: "Float64"}
NO_POSITION = (
    "a Nyström method takes h' = v for granted, and the first half of what func returns is not "
    "the second half of its state (a subclass or a hook may have changed it); use another method"
)
_KEPT = 16  # idle workspaces
_KEPT_BYTES = 256 * 2**20  # and all of them together, but for the last

Key = tuple[int, int, torch.dtype, torch.device, bool]


class Workspace:
    """Flat vectors of N numbers (gp: of P) that torch owns and Julia sees, by DLPack.

    A callback reads ``u`` (and ``lam``), and writes ``du``, ``gu``, ``gp`` or ``jac``. It reports
    success by writing 1 to the first cell of ``status``: what an exception leaves behind in a C
    callback is garbage, so nothing is returned. Exceptions are kept in ``error``.
    """

    def __init__(self, runtime: Runtime, key: Key):
        n, p, dtype, device, jacobian = key
        self.runtime, self.key = runtime, key

        def vector(size: int) -> Tensor:
            return torch.zeros(max(size, 1), dtype=dtype, device=device)

        with torch.inference_mode(False):  # made there they could be written there only
            self.u, self.du, self.lam, self.gu = (vector(n) for _ in range(4))
            self.gp, self.jac = vector(p), vector(n * n if jacobian else 0)
        shared = (self.u, self.du, self.lam, self.gu, self.gp, self.jac)
        self.bytes = sum(x.numel() * x.element_size() for x in shared)
        self.status = (ctypes.c_int32 * 2)()
        self.error: BaseException | None = None
        self.rhs: RHS | None = None
        self._event_fn: Callable[..., Tensor] | None = None
        # the order of PyJuliaODE.Callbacks
        bodies = (
            *(self._rhs, self._vjp_u, self._vjp_p),
            *(self._vjp, self._jacobian, self._event, self._poll),
        )
        self._callbacks = [self._guarded(body) for body in bodies]
        addresses = [ctypes.cast(c, ctypes.c_void_p).value for c in self._callbacks]
        with runtime.errors():
            self.id = runtime.workspace(
                *(PRECISION[dtype], device.type, *shared),
                *(p, ctypes.addressof(self.status), *addresses),
            )

    def bind(
        self,
        problem: Problem,
        sign: float,
        event_fn: Callable[..., Tensor] | None = None,
        nystrom: bool = False,
    ) -> RHS:
        """Serve this problem until the next one; Julia's time is ``sign`` times the user's.

        ``nystrom``: the first half of the slopes is not read, so that here it is looked at.
        """
        self._nystrom = nystrom
        self.rhs, self.sign, self._event_fn = RHS(problem), sign, event_fn
        self.error = self._first = self._last = None
        self._write = self._gp = None
        return self.rhs

    def serve_products(self, problem: Problem) -> RHS:
        """From now on products of leaves of the tensors' values, see :class:`RHS`."""
        self.rhs, self._write, self._gp = RHS(problem, backward=True), None, None
        return self.rhs

    def witnesses(self) -> list[Witness]:
        """The field where it was first called, and where it was last, if nothing has come since."""
        found = [] if self._first is None else [self._first]
        if self._last is not None:
            found.append((self._last, self.u.clone(), self.du * self.sign))
        return found

    def unbind(self) -> None:
        """Let go of the user's module; in any thread."""
        self.rhs = self._event_fn = self._write = self._gp = self._first = None

    def _guarded(self, body: Callable[[float], None]) -> Callable[[float], None]:
        status = self.status

        def callback(t: float) -> None:
            try:
                body(t)
                status[0] = 1
            except BaseException as error:  # KeyboardInterrupt too; raised again after the solve
                status[0] = 0
                self.error = error

        return CALLBACK(callback)

    # The state is copied for the user's module, which may keep it: the vector is overwritten.

    def _rhs(self, t: float) -> None:
        if self._write is None:
            self._write = self.rhs.writer(self.rhs.destinations(self.du.unsqueeze(0))[0], self.u)
        at = self.sign * t
        self._write(at)
        if self._first is None:
            self._first = (at, self.u.clone(), self.du.clone())
        self._last = at
        if self._nystrom:
            half = self.u.numel() // 2
            same = torch.equal(self.du[:half], self.u[half:])
            if not same and bool(self.u.isfinite().all()):
                raise UnsupportedError(NO_POSITION)
        if self.sign < 0:
            self.du.neg_()

    def _vjp_u(self, t: float) -> None:
        _, gu, _ = self.rhs.vjp(self.sign * t, self.u.clone(), self.lam, params=False)
        self._put(self.gu, gu)

    def _vjp_p(self, t: float) -> None:
        _, _, gp = self.rhs.vjp(self.sign * t, self.u.clone(), self.lam, state=False)
        self._put_params(gp)

    def _vjp(self, t: float) -> None:
        du, gu, gp = self.rhs.vjp(self.sign * t, self.u.clone(), self.lam)
        torch.mul(du, self.sign, out=self.du)
        self._put(self.gu, gu)
        self._put_params(gp)

    def _jacobian(self, t: float) -> None:
        self._last = None  # the vectors hold other states from now on
        jacobian = self.rhs.jacobian(self.sign * t, self.u.clone())
        self.jac.view_as(jacobian).copy_(jacobian.t()).mul_(self.sign)  # column-major there

    def _event(self, t: float) -> None:
        self._last = None
        t, rhs = self.rhs.time(self.sign * t), self.rhs
        values = event_value(self._event_fn(t, rhs.structure.unpack(self.u.clone())))
        self.gu[: values.numel()].copy_(values)

    def _poll(self, _: float) -> None:
        """Run by Julia where nothing else of Python is, for the sake of Ctrl-C."""

    def _put(self, target: Tensor, value: Tensor | None) -> None:
        if value is None:
            target.zero_()
        else:
            torch.mul(value, self.sign, out=target)

    def _put_params(self, grads: tuple[Tensor | None, ...]) -> None:
        if self._gp is None:
            params = self.rhs.inputs
            pieces = self.gp.split([p.numel() for p in params]) if params else ()
            self._gp = [g.view(p.shape) for g, p in zip(pieces, params, strict=True)]
        if grads and all(g is not None for g in grads):
            torch._foreach_copy_(self._gp, grads)
        else:
            for target, g in zip(self._gp, grads, strict=True):
                if g is None:
                    target.zero_()
                else:
                    target.copy_(g)
        if self.sign < 0:
            self.gp.neg_()

    def calling(self) -> _Calling:
        """Around a call of Julia: what the user's module raised comes out as itself."""
        return _Calling(self)


class _Calling:
    # no generator, which turns a StopIteration of the user's into another error

    def __init__(self, workspace: Workspace):
        self.workspace, self.no_grad = workspace, torch.no_grad()

    def __enter__(self) -> None:
        self.workspace.error = None
        self.no_grad.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.no_grad.__exit__(kind, error, traceback)
        kept, self.workspace.error = self.workspace.error, None
        of_julia = isinstance(error, self.workspace.runtime.error_type)
        # without an error it came between the report of success and the callback's end
        if kept is not None and (error is None or of_julia):
            raise kept from None
        if of_julia and "HostAbort" in str(error):
            # an interrupt can arrive in a callback before it is able to keep it
            raise KeyboardInterrupt from None
        if of_julia:
            raise translated(error) from error


_idle: list[Workspace] = []  # the one used last at the end


def acquire(
    runtime: Runtime, problem: Problem, jacobian: bool = False, params: bool = True
) -> Workspace:
    """A workspace of the problem's size that nobody uses: a solve inside a solve has its own.

    ``params`` says whether gradients of the problem's tensors are going to be asked for.
    """
    y0 = problem.y0
    size = sum(p.numel() for p in problem.tensors) if params else 0
    key = (y0.numel(), size, y0.dtype, y0.device, jacobian)
    for i in reversed(range(len(_idle))):
        if _idle[i].key == key:
            return _idle.pop(i)
    return Workspace(runtime, key)


def give_back(workspace: Workspace) -> None:
    """Keep a workspace for the next solve of that size; call in the thread that owns Julia."""
    workspace.unbind()
    _idle.append(workspace)
    while len(_idle) > _KEPT or (len(_idle) > 1 and sum(w.bytes for w in _idle) > _KEPT_BYTES):
        oldest = _idle.pop(0)
        oldest.runtime.discard(oldest.id)


def drain(runtime: Runtime) -> None:
    """Release what was let go of, in whatever thread, since the last call."""
    while runtime.released:
        number, workspace = runtime.released.popleft()
        runtime.release(number)
        give_back(workspace)
    while runtime.forgotten:
        runtime.forget_tape(runtime.forgotten.popleft())
