"""Memory of momentum networks: what is kept for the way back, and what a gradient takes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from pyjuliaode import MomentumNet
from pyjuliaode.errors import InvalidArgumentError
from pyjuliaode.experiments import momentum_memory, run
from pyjuliaode.experiments.momentum_memory import memory, summarise
from pyjuliaode.memory import NOTHING_KEPT, in_fresh_process
from pyjuliaode.momentum.exact import DOUBLES, ExactState, Ratio, _divmod

F64 = torch.float64

# ------------------------------------------------------------------- whole numbers in float64


@pytest.mark.parametrize("k", [2, 9, 10, 49, 58983, 65536, 10**6 - 1, 2**40 - 87])
def test_floored_division_of_doubles_is_that_of_integers(k):
    """Near multiples of k, where a rounded quotient would be on the wrong side."""
    generator = torch.Generator().manual_seed(k)
    limit = 2**DOUBLES.bits
    near = k * torch.randint(-(limit // k) + 1, limit // k, (2000,), generator=generator)
    anywhere = torch.randint(-limit + 1, limit, (2000,), generator=generator)
    c = torch.cat([near - 1, near, near + 1, anywhere, torch.tensor([0, limit - 1, 1 - limit])])
    q, r = _divmod(c.double(), k)
    assert torch.equal(q.long(), c.div(k, rounding_mode="floor"))
    assert torch.equal(r.long(), c.remainder(k))


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.1234567, 0.999999])
def test_the_buffer_of_float32_is_as_long_as_is_said_and_exact(gamma):
    generator = torch.Generator().manual_seed(0)
    state = ExactState(torch.randn(50, generator=generator), torch.zeros(50), gamma)
    ratio = Ratio.of(gamma, torch.float32)
    for _ in range(300):
        state.advance(torch.randn(50, generator=generator))
        assert 0 <= int(state.word.min()) <= int(state.word.max()) < ratio.whole.word
    # near 1 a fraction has large terms, which take more bits than float64 has
    assert state.word.dtype == (torch.int64 if gamma == 0.999999 else F64)
    assert len(state.words) + 1 == ratio.words(300)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_the_sign_of_zero_does_not_get_lost_on_the_way_back(dtype):
    class Sign(nn.Module):
        def forward(self, x):
            return torch.copysign(torch.full_like(x, 0.25), x) * (x != 0) - 1e-40 * (x == 0)

    x = torch.tensor([-0.0, 0.0, 1.0, -0.25, 0.5], dtype=dtype)
    x0, _ = MomentumNet([Sign()] * 20, 0.5).reconstruct(x)
    assert torch.equal(x0, x)


# ----------------------------------------------------------------------------- fresh processes


def test_a_fresh_process_that_fails_gives_the_last_line_of_the_error():
    assert "JSONDecodeError" in in_fresh_process(json.loads, s="{")["error"]


def test_memory_of_a_reversible_network_does_not_grow_with_the_depth():
    def peak(way, depth):
        sizes = {"batch": 512, "dim": 64, "hidden": 64, "seed": 0, "threads": 1}
        return in_fresh_process(memory, NOTHING_KEPT, way=way, depth=depth, **sizes)

    few, many = (peak("momentum 0.9, reversible", depth) for depth in (10, 200))
    assert (many["words"], many["buffer_mib"]) == (1, 0.25)
    assert many["paper_mib"] == pytest.approx(200 * math.log2(1 / 0.9) * 512 * 64 / 2**23)
    # pages of Python's own objects; backpropagation would keep x and the tanh, 1/4 MiB a layer
    assert many["mib"] - few["mib"] < 0.02 * 190 * 0.25
    assert peak("momentum 0.9, backprop", 200)["mib"] > 0.9 * 200 * 0.25


# ------------------------------------------------------------------------------------ the study


@pytest.fixture
def at_once(monkeypatch):
    """The study without processes: only that the numbers arrive where they belong."""

    def here(function, environment=None, **arguments):
        return function(**arguments)

    monkeypatch.setattr(momentum_memory, "in_fresh_process", here)


SMALL = {"batch": 8, "dim": 4, "hidden": 4, "repeats": 1}


def test_the_study_writes_a_row_for_every_way_and_depth(at_once, tmp_path):
    settings = {**SMALL, "depths": "12,3"}
    metrics = run("momentum-memory", out=tmp_path, progress=False, settings=settings)
    ways = list(momentum_memory.WAYS)
    assert [(r["depth"], r["way"]) for r in metrics["rows"]] == [
        (d, w) for d in (3, 12) for w in ways
    ]
    assert all(row["seconds"] > 0 for row in metrics["rows"])
    varying = [row["gamma"] for row in metrics["rows"] if "depth)" in row["way"]]
    assert varying == pytest.approx([1 - 1 / 150, 1 - 1 / 600])
    text = (tmp_path / "momentum-memory.md").read_text()
    assert text.startswith("Depth 12; growth over depth 3.")
    assert all(f"| {way} |" in text for way in ways)
    assert (tmp_path / "momentum-memory.png").read_bytes().startswith(b"\x89PNG")


def test_growth_is_told_with_and_without_the_buffer_and_failures_are_left_out():
    rows = [
        {"way": way, "depth": depth, "mib": mib, "seconds": seconds, "buffer_mib": buffer}
        for way, depth, mib, seconds, buffer in (
            ("momentum 0.9, backprop", 10, 8.0, 0.1, 0.0),
            ("momentum 0.9, backprop", 1000, 800.0, 2.0, 0.0),
            ("momentum 0.9, checkpoints", 10, 4.0, 0.2, 0.0),
            ("momentum 0.9, checkpoints", 1000, None, None, 0.0),
            ("momentum 0.9, reversible", 10, 3.0, 0.3, 1.0),
            ("momentum 0.9, reversible", 1000, 6.0, 4.0, 3.0),
        )
    ]
    final = summarise(rows)
    assert final["momentum 0.9, backprop"]["growth"] == 100.0
    reversible = final["momentum 0.9, reversible"]
    assert (reversible["growth"], reversible["growth_without_buffer"]) == (2.0, 1.5)
    assert reversible["time_over_backprop"] == 2.0
    assert reversible["time_over_checkpoints"] is None
    assert final["momentum 0.9, checkpoints"]["growth"] is None


@pytest.mark.parametrize("depths", ["", "ten", "0,10", "10,,30"])
def test_depths_that_are_none_are_refused(tmp_path, depths):
    with pytest.raises(InvalidArgumentError, match="'depths' must be "):
        run("momentum-memory", out=tmp_path, progress=False, settings={"depths": depths})
