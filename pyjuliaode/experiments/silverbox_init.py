"""Growth of untrained models: heavy-ball paper, figure 3; Nesterov paper, figure 2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import plotting
from ..api import solve
from ..data import Record, duffing, silverbox
from ..progress import progress_bar
from ..solution import Retcode
from . import models
from .base import ALL, Defaults, Study
from .config import RunConfig
from .folder import RunFolder
from .settings import choice, number, whole

INPUTS = {"silverbox": silverbox, "duffing": duffing}
T0, T1 = 1.0, 63.0
LARGE = 1e3
_SHOWN = (8, 16, 32, 63)  # times in the summary


class Driven(nn.Module):
    """One linear map of [state, u(t)], without activation: (1, n_in) -> (1, n_out).

    u is interpolated linearly between its samples. (The published script clamps the index of
    the sample to 1 and thereby extrapolates the first two.)
    """

    def __init__(self, n_in: int, n_out: int, u: Tensor):
        super().__init__()
        self.map = nn.Linear(n_in + 1, n_out, dtype=u.dtype)
        self.register_buffer("u", u)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        left = t.floor().long().clamp(0, len(self.u) - 2)
        now = torch.lerp(self.u[left], self.u[left + 1], t.to(self.u) - left)
        return self.map(torch.cat([h, now.expand(len(h), 1)], dim=1))


class ConstantVelocity(nn.Module):
    """A learned constant, drawn from U(-largest, largest): (1, n) -> (1, n)."""

    def __init__(self, n: int, largest: float, dtype: torch.dtype):
        super().__init__()
        self.velocity = nn.Parameter(largest * (2 * torch.rand(n, dtype=dtype) - 1))

    def forward(self, h0: Tensor) -> Tensor:
        return self.velocity.expand_as(h0)


class SilverboxInit(Study):
    """|h(t)| of randomly initialised models that are driven by the Silverbox input.

    The record minus its mean, times 100; t in [1, 63]; one linear map for a network; GHBNODE
    and GNesterovNODE with hardtanh and xi = ln 2, as the papers' scripts have it. Whether a run
    explodes is decided by the sign of a few weights, and the mean by a few runs: read the median
    and the share of large runs beside it. A line ends where a run could not be solved: where f
    pulls back, NesterovNODE oscillates with a frequency that grows like e^(t/4).
    """

    name = "silverbox-init"
    summary = "growth of |h| at random initialisation (heavy-ball fig. 3, Nesterov fig. 2)"
    models = (ALL, *models.MODELS)
    defaults = Defaults(
        model=ALL,
        tol=1e-7,
        settings={
            "input": choice(*INPUTS),
            "inits": whole(30),
            "ghbnode_bound": number(5.0, 0.0, 1e6, above=True),
            "gnesterovnode_bound": number(0.25, 0.0, 1e6, above=True),
            "variant": choice("paper", "published"),
        },
    )

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        record = self._record(config)
        chosen = list(models.MODELS) if config.model == ALL else [config.model]
        times = torch.arange(T0, T1 + 1, dtype=torch.float64)
        summaries = {}
        total = len(chosen) * config.settings["inits"]
        with progress_bar(total, "run", shown=progress) as bar:
            for name in chosen:
                bar.set_description(name)
                norms = []
                for init in range(config.settings["inits"]):
                    norms.append(self._norms(name, init, times, record, config))
                    bar.update()
                summaries[name] = summarise(times.tolist(), norms)
        final = {name: summary["at"] for name, summary in summaries.items()}
        return {
            "input": record.name,
            "t": times.tolist(),
            "models": summaries,
            "final": final,
        }

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        title = f"{results['input']} input, untrained models (a line ends where a run fails)"
        figure = plotting.norm_growth(results["t"], results["models"], title)
        folder.write("growth.png", lambda path: plotting.save(figure, path))

    @staticmethod
    def _record(config: RunConfig) -> Record:
        """The first 1000 samples, minus the mean of the whole record, times 100."""
        name = config.settings["input"]
        record = INPUTS[name]()
        scale = 100.0 if name == "silverbox" else 1.0
        u, y = ((values - values.mean())[:1000] * scale for values in (record.u, record.y))
        return Record(record.name, u, y, record.sample_rate)

    @torch.no_grad()
    def _norms(
        self, name: str, init: int, times: Tensor, record: Record, config: RunConfig
    ) -> list[float]:
        """|h| at ``times`` for one initialisation.

        Infinite from where it overflows; NaN from where the solver gave up on finite values.
        """
        torch.manual_seed(config.seed * 100_003 + init)
        dynamics = _driven(name, record, config.settings)
        h0 = record.y[:1].reshape(1, 1)
        state = dynamics.initial_state(h0, t0=T0)
        solution = solve(dynamics, state, times, models.solver(config), throw=False)
        norms = [
            dynamics.readout(t, y).norm().item()
            for t, y in zip(solution.t, solution.y, strict=True)
        ]
        exploded = solution.retcode is Retcode.UNSTABLE
        rest = math.inf if exploded else math.nan
        norms = [math.inf if math.isnan(norm) else norm for norm in norms]
        return norms + [rest] * (len(times) - len(norms))


def _driven(name: str, record: Record, settings: Mapping[str, Any]) -> nn.Module:
    """The dynamics ``name`` of a random linear field, with the papers' generalisations."""
    n = 2 if name == "anode" else 1
    field = Driven(2 if name in ("anode", "sonode") else 1, n, record.u)
    choices: dict[str, Any] = {"augment": 1, "xi": math.log(2.0), "variant": settings["variant"]}
    speed = 1.0
    if name in ("ghbnode", "gnesterovnode"):
        bound = settings[f"{name}_bound"]
        choices["activation"] = nn.Hardtanh(-bound, bound)
        if name == "gnesterovnode" and settings["variant"] == "paper":
            # h'(t0) = σ(k) σ(m0), and both factors are at most the bound
            speed = min(speed, 0.99 * bound**2)
    choices["initial_velocity"] = ConstantVelocity(n, speed, record.u.dtype)
    return models.dynamics(name, field, **choices).to(record.u.dtype)


def summarise(times: Sequence[float], norms: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Per time the median, mean, largest and the share of large ones; some of them as "at".

    NaN stands for a run that could not be solved so far; from there on only "unsolved" tells.
    """
    table = torch.tensor(norms, dtype=torch.float64)
    unsolved = table.isnan().any(dim=0)
    large = torch.where(unsolved, torch.nan, (table > LARGE).double().mean(dim=0))
    summary = {
        "median": _middle(table),
        "mean": table.mean(dim=0).tolist(),
        "max": table.max(dim=0).values.tolist(),
        "fraction_large": large.tolist(),
        "unsolved": table.isnan().sum(dim=0).tolist(),
    }
    at = {
        f"t={t:g}": {key: values[i] for key, values in summary.items()}
        for i, t in enumerate(times)
        if t in _SHOWN
    }
    return {"runs": len(norms), **summary, "at": at}


def _middle(table: Tensor) -> list[float]:
    """The median of every column, infinities among them; NaN where the column holds one."""
    ordered, n = table.sort(dim=0).values, len(table)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return torch.where(table.isnan().any(dim=0), torch.nan, median).tolist()


EXPERIMENT = SilverboxInit()
