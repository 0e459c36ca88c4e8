"""Butcher tableaus of the explicit Runge-Kutta methods, with their continuous extensions.

Sources: Dormand & Prince (1980), Prince & Dormand (1981), Tsitouras (2011), Bogacki & Shampine
(1989), Fehlberg (1969), Shampine (1986, interpolant of the Dormand-Prince pair).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Row = Sequence[float]


class Weights(NamedTuple):
    """A tableau as tensors of one dtype and device."""

    a: tuple[Tensor, ...]
    b: Tensor
    c: Tensor  # without c[0] = 0, real
    error: Tensor | None
    interpolant: Tensor | None


@dataclass(frozen=True, eq=False)
class Tableau:
    """An explicit Runge-Kutta method.

    Attributes:
        order: order of the solution that is carried on.
        a: rows 1.. of the strictly lower triangular matrix; c: abscissae (c[0] = 0); b: weights.
        error: b minus the embedded weights; None for methods of fixed step.
        dense: rows of the continuous extension y(θ) = y0 + h Σ_i k_i Σ_j dense[i][j] θ^(j+1), of
            local error O(h^(order)) at least, so that states between the steps keep the method's
            order. None: made of a cubic Hermite polynomial where the order is at most 4.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    c: Row
    b: Row
    error: Row | None = None
    dense: tuple[Row, ...] | None = None

    @cached_property
    def stages(self) -> int:
        return len(self.b)

    @cached_property
    def fsal(self) -> bool:
        """The last stage is the first of the next step."""
        return self.b[-1] == 0 and tuple(self.b[:-1]) == tuple(self.a[-1]) if self.a else False

    @cached_property
    def rows(self) -> int:
        """Slopes that the continuous extension reads: the stages and, without FSAL, f(t1, y1)."""
        return self.stages if self.fsal or self.dense is not None else self.stages + 1

    @cached_property
    def interpolant(self) -> tuple[Row, ...] | None:
        """The matrix of the continuous extension, (rows, degree), or None."""
        if self.dense is not None:
            return self.dense
        if self.order > 4:
            return None
        b = [*self.b] + [0.0] * (self.rows - self.stages)
        p = [[0.0, 3 * w, -2 * w] for w in b]
        p[0] = [x + y for x, y in zip(p[0], (1.0, -2.0, 1.0), strict=True)]
        p[-1] = [x + y for x, y in zip(p[-1], (0.0, -1.0, 1.0), strict=True)]
        return tuple(map(tuple, p))

    def weights(self, dtype: torch.dtype, device: torch.device) -> Weights:
        return _weights(self, dtype, device)


@lru_cache(maxsize=128)
def _weights(tab: Tableau, dtype: torch.dtype, device: torch.device) -> Weights:
    def tensor(rows: object) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64).to(dtype=dtype, device=device)

    return Weights(
        tuple(tensor(row) for row in tab.a),
        tensor(tab.b),
        tensor(tab.c[1:]).real if dtype.is_complex else tensor(tab.c[1:]),
        None if tab.error is None else tensor(tab.error),
        None if tab.interpolant is None else tensor(tab.interpolant),
    )


def _poly(scale: float, roots: Sequence[float], quadratic: Row = (1.0,), power: int = 1) -> Row:
    """Coefficients of θ^1.. of scale θ^power Π(θ - root) · quadratic(θ), lowest power first."""
    coeffs = [scale * q for q in quadratic]
    for root in roots:
        shifted = [0.0, *coeffs]
        coeffs = [s - root * c for s, c in zip(shifted, [*coeffs, 0.0], strict=True)]
    return tuple([0.0] * (power - 1) + coeffs)


EULER = Tableau("euler", 1, (), (0.0,), (1.0,))
MIDPOINT = Tableau("midpoint", 2, ((1 / 2,),), (0.0, 1 / 2), (0.0, 1.0))
HEUN2 = Tableau("heun2", 2, ((1.0,),), (0.0, 1.0), (1 / 2, 1 / 2))
HEUN3 = Tableau("heun3", 3, ((1 / 3,), (0.0, 2 / 3)), (0.0, 1 / 3, 2 / 3), (1 / 4, 0.0, 3 / 4))
RK4 = Tableau(  # Kutta's 3/8 rule, as in torchdiffeq
    "rk4",
    4,
    ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    (0.0, 1 / 3, 2 / 3, 1.0),
    (1 / 8, 3 / 8, 3 / 8, 1 / 8),
)
ADAPTIVE_HEUN = Tableau(
    "adaptive_heun", 2, ((1.0,),), (0.0, 1.0), (1 / 2, 1 / 2), error=(-1 / 2, 1 / 2)
)
FEHLBERG2 = Tableau(
    "fehlberg2",
    2,
    ((1 / 2,), (1 / 256, 255 / 256)),
    (0.0, 1 / 2, 1.0),
    (1 / 512, 255 / 256, 1 / 512),
    error=(-1 / 512, 0.0, 1 / 512),
)
BOSH3 = Tableau(
    "bosh3",
    3,
    ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (0.0, 1 / 2, 3 / 4, 1.0),
    (2 / 9, 1 / 3, 4 / 9, 0.0),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)

_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DOPRI5 = Tableau(
    "dopri5",
    5,
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _DOPRI5_B,
    ),
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (*_DOPRI5_B, 0.0),
    error=(
        71 / 57600,
        0.0,
        -71 / 16695,
        71 / 1920,
        -17253 / 339200,
        22 / 525,
        -1 / 40,
    ),
    dense=(
        (
            1.0,
            -8048581381 / 2820520608,
            8663915743 / 2820520608,
            -12715105075 / 11282082432,
        ),
        (0.0, 0.0, 0.0, 0.0),
        (
            0.0,
            131558114200 / 32700410799,
            -68118460800 / 10900136933,
            87487479700 / 32700410799,
        ),
        (
            0.0,
            -1754552775 / 470086768,
            14199869525 / 1410260304,
            -10690763975 / 1880347072,
        ),
        (
            0.0,
            127303824393 / 49829197408,
            -318862633887 / 49829197408,
            701980252875 / 199316789632,
        ),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
)

_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
)
TSIT5 = Tableau(
    "tsit5",
    5,
    (
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        _TSIT5_B,
    ),
    (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    (*_TSIT5_B, 0.0),
    error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    dense=(
        _poly(
            -1.0530884977290216,
            (1.3299890189751412,),
            (0.7139816917074209, -1.4364028541716351, 1.0),
        ),
        _poly(0.1017, (), (1.2949852507374631, -2.1966568338249754, 1.0), power=2),
        _poly(2.490627285651252793, (), (1.57803468208092486, -2.38535645472061657, 1.0), power=2),
        _poly(-16.54810288924490272, (1.21712927295533244, 0.61620406037800089), power=2),
        _poly(47.37952196281928122, (1.203071208372362603, 0.658047292653547382), power=2),
        _poly(-34.87065786149660974, (1.2, 2 / 3), power=2),
        _poly(2.5, (1.0, 0.6), power=2),
    ),
)

_DOPRI8_B = (
    14005451 / 335480064,
    0.0,
    0.0,
    0.0,
    0.0,
    -59238493 / 1068277825,
    181606767 / 758867731,
    561292985 / 797845732,
    -1041891430 / 1371343529,
    760417239 / 1151165299,
    118820643 / 751138087,
    -528747749 / 2220607170,
    1 / 4,
)
_DOPRI8_LOW = (
    13451932 / 455176623,
    0.0,
    0.0,
    0.0,
    0.0,
    -808719846 / 976000145,
    1757004468 / 5645159321,
    656045339 / 265891186,
    -3867574721 / 1518517206,
    465885868 / 322736535,
    53011238 / 667516719,
    2 / 45,
    0.0,
)
DOPRI8 = Tableau(
    "dopri8",
    8,
    (
        (1 / 18,),
        (1 / 48, 1 / 16),
        (1 / 32, 0.0, 3 / 32),
        (5 / 16, 0.0, -75 / 64, 75 / 64),
        (3 / 80, 0.0, 0.0, 3 / 16, 3 / 20),
        (
            29443841 / 614563906,
            0.0,
            0.0,
            77736538 / 692538347,
            -28693883 / 1125000000,
            23124283 / 1800000000,
        ),
        (
            16016141 / 946692911,
            0.0,
            0.0,
            61564180 / 158732637,
            22789713 / 633445777,
            545815736 / 2771057229,
            -180193667 / 1043307555,
        ),
        (
            39632708 / 573591083,
            0.0,
            0.0,
            -433636366 / 683701615,
            -421739975 / 2616292301,
            100302831 / 723423059,
            790204164 / 839813087,
            800635310 / 3783071287,
        ),
        (
            246121993 / 1340847787,
            0.0,
            0.0,
            -37695042795 / 15268766246,
            -309121744 / 1061227803,
            -12992083 / 490766935,
            6005943493 / 2108947869,
            393006217 / 1396673457,
            123872331 / 1001029789,
        ),
        (
            -1028468189 / 846180014,
            0.0,
            0.0,
            8478235783 / 508512852,
            1311729495 / 1432422823,
            -10304129995 / 1701304382,
            -48777925059 / 3047939560,
            15336726248 / 1032824649,
            -45442868181 / 3398467696,
            3065993473 / 597172653,
        ),
        (
            185892177 / 718116043,
            0.0,
            0.0,
            -3185094517 / 667107341,
            -477755414 / 1098053517,
            -703635378 / 230739211,
            5731566787 / 1027545527,
            5232866602 / 850066563,
            -4093664535 / 808688257,
            3962137247 / 1805957418,
            65686358 / 487910083,
        ),
        (
            403863854 / 491063109,
            0.0,
            0.0,
            -5068492393 / 434740067,
            -411421997 / 543043805,
            652783627 / 914296604,
            11173962825 / 925320556,
            -13158990841 / 6184727034,
            3936647629 / 1978049680,
            -160528059 / 685178525,
            248638103 / 1413531060,
            0.0,
        ),
    ),
    (
        0.0,
        1 / 18,
        1 / 12,
        1 / 8,
        5 / 16,
        3 / 8,
        59 / 400,
        93 / 200,
        5490023248 / 9719169821,
        13 / 20,
        1201146811 / 1299019798,
        1.0,
        1.0,
    ),
    _DOPRI8_B,
    error=tuple(b - low for b, low in zip(_DOPRI8_B, _DOPRI8_LOW, strict=True)),
)

ADAPTIVE = {tab.name: tab for tab in (DOPRI5, TSIT5, BOSH3, FEHLBERG2, ADAPTIVE_HEUN, DOPRI8)}
FIXED = {tab.name: tab for tab in (EULER, MIDPOINT, HEUN2, HEUN3, RK4)}
