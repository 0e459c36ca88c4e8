"""The only caller of the user's module: values and vector-Jacobian products on a flat state."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .batching import form_of, handled, users_own
from .errors import InvalidArgumentError, add_note
from .problem import Problem, State

Time = float | Tensor


class RHS:
    """dy/dt on the flat state, with counts of evaluations and of vector-Jacobian products.

    Times may be Python floats, or 0-d tensors where they carry a gradient (or, for per-sample
    stepping, tensors that broadcast against the state). The user's exceptions pass untouched.

    Attributes:
        inputs: what products of parameters are taken of, or those of them that ``needs`` says: the
            parameters themselves, and ``backward`` in place of the tensors among ``args`` leaves
            of their values, which have no history.
    """

    def __init__(
        self, problem: Problem, backward: bool = False, needs: Sequence[bool] | None = None
    ):
        self.func = problem.func
        self._problem = problem
        self.structure = problem.structure
        self.second_order = problem.second_order
        self.linear = False  # that is, as far as is known
        self.chunk_size: int | None = None  # of the states of one call of ``batched``
        self._failures = 0  # of batching, one after another
        self.time_dtype = problem.time_dtype
        self.device = problem.y0.device
        self._args, self._needs = problem.args.values, needs
        self._own: dict[int, Tensor] = {}  # leaves in place of tensors among ``args``
        if backward and problem.args.places:
            params = {id(p) for p in problem.params}
            self._own = {
                id(x): x if id(x) in params else x.detach().requires_grad_()
                for x in problem.args.tensors
            }
            self._args = problem.args.with_tensors(tuple(self._own.values()))
        # a tensor state is unpacked by one view; None: a tuple, which its structure unpacks
        self._shape = None if problem.structure.is_tuple else problem.structure.shapes[0]
        self.nfe = 0
        self.alongside = 0  # of nfe, those made in one call with another
        self.n_vjp = 0
        self.n_jacobians = 0
        self.inspect: Callable[[Tensor, Tensor], None] | None = None
        self._call = problem.func
        self._checked = False
        self._fit: Callable[[Any], Any] | None = None  # what makes its outputs fit the state

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        found = tuple(self._own.get(id(x), x) for x in self._problem.tensors)
        if self._needs is None:
            return found
        return tuple(x for x, need in zip(found, self._needs, strict=True) if need)

    def time(self, t: Time) -> Tensor:
        """The 0-d tensor handed to the user: in the real dtype of the state, on its device."""
        if isinstance(t, Tensor):
            return t.to(dtype=self.time_dtype, device=self.device)
        return torch.scalar_tensor(t, dtype=self.time_dtype, device=self.device)

    def value(self, t: Tensor, y: State) -> State:
        """The user's function on the user's state, uncounted; an error of its own gets a note."""
        try:
            out = self._call(t, y, *self._args)
        except Exception as error:
            if self._call is self.func and _needs_gradients(error):
                self._call = self._with_gradients
                return self.value(t, y)
            if _writes_in_place(error):
                raise InvalidArgumentError(_IN_PLACE) from error
            add_note(error, f"(func was called with {_described(t, y)})")
            raise
        if not self._checked:
            self._fit = self.structure.fit(out, self._problem.y0, self._problem.drop_in)
            self._checked = True
        return out if self._fit is None else self._fit(out)

    def _with_gradients(self, t: Tensor, y: State, *args: Any) -> State:
        """A function that differentiates by its state within itself, of one that asks for it."""
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            out = self.func(t, _asking(y, keep=graph), *args)
        return out if graph else _detached(out)

    def __call__(self, t: Time, y: Tensor) -> Tensor:
        """Value: (N,) -> (N,)."""
        self.nfe += 1
        t = self.time(t)
        version = None if self._checked or y.is_inference() else y._version
        if self._shape is None:
            out = self.value(t, self.structure.unpack(y))
        else:
            out = self.value(t, y.view(self._shape))
        if version is not None and version != y._version:
            self._checked = False
            raise InvalidArgumentError(_IN_PLACE)
        if self._shape is None:
            return self.structure.pack(out)
        # without a graph it may be a buffer into which the user's function writes every time
        return out.reshape(-1) if out.requires_grad else out.reshape(-1).clone()

    def destinations(self, k: Tensor) -> list[Tensor]:
        """Views of the rows of a slope buffer (S, N) into which :meth:`into` writes."""
        if self._shape is None:
            return list(k.unbind(0))
        return list(k.view(k.shape[0], *self._shape).unbind(0))

    def stage_times(
        self, t: float, h: float, c: Sequence[float], weights: Tensor
    ) -> Sequence[Tensor]:
        """Times t + c h of the stages, in the form that :meth:`into` takes."""
        return torch.mul(weights, h).add_(t).unbind(0)

    end_time = time

    def into(self, row: Tensor, t: Tensor, y: Tensor) -> bool:
        """Value written into a destination; True, and nothing written, where it carries a graph.

        The hot path of solves without a graph: one view, one copy, nothing else.
        """
        self.nfe += 1
        if self._shape is None or not self._checked:
            out = self(t, y).view_as(row)
            self.nfe -= 1
        else:
            out = self.value(t, y.view(self._shape))
        if out.requires_grad and torch.is_grad_enabled():
            return True
        row.copy_(out)
        return False

    def writer(self, row: Tensor, source: Tensor) -> Callable[[float], None]:
        """A function of t that writes f(t, source) into a destination; call it without gradients.

        The state is copied for the user's module, which may keep it, while ``source`` is a buffer.
        """
        value, make, dtype, device = self.value, torch.scalar_tensor, self.time_dtype, self.device
        state = None if self._shape is None else source.view(self._shape)

        def write(t: float) -> None:
            if state is None or not self._checked:
                row.copy_(self(t, source.clone()).view_as(row))
                return
            self.nfe += 1
            row.copy_(value(make(t, dtype=dtype, device=device), state.clone()))

        return write

    def flat(self, t: Tensor, y: Tensor) -> Tensor:
        """The user's function of a 0-d time and a flat state, uncounted."""
        return self.structure.pack(self.value(t, self.structure.unpack(y)))

    def batched(self, t: Tensor, y: Tensor) -> Tensor:
        """Values at M times at once: (M,), (M, N) -> (M, N).

        By torch.func.vmap; a function that it cannot follow is called for one time after another,
        and then counts so. An exception of the user's own passes as it is.
        """
        m, t = len(t), t.to(self.time_dtype)
        self.nfe += m
        form = form_of(self.func)
        tries, outer = not _one_by_one.get(self.func, form), handled()
        if tries:
            try:
                found = torch.func.vmap(self.flat, chunk_size=self.chunk_size)(t, y)
            except Exception as error:
                if users_own(error, outer):
                    raise
            else:
                self._failures = 0
                self.alongside += m - (1 if self.chunk_size is None else -(-m // self.chunk_size))
                return found
        found = torch.stack([self.flat(*pair).clone() for pair in zip(t, y, strict=True)])
        if tries:
            self._not_batched(form)
        return found

    def _not_batched(self, form: object) -> None:
        """One failure may be of that moment (memory); the second is the function's."""
        self._failures += 1
        if self._failures > 1:
            _one_by_one.put(self.func, form, True)

    def pullback(self, t: Tensor, y: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """Products with the derivatives of :meth:`batched` at (M,), (M, N).

        The function that is returned takes cotangents (M, N) and gives the gradient of the states
        (M, N), or with ``params=True`` the gradients of all parameters (None where there is none).
        """
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            out = self.batched(t, y)
            self._inspected(out, y)

        def products(cotangents: Tensor, params: bool = False) -> tuple[Tensor | None, ...]:
            self.n_vjp += len(y)
            self.alongside += len(y) - 1
            inputs = self.inputs if params else (y,)
            if not out.requires_grad or not inputs:
                found: tuple[Tensor | None, ...] = (None,) * len(inputs)
            else:
                found = torch.autograd.grad(
                    out, inputs, cotangents, retain_graph=True, allow_unused=True
                )
            return found if params else (torch.zeros_like(y) if found[0] is None else found[0],)

        return products

    def _inspected(self, out: Tensor, y: Tensor) -> None:
        """Show the graph from y to what it gave to whoever asked to see the next one."""
        if self.inspect is not None:
            self.inspect(out, y)
            self.inspect = None

    def vjp(
        self, t: Time, y: Tensor, cotangent: Tensor, state: bool = True, params: bool = True
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
        """f(t, y), cotangent @ df/dy and cotangent @ df/dparams, from one evaluation.

        ``state`` and ``params`` say which products are wanted; None stands for zero or not wanted.
        """
        self.n_vjp += 1
        wanted = self.inputs if params else ()
        shape = self._shape
        # a tensor state is viewed before its graph begins, which then has no views in it
        y = y.detach() if shape is None else y.detach().view(shape)
        with torch.enable_grad():
            if state:
                y.requires_grad_()
            if shape is None:
                out = self.structure.pack(self.value(self.time(t), self.structure.unpack(y)))
            else:
                out, cotangent = self.value(self.time(t), y), cotangent.view(shape)
            value = out.detach().reshape(-1)
            if not out.requires_grad:
                return value, None, (None,) * len(wanted)
            self._inspected(out, y)
            inputs = (y, *wanted) if state else wanted
            if not inputs:
                return value, None, ()
            # what was computed before the solve, of the parameters, is shared by all products
            grads = torch.autograd.grad(
                out, inputs, cotangent, allow_unused=True, retain_graph=True
            )
        if not state:
            return value, None, grads
        return value, None if grads[0] is None else grads[0].reshape(-1), grads[1:]

    def jacobian(self, t: Time, y: Tensor) -> Tensor:
        """df/dy, (N, N): all rows by one vectorised product, or one by one where that fails."""
        self.n_jacobians += 1
        # inference mode has no gradients to enable, and a state made in it can have none
        with torch.inference_mode(False), torch.enable_grad():
            y = y.detach().clone().requires_grad_()
            out = self.structure.pack(self.value(self.time(t), self.structure.unpack(y)))
            if not out.requires_grad:
                return y.new_zeros(y.numel(), y.numel())
            rows = torch.eye(y.numel(), dtype=y.dtype, device=y.device)
            try:
                (found,) = torch.autograd.grad(
                    out, y, rows, retain_graph=True, is_grads_batched=True, allow_unused=True
                )
            except RuntimeError:  # an operation of the field that vmap does not know
                each = [
                    torch.autograd.grad(out, y, row, retain_graph=True, allow_unused=True)[0]
                    for row in rows
                ]
                found = None if each[0] is None else torch.stack(each)
        return y.new_zeros(y.numel(), y.numel()) if found is None else found


def _needs_gradients(error: Exception) -> bool:
    """Whether autograd.grad was asked for a derivative by what does not require one."""
    return isinstance(error, RuntimeError) and "require grad" in str(error)


def _asking(y: State, keep: bool) -> State:
    """A state that requires a gradient; as it is where it does, if ``keep``."""
    if not isinstance(y, Tensor):
        return tuple(_asking(part, keep) for part in y)
    if y.is_inference():
        y = y.clone()
    return y if keep and y.requires_grad else y.detach().requires_grad_()


def _detached(out: State) -> State:
    return out.detach() if isinstance(out, Tensor) else tuple(x.detach() for x in out)


_IN_PLACE = (
    "the field modifies the state that it is given in place; it must return a new tensor (y * 2 "
    "rather than y.mul_(2))"
)


def _writes_in_place(error: Exception) -> bool:
    """Whether autograd refused a write to what a derivative is taken of, which is the state."""
    said = ("leaf Variable that requires grad", "is being modified inplace")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def _described(t: Tensor, y: State) -> str:
    """The time and state of a call, for people."""
    parts = (y,) if isinstance(y, Tensor) else y
    states = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in parts)
    try:
        time = f"{float(t):.6g}" if t.numel() == 1 else f"of shape {tuple(t.shape)}"
    except RuntimeError:  # no number within torch.func's transforms, nor while it is traced
        time = "a tensor"
    where = "" if parts[0].device.type == "cpu" else f" on {parts[0].device}"
    return f"t = {time} ({t.dtype}) and y of shape {states}{where}"


class PerFunction:
    """A small memory of facts about functions that forgets a function when it is collected."""

    def __init__(self) -> None:
        self._facts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def get(self, func: Callable, key: object) -> object | None:
        try:
            return self._facts.get(func, {}).get(key)
        except TypeError:  # not hashable or not weakly referable: nothing is remembered
            return None

    def put(self, func: Callable, key: object, value: object) -> None:
        try:
            self._facts.setdefault(func, {})[key] = value
        except TypeError:
            return


_one_by_one = PerFunction()
