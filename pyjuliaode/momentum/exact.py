"""Exact arithmetic of a momentum network: no bit of x or v is ever lost.

x and v are whole numbers, units of 2^-shift, in int64, or in float64 where its 53 bits are more
than the dtype of x resolves: there every operation is exact too, and vectorised. Adding is exact;
multiplying v by gamma = n/d is not, so that what it loses goes into a buffer, a whole number for
every element that grows by log2(d/n) bits a layer (Maclaurin, Duvenaud and Adams 2015, algorithm 3;
Sander et al. 2021, section 3.2). A word of the buffer that may overflow is put away whole and a new
one begun. Divisions are floored, so that both signs come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InvalidArgumentError

RESCALE = 8  # bits that x and v give up at a time where they grow beyond the limit


@dataclass(frozen=True)
class Whole:
    """The whole numbers that a state is made of.

    Attributes:
        dtype: of the tensors.
        bits: |x| and |v| stay below 2^bits.
        room: of these, how many are left for growth at the start; the others are more than the
            dtype of x resolves.
        word: numbers of the buffer stay below it.
    """

    dtype: torch.dtype
    bits: int
    room: int
    word: int


INTEGERS = Whole(torch.int64, 62, 8, 2**63)
DOUBLES = Whole(torch.float64, 50, 12, 2**50)  # see _divmod for the 50


@dataclass(frozen=True)
class Ratio:
    """gamma as the fraction n/d, 0 < n/d <= 1, and the numbers that are multiplied by it."""

    n: int
    d: int
    whole: Whole

    @classmethod
    def of(cls, gamma: float, dtype: torch.dtype = torch.float64) -> Ratio:
        """The fraction next to gamma, and the numbers for x of ``dtype``.

        Small where gamma is a decimal of few digits (0.9 is 9/10, exactly what a float of 0.9
        means); else within 2^-20 of gamma and of 1 - gamma, relatively, and mostly 2^-36 (for
        dtypes of 32 bits and fewer 2^-24). A small one, as a product is off by up to n units.

        Raises:
            InvalidArgumentError: gamma or 1 - gamma is too small, below 2^-40 or so.
        """
        exact, close = Fraction(gamma), min(gamma, 1 - gamma) or 1.0
        for bits in (12, 18, 20, 24, 28, 32, 40):
            found = exact.limit_denominator(2**bits)
            if found == 0 or abs(found - exact) > close * 2**-20:
                continue
            if bits == 12 and dtype != torch.float64:
                return cls(found.numerator, found.denominator, DOUBLES)
            if bits > 12 or abs(found - exact) <= 2**-52:
                return cls(found.numerator, found.denominator, INTEGERS)
        raise InvalidArgumentError(
            f"gamma must not be so near to 0 or 1 in mode 'reversible', got {gamma!r}: as a "
            "fraction it has more digits than there are; use mode='backprop'"
        )

    @cached_property
    def layers_per_word(self) -> int:
        """Layers whose lost digits, whatever they are, fit into a word of the buffer."""
        layers, most = 0, 0
        while most * self.d + self.d - 1 < self.whole.word and layers < 10**6:
            most = (most * self.d + self.d - 1) // self.n
            layers += 1
        return layers

    @property
    def bits_per_layer(self) -> float:
        """What is lost of every element: log2(1/gamma), the paper's count."""
        return math.log2(self.d / self.n)

    def words(self, depth: int) -> int:
        """Words of 64 bits that an element needs after ``depth`` layers."""
        return 0 if self.n == self.d else max(1, math.ceil(depth / self.layers_per_word))


class NotFinite(Exception):
    """A number that no whole number stands for."""


class Broken(Exception):
    """The layers, undone, do not lead back to where they began."""


class ExactState:
    """x and v as whole numbers, and the way back.

    Layers go by :meth:`advance`, v <- gamma v + (1 - gamma) f and x <- x + v, and are undone by
    :meth:`retreat`, which gives x before the layer, and :meth:`undo`, which is told f there.

    Raises:
        NotFinite: x or v is not.
    """

    def __init__(self, x: Tensor, v: Tensor, gamma: float):
        self.ratio, self.gain = Ratio.of(gamma, x.dtype), 1.0 - gamma
        self.dtype, self.whole = x.dtype, self.ratio.whole
        size = max(_largest(x), _largest(v))
        if not math.isfinite(size):
            raise NotFinite
        bits = self.whole.bits - self.whole.room
        self.shift = min(bits - math.frexp(size)[1], 1000)
        self.x, self.v = self._whole(x, 1.0), self._whole(v, 1.0)
        self.bound_x = self.bound_v = 1 << bits
        self.word = torch.zeros_like(self.x)
        self.words: list[Tensor] = []  # full ones
        self.in_word = 0  # layers
        self.lost: list[tuple[int, Tensor, Tensor]] = []  # (layer, digits of x, of v) of rescaling
        self.layers = 0
        self.start = self._checksum()

    # ---------------------------------------------------------------------------------- values

    def value(self) -> Tensor:
        """x in its dtype."""
        return self._float(self.x, self.shift)

    def speed(self) -> Tensor:
        """v in the dtype of x."""
        return self._float(self.v, self.shift)

    def tensors(self) -> list[Tensor]:
        """What the way back needs."""
        digits = [part for _, *parts in self.lost for part in parts]
        return [self.x, self.v, self.word, *self.words, *digits]

    def restored(self, tensors: list[Tensor]) -> ExactState:
        """This state after its last layer, with ``tensors`` as they were; free to be undone."""
        state = object.__new__(ExactState)
        vars(state).update(vars(self))
        state.x, state.v, state.word = (x.clone() for x in tensors[:3])
        n = 3 + len(self.words)
        state.words = list(tensors[3:n])
        pairs = zip(tensors[n::2], tensors[n + 1 :: 2], strict=True)
        state.lost = [(at, x, v) for (at, *_), (x, v) in zip(self.lost, pairs, strict=True)]
        return state

    def released(self) -> ExactState:
        """This state without its tensors, which :meth:`restored` is given back."""
        self.x = self.v = self.word = None
        self.words = [None] * len(self.words)
        self.lost = [(at, None, None) for at, *_ in self.lost]
        return self

    # ---------------------------------------------------------------------------------- layers

    def advance(self, f: Tensor) -> None:
        """The next layer, whose function gave ``f``.

        Raises:
            NotFinite: ``f`` is not.
        """
        size = self.gain * _largest(f)
        if not math.isfinite(size):
            raise NotFinite
        self._make_room(size)
        self._multiply()
        self.v.add_(self._whole(f, self.gain))
        self.x.add_(self.v)
        self.layers += 1

    def retreat(self) -> Tensor:
        """x before the last layer."""
        self.x.sub_(self.v)
        shift = self.shift
        for at, digits, _ in reversed(self.lost):  # v gets its own back when it is divided
            if at != self.layers - 1:
                break
            self.x, shift = self.x.mul_(1 << RESCALE).add_(digits), shift + RESCALE
        return self._float(self.x, shift)

    def undo(self, f: Tensor) -> None:
        """Undo the last layer, whose x :meth:`retreat` gave and whose function there gives ``f``.

        Raises:
            Broken: it was another value when the layer was made.
        """
        self.v.sub_(self._whole(f, self.gain))
        self._divide()
        self.layers -= 1
        while self.lost and self.lost[-1][0] == self.layers:
            self.v.mul_(1 << RESCALE).add_(self.lost.pop()[2])
            self.shift += RESCALE
        if self.layers == 0:
            self._check(self._checksum() == self.start)

    # -------------------------------------------------------------------------------- arithmetic

    def _whole(self, x: Tensor, factor: float) -> Tensor:
        rounded = x.double().mul(factor * 2.0**self.shift).round_()
        return rounded.add_(0.0).to(self.whole.dtype)  # no -0, which does not come back

    def _float(self, x: Tensor, shift: int) -> Tensor:
        return x.double().mul(2.0**-shift).to(self.dtype)

    def _multiply(self) -> None:
        """v <- v n/d: the digit v mod d enters the buffer, and a digit of base n leaves it."""
        n, d = self.ratio.n, self.ratio.d
        if n == d:
            return
        if self.in_word == self.ratio.layers_per_word:
            self.words.append(self.word)
            self.word, self.in_word = torch.zeros_like(self.word), 0
        q, r = _divmod(self.v, d)
        self.word.mul_(d).add_(r)
        self.word, r = _divmod(self.word, n)
        self.v = q.mul_(n).add_(r)
        self.in_word += 1

    def _divide(self) -> None:
        """The inverse of :meth:`_multiply`."""
        n, d = self.ratio.n, self.ratio.d
        if n == d:
            return
        q, r = _divmod(self.v, n)
        self.word.mul_(n).add_(r)
        self.word, r = _divmod(self.word, d)
        self.v = q.mul_(d).add_(r)
        self.in_word -= 1
        if self.in_word == 0:
            self._check(not bool(self.word.any()))
            if self.words:
                self.word, self.in_word = self.words.pop().clone(), self.ratio.layers_per_word

    def _make_room(self, size: float) -> None:
        """Rescale where v and x could leave their range in a layer that adds ``size``."""
        limit = 1 << self.whole.bits
        if self._after(size) <= limit:
            return
        self.bound_x, self.bound_v = (int(x.abs().max()) for x in (self.x, self.v))
        while self._after(size) > limit:
            (self.x, x), (self.v, v) = (_divmod(part, 1 << RESCALE) for part in (self.x, self.v))
            self.lost.append((self.layers, x.to(torch.uint8), v.to(torch.uint8)))
            self.shift -= RESCALE
            self.bound_x, self.bound_v = ((b >> RESCALE) + 1 for b in (self.bound_x, self.bound_v))

    def _after(self, size: float) -> int:
        """Bound of |x| after the layer; the bounds are kept where it is within the limit."""
        n, d, limit = self.ratio.n, self.ratio.d, 1 << self.whole.bits
        if math.frexp(size)[1] + self.shift > self.whole.bits:
            return limit + 1
        v = self.bound_v * n // d + 2 * n + math.ceil(math.ldexp(size, self.shift)) + 1
        x = self.bound_x + v
        if x <= limit:
            self.bound_x, self.bound_v = x, v
        return x

    def _checksum(self) -> tuple[int, int]:
        """Sums that wrap around."""
        return int(self.x.long().sum()), int(self.v.long().sum())

    @staticmethod
    def _check(right: bool) -> None:
        if not right:
            raise Broken


def _divmod(c: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Floored quotient and remainder in [0, k); c, which nobody reads again, may become the latter.

    Of float64, |c| < 2^50: (c + 1/2) / k is at least 1/(2k) away from any whole number, and its
    two roundings move it by less than 2^-52 of its size, at most 1/(4k).
    """
    if c.is_floating_point():
        q = c.add(0.5).mul_(1.0 / k).floor_()
        return q, c.sub_(q, alpha=k)
    if k & (k - 1) == 0:
        return c >> (k.bit_length() - 1), c & (k - 1)
    q = c.div(k, rounding_mode="trunc")  # four times as fast as a floored division
    r = c.sub(q, alpha=k)
    negative = r >> 63  # all ones, that is -1
    return q.add_(negative), r.add_(negative.bitwise_and_(k))


def _largest(x: Tensor) -> float:
    """max |x|; NaN where there is one."""
    if x.numel() == 0:
        return 0.0
    low, high = torch.aminmax(x)
    return float(torch.maximum(high, -low))
