"""Compiled programs of a module in use: made once for a shape, kept while the module stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ....autocast import AutocastField
from ....errors import UnsupportedError, warn
from ....problem import Problem
from ....rhs import PerFunction
from ...fingerprint import Fingerprint, hooked, same_params
from ...tableau import Tableau
from .functions import flat_field, product_function, start_function, step_function, vjp_function
from .program import CannotCompile, Program

MOST_FORMS = 8  # for which a module is compiled: shapes, dtypes, methods, changes of attributes
_fields = PerFunction()
_lock = threading.RLock()


class CompiledField:
    """The programs of one module for one shape and method, made when they are first asked for."""

    def __init__(self, problem: Problem, key: tuple[object, ...]):
        self._key = key
        self._seen = Fingerprint(problem.func)
        self._params = problem.params
        self._all = problem.explicit_params is None
        self._programs: dict[object, Program] = {}

    def fits(self, problem: Problem, key: tuple[object, ...]) -> bool:
        """Whether the module and its parameters are still those that were compiled."""
        if key != self._key or not self._seen.unchanged():
            return False
        if not all(program.readable() for program in self._programs.values()):
            return False
        if problem.explicit_params is not None and self._all:
            return False
        return same_params(problem, self._params, self._all)

    def start(self, problem: Problem, *inputs: Tensor) -> Program:
        """What chooses the first step, see :func:`start_function`."""
        shapes = tuple(x.shape for x in inputs[2:])  # of the tolerances
        return self._program(
            problem,
            ("start", shapes),
            lambda: start_function(flat_field(problem)),
            *inputs,
            compared=1,
        )

    def step(self, problem: Problem, tableau: Tableau, scaled: bool, *inputs: Tensor) -> Program:
        """The step of a method, see :func:`step_function`; traced at ``inputs`` at first."""
        shapes = tuple(x.shape for x in inputs[3:])  # of the tolerances
        return self._program(
            problem,
            ("step", scaled, shapes),
            lambda: step_function(flat_field(problem), tableau, scaled),
            *inputs,
            compared=2,  # the error estimate is a difference of large numbers
        )

    def product(self, problem: Problem, tableau: Tableau, within: bool, *inputs: Tensor) -> Program:
        """The product through a step, see :func:`product_function`."""
        return self._program(
            problem,
            ("product", within),
            lambda: product_function(flat_field(problem), tableau, problem.params, within),
            *inputs,
        )

    def vjp(self, problem: Problem, state: bool, params: bool, *inputs: Tensor) -> Program:
        """A product with the field's derivative, see :func:`vjp_function`."""
        wanted = problem.params if params else ()
        return self._program(
            problem,
            ("vjp", state, params),
            lambda: vjp_function(flat_field(problem), wanted, state),
            *inputs,
        )

    def _program(
        self,
        problem: Problem,
        name: object,
        function: Callable[[], Callable],
        *inputs: Tensor,
        compared: int | None = None,
    ) -> Program:
        known = self._programs.get(name)
        if known is not None:
            return known
        with _lock:
            if name not in self._programs:
                self._programs[name] = self._made(problem, function(), inputs, compared)
            return self._programs[name]

    def _made(
        self,
        problem: Problem,
        function: Callable,
        inputs: Sequence[Tensor],
        compared: int | None,
    ) -> Program:
        if not self._seen.unchanged():
            raise _refusal("it, or something that it reads, has changed since the solve")
        tensors = [*problem.func.parameters(), *problem.func.buffers()]
        tensors = [x for x in tensors if not x.is_inference()]
        versions = [x._version for x in tensors]
        try:
            # what inference mode makes can have no gradients
            with torch.inference_mode(False):
                inputs = map(_ordinary, inputs)
                program = Program(function, *inputs, known=self._seen.holds, compared=compared)
            listed = {id(x) for x in problem.params}
            if problem.explicit_params is None and any(
                x.requires_grad and id(x) not in listed for x in program.held
            ):
                raise CannotCompile(
                    "it depends on a tensor with a gradient that is none of its parameters"
                )
            if [x._version for x in tensors] != versions or not self._seen.unchanged():
                raise CannotCompile("calling it changes its attributes or buffers, or a global")
        except CannotCompile as error:
            raise _refusal(str(error)) from error
        return program


def compiled_field(problem: Problem, tableau: Tableau) -> CompiledField | None:
    """The programs of the problem's module; None where it has been compiled too often.

    Raises:
        UnsupportedError: the module, or what surrounds the solve, cannot be compiled for.
    """
    func, y0 = problem.func, problem.y0
    state = (problem.structure.is_tuple, problem.structure.shapes, y0.dtype)
    key = (*state, tableau.name, torch.get_num_threads(), torch.get_default_dtype())
    with _lock:
        known = _fields.get(func, "compiled") or []
        for field in known:
            if field.fits(problem, key):
                return field
        if (reason := _obstacle(problem)) is not None:
            raise _refusal(reason)
        if len(known) >= MOST_FORMS:
            if not _fields.get(func, "warned"):
                _fields.put(func, "warned", True)
                warn(
                    f"func has been compiled {MOST_FORMS} times for options={{'compile': True}}, "
                    "as its attributes, or the shapes of its states, changed: what is new runs "
                    "uncompiled from now on"
                )
            return None
        _call_once(problem)
        field = CompiledField(problem, key)
        _fields.put(func, "compiled", [*known, field])
        return field


def _obstacle(problem: Problem) -> str | None:
    func, y0 = problem.func, problem.y0
    if isinstance(func, AutocastField):
        return "torch.autocast is on"
    if problem.args.values:
        return "it takes args"
    if not isinstance(func, nn.Module):
        return "func is no torch.nn.Module, so changes of what it uses are not seen"
    if isinstance(func, torch.jit.ScriptModule):
        return "func is a module of torch.jit; give the module it was made from"
    if hasattr(type(func), "_orig_mod") or "_orig_mod" in func._modules:
        return "func is the result of torch.compile; give the module itself"
    if y0.dtype not in (torch.float32, torch.float64):
        return f"states of {y0.dtype} are not compiled, only float32 and float64"
    if y0.device.type != "cpu":
        return "compiled steps are for the CPU"
    if y0.numel() == 0:
        return "the state is empty"
    if hooked(func):
        return "func has hooks, which would not be called"
    return None


@torch.no_grad()
def _call_once(problem: Problem) -> None:
    """So that what a first call fills (caches of libraries) is no change that a trace makes."""
    t = torch.tensor(problem.times[0], dtype=problem.time_dtype)
    flat_field(problem)(t, problem.y0.detach())


def _refusal(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"func cannot be compiled: {reason}. Leave out options={{'compile': True}}"
    )


def _ordinary(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x
