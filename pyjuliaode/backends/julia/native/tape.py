"""Tape: a field as a list of operations on features; see julia/src/native/tape.jl."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ...numbers_read import Numbers

ADD, MUL, DIV, LINEAR, CONVOLUTION, SUM = 32, 33, 34, 35, 36, 37
PRODUCTS = (LINEAR, CONVOLUTION)
# In the order of FUNCTIONS in julia/src/native/functions.jl.
FUNCTIONS = {
    name: code
    for code, name in enumerate(
        [
            "affine",
            "tanh",
            "sigmoid",
            "elu",
            "leaky_relu",
            "clamp",
            "softplus",
            "silu",
            "gelu",
            "gelu_tanh",
            "exp",
            "log",
            "sqrt",
            "sin",
            "cos",
            "abs",
            "inv",
            "power",
        ]
    )
}


@dataclass(frozen=True)
class Operand:
    """Feature numbers: consecutive ones from ``first``, or where that is < 0 entries of a table."""

    at: int
    first: int


@dataclass(frozen=True)
class Op:
    """One operation: ``n`` numbers from ``out`` on; the rest as in the Julia half."""

    code: int
    n: int
    out: int
    x: Operand
    y: Operand = Operand(0, 0)
    inputs: int = 0
    outputs: int = 1
    weight: int = 0
    bias: int = -1
    a: float = 0.0
    b: float = 0.0

    def numbers(self) -> list[int]:
        """As ``tape!`` of the Julia half takes them."""
        operands = (self.x.at, self.x.first, self.y.at, self.y.first)
        linear = (self.inputs, self.outputs, self.weight, self.bias)
        return [self.code, self.n, self.out, *operands, *linear]


@dataclass
class Tape:
    """A field du = f(t, u) on states of ``before * batch * after`` numbers.

    Attributes:
        before_time: operations on scalars that need neither time nor state.
        timely: operations on scalars that need the time.
        ops: operations on samples.
        table: feature numbers of operands; one below zero, -k, is the k-th scalar.
        result: features of du.
        tensors: every parameter, buffer and constant with its first scalar, from 0; scalar 0 is the
            time.
        later: how many scalars do not depend on the time.
        scalars, features: how many there are.
        shape: (before, batch, after).
        numbers: those of tensors that were read by the code of the field, and not as tensors.
        position_first: the first half of du is the second half of the state itself.
    """

    before_time: list[Op] = field(default_factory=list)
    timely: list[Op] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    result: Operand = Operand(0, 0)
    tensors: list[tuple[Tensor, int]] = field(default_factory=list)
    later: int = 0
    scalars: int = 0
    features: int = 0
    shape: tuple[int, int, int] = (1, 1, 1)
    numbers: Numbers = field(default_factory=Numbers)
    position_first: bool = False

    @property
    def weights(self) -> int:
        """Weights of the linear maps and convolutions."""
        return sum(op.inputs * op.outputs for op in self.ops if op.code in PRODUCTS)

    @property
    def work(self) -> int:
        """Multiplications of one evaluation of them, over the whole batch."""
        return self.shape[1] * sum(op.n * op.inputs for op in self.ops if op.code in PRODUCTS)
