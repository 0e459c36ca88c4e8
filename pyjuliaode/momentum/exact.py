"""Exact arithmetic of a momentum network: no bit of x or v is ever lost.

x and v are whole numbers, units of 2^-shift, in int64, or in float64 where its 53 bits are more
than the dtype of x resolves: there every operation is exact too, and vectorised. Adding is exact;
multiplying v by gamma = n/d is not, so that what it loses goes into a buffer, a whole number for
every element that grows by log2(d/n) bits a layer (Maclaurin, Duvenaud and Adams 2015, algorithm 3;
Sander et al. 2021, section 3.2). A word of the buffer that may overflow is put away whole and a new
one begun. Divisions are floored, so that both signs come back.

Every row has a shift of its own: what the first two dimensions index, or the first of two. Whether
the batch is the first of them or, as in sequences, the second, no sample is rounded in the units of
another one. Where all rows are of much the same size, as they mostly are, one number is the shift
of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..errors import InvalidArgumentError

ROOM = 8  # bits that a row has for growth when it has been rescaled
ALIKE = 4  # rows whose largest numbers are within a factor of 2^ALIKE share a shift
FINEST = 1000  # shift of a row of zeros, which may become anything
NEVER = 2**31 - 1


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
    @lru_cache  # what a word holds is counted layer by layer
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


Shift = int | Tensor  # of all rows, or (..., 1, ...) int64 of each


class NotFinite(Exception):
    """Numbers that no whole numbers stand for."""


class Broken(Exception):
    """The layers, undone, do not lead back to where they began."""


class ExactState:
    """x and v as whole numbers, and the way back.

    Layers go by :meth:`advance`, v <- gamma v + (1 - gamma) f and x <- x + v, and are undone by
    :meth:`retreat`, which gives x before the layer, and :meth:`undo`, which is told f there. A row
    that is not finite is NaN from there on, and disturbs no other.

    Raises:
        NotFinite: no row of x and v is finite.
    """

    def __init__(self, x: Tensor, v: Tensor, gamma: float):
        self.ratio, self.gain = Ratio.of(gamma, x.dtype), 1.0 - gamma
        self.dtype, self.whole = x.dtype, self.ratio.whole
        self.layers = 0
        self.dead: Tensor | None = None  # the layer in which a row ceased to be finite
        size = torch.maximum(_row_sizes(x), _row_sizes(v)).double()
        self._bury(size, -1)
        self.shift = _uniform(self._first_shifts(size))
        self.x, self.v = self._whole(x, 1.0, -1), self._whole(v, 1.0, -1)
        self.x, self.v = self.x.to(self.whole.dtype), self.v.to(self.whole.dtype)
        self.bound_x = self.bound_v = 1 << (self.whole.bits - self.whole.room)
        self.word = torch.zeros_like(self.x)
        self.words: list[Tensor] = []  # full ones
        self.in_word = 0  # layers
        self.lost: list[Lost] = []
        self.start = self._checksum()

    def _first_shifts(self, size: Tensor) -> Tensor:
        """Of rows whose largest numbers are ``size``."""
        exponent = _exponents(size)
        known = (size > 0) & size.isfinite()
        if bool(known.any()):
            most = exponent[known].max()
            exponent = torch.where(known & (exponent < most - ALIKE), exponent, most)
        bits = self.whole.bits - self.whole.room
        return torch.where(size == 0, FINEST, (bits - exponent).clamp(max=FINEST))

    # ---------------------------------------------------------------------------------- values

    def value(self) -> Tensor:
        """x in its dtype."""
        return self._float(self.x, self.shift, self.layers)

    def speed(self) -> Tensor:
        """v in the dtype of x."""
        return self._float(self.v, self.shift, self.layers)

    def tensors(self) -> list[Tensor]:
        """What the way back needs, of the size of x."""
        digits = [part for lost in self.lost for part in (lost.x, lost.v)]
        return [self.x, self.v, self.word, *self.words, *digits]

    def restored(self, tensors: list[Tensor]) -> ExactState:
        """This state after its last layer, with ``tensors`` as they were; free to be undone."""
        state = object.__new__(ExactState)
        vars(state).update(vars(self))
        state.x, state.v, state.word = (x.clone() for x in tensors[:3])
        n = 3 + len(self.words)
        state.words = list(tensors[3:n])
        pairs = zip(tensors[n::2], tensors[n + 1 :: 2], strict=True)
        both = zip(self.lost, pairs, strict=True)
        state.lost = [replace(lost, x=x, v=v) for lost, (x, v) in both]
        return state

    def released(self) -> ExactState:
        """This state without its tensors, which :meth:`restored` is given back."""
        self.x = self.v = self.word = None
        self.words = [None] * len(self.words)
        self.lost = [replace(lost, x=None, v=None) for lost in self.lost]
        return self

    # ---------------------------------------------------------------------------------- layers

    def advance(self, f: Tensor) -> None:
        """The next layer, whose function gave ``f``.

        Raises:
            NotFinite: with ``f``, no row is finite any more.
        """
        change = self._whole(f, self.gain, self.layers)
        if not self._fits(_largest(change)):
            self._make_room(f)
            change = self._whole(f, self.gain, self.layers)
        self._multiply()
        self.v.add_(change.to(self.whole.dtype))
        self.x.add_(self.v)
        self.layers += 1

    def retreat(self) -> Tensor:
        """x before the last layer."""
        self.x.sub_(self.v)
        shift = self.shift
        for lost in self._lost_last():  # v gets its own back when it is divided
            lost.give_back(self.x, lost.x)
            shift = lost.before
        return self._float(self.x, shift, self.layers - 1)

    def undo(self, f: Tensor) -> None:
        """Undo the last layer, whose x :meth:`retreat` gave and whose function there gives ``f``.

        Raises:
            Broken: it was another value when the layer was made.
        """
        self.layers -= 1
        self.v.sub_(self._whole(f, self.gain, self.layers).to(self.whole.dtype))
        self._divide()
        if self.lost and self.lost[-1].layer == self.layers:
            lost = self.lost.pop()
            lost.give_back(self.v, lost.v)
            self.shift = lost.before
        if self.layers == 0:
            self._check(self._checksum() == self.start)

    def _lost_last(self) -> list[Lost]:
        """What the last layer took of x and v, where it did."""
        return [lost for lost in self.lost[-1:] if lost.layer == self.layers - 1]

    # -------------------------------------------------------------------------------- arithmetic

    def _whole(self, x: Tensor, factor: float, layer: int) -> Tensor:
        """x times ``factor`` in whole units, as float64; 0 in rows that are not finite by then."""
        rounded = x.double().mul(factor * _power(self.shift)).round_()
        if self.dead is not None:
            rounded = rounded.masked_fill_(self.dead <= layer, 0.0)
        return rounded.add_(0.0)  # no -0, which does not come back

    def _float(self, x: Tensor, shift: Shift, layer: int) -> Tensor:
        """x, of after so many layers, in its dtype."""
        found = x.double().mul(_power(-shift)).to(self.dtype)
        return found if self.dead is None else found.masked_fill_(self.dead < layer, math.nan)

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

    def _fits(self, size: float) -> bool:
        """Whether x and v stay in their range in a layer that adds ``size``; then, bounds of both.

        NaN does not.
        """
        n, d, limit = self.ratio.n, self.ratio.d, 1 << self.whole.bits
        if not size < limit:
            return False
        v = self.bound_v * n // d + 2 * n + int(size) + 1
        x = self.bound_x + v
        if x <= limit:
            self.bound_x, self.bound_v = x, v
        return x <= limit

    def _make_room(self, f: Tensor) -> None:
        """Rescale the rows that could leave their range in a layer whose function gave ``f``."""
        size = self.gain * _row_sizes(f).double()
        self._bury(size, self.layers)
        size = torch.where(size.isfinite(), size, 0.0)
        bits = self._too_many(size)
        if bool(bits.any()):
            self.lost.append(Lost.take(self.layers, self.x, self.v, bits, self.shift))
            self.shift = _uniform(self.shift - bits)
        v = self._grown(size)
        self.bound_v, self.bound_x = int(_largest(v)), int(_largest(v + _row_sizes(self.x))) + 1

    def _too_many(self, size: Tensor) -> Tensor:
        """Bits that every row has to give up for a layer that adds ``size`` to it."""
        after = self._grown(size) + _row_sizes(self.x)
        added = torch.where(size > 0, _exponents(size) + self.shift, 0)
        # of three numbers, whose sum is less than four times the largest
        sizes = [_exponents(_row_sizes(self.x)), _exponents(_row_sizes(self.v)), added]
        most = torch.stack(sizes).amax(0) + 2
        return torch.where(after < 2**self.whole.bits, 0, most - (self.whole.bits - ROOM))

    def _grown(self, size: Tensor) -> Tensor:
        """Bounds of |v| in every row after a layer that adds ``size``."""
        return _row_sizes(self.v) + size * _power(self.shift) + 2 * self.ratio.n + 1

    def _bury(self, size: Tensor, layer: int) -> None:
        """Note the rows whose ``size`` is not finite, in this layer and none before.

        Raises:
            NotFinite: now that is every one.
        """
        bad = ~size.isfinite()
        if not bool(bad.any()):
            return
        before = torch.full(bad.shape, NEVER, device=bad.device) if self.dead is None else self.dead
        self.dead = torch.where(bad & (before == NEVER), layer, before)
        if bool((self.dead != NEVER).all()):
            raise NotFinite

    def _checksum(self) -> tuple[int, int]:
        return _digest(self.x), _digest(self.v)

    @staticmethod
    def _check(right: bool) -> None:
        if not right:
            raise Broken


@dataclass(frozen=True)
class Lost:
    """Digits that some rows gave up in a layer, for room.

    Attributes:
        layer: its number.
        before: the shift until then.
        rows: a mask of the leading dimensions.
        bits: how many each of these gave up, (rows, 1, ...).
        x, v: the digits, (rows, ...), between -2^(bits-1) and 2^(bits-1).
    """

    layer: int
    before: Shift
    rows: Tensor
    bits: Tensor
    x: Tensor
    v: Tensor

    @classmethod
    def take(cls, layer: int, x: Tensor, v: Tensor, bits: Tensor, before: Shift) -> Lost:
        """Take ``bits`` of every row of x and v, in place."""
        rows = (bits > 0).view(x.shape[: _leading(x)])
        each = bits[bits > 0].view(-1, *[1] * (x.ndim - rows.ndim))
        return cls(layer, before, rows, each, *(_take(part, rows, each) for part in (x, v)))

    def give_back(self, c: Tensor, digits: Tensor) -> None:
        """Into x or v, in place."""
        c[self.rows] = _shifted(c[self.rows], self.bits) + digits.to(c.dtype)


def _take(c: Tensor, rows: Tensor, bits: Tensor) -> Tensor:
    """The lowest ``bits`` of the rows of c, which are rounded to the others."""
    old = c[rows]
    if c.is_floating_point():
        new = old.mul(_power(-bits.clamp(max=FINEST))).add_(0.5).floor_()
    else:
        few = bits.clamp(max=INTEGERS.bits)
        new = torch.where(bits > INTEGERS.bits, 0, (old + (1 << (few - 1))) >> few)
    c[rows] = new
    return _packed(old - _shifted(new, bits))


def _shifted(c: Tensor, bits: Tensor) -> Tensor:
    """c 2^bits; where that many are more than c has, c is 0."""
    if c.is_floating_point():
        return c * _power(bits.clamp(max=FINEST))
    return c << bits.clamp(max=INTEGERS.bits)


def _packed(digits: Tensor) -> Tensor:
    """In the smallest integers that hold them."""
    size = _largest(digits)
    dtypes = (torch.int8, torch.int16, torch.int32)
    return digits.to(next((t for t in dtypes if size <= torch.iinfo(t).max), torch.int64))


def _power(shift: Shift) -> float | Tensor:
    """2^shift, exactly, for shifts of normal numbers; of a tensor a float64 tensor."""
    if isinstance(shift, Tensor):
        return ((shift + 1023) << 52).view(torch.float64)
    return 2.0**shift


def _uniform(shift: Tensor) -> Shift:
    """A number where all rows have the same."""
    if shift.numel() == 0:
        return 0
    first = shift.flatten()[0]
    return int(first) if bool((shift == first).all()) else shift


def _leading(x: Tensor) -> int:
    """How many dimensions index the rows of x."""
    return min(2, x.ndim - 1) if x.ndim > 1 else x.ndim


def _row_sizes(x: Tensor) -> Tensor:
    """max |x| of every row, with as many dimensions as x; NaN where there is one."""
    rest = tuple(range(_leading(x), x.ndim))
    if x.numel() == 0:
        return x.new_zeros([*x.shape[: _leading(x)], *[1] * len(rest)])
    return x.abs().amax(rest, keepdim=True) if rest else x.abs()


def _exponents(size: Tensor) -> Tensor:
    """The least e with size < 2^e."""
    return torch.frexp(size.double()).exponent.long()


def _digest(c: Tensor) -> int:
    """A number that differs where any element does, or two have changed places."""
    flat = c.long().flatten()
    mixed = torch.arange(flat.numel(), device=c.device).mul_(-7046029254386353131).add_(flat)
    mixed.mul_(-4658895280553007687).bitwise_xor_(mixed >> 31).mul_(-7723592293110705685)
    return int(mixed.sum())


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
