"""The arithmetic of ``pyjuliaode bench``; its measurements are not tested."""

from __future__ import annotations

import pytest
import torch

from pyjuliaode import bench
from pyjuliaode.bench_problems import Competitor, gradient_competitors, heavy_ball, wide


def test_the_cost_of_an_error_is_that_of_the_cheapest_run_that_achieves_it():
    curve = [(1e-2, 1.0), (1e-5, 2.0), (1e-4, 1.5), (1e-6, 4.0)]
    assert bench.cheapest(curve, 1e-3) == 1.5
    assert bench.cheapest(curve, 1e-5) == 2.0
    assert bench.cheapest(curve, 1e-7) is None


def test_interleaved_measures_every_task_the_same_number_of_times():
    calls = {"a": 0, "b": 0}

    def task(name):
        def count():
            calls[name] += 1

        return count

    seconds = bench.interleaved({n: task(n) for n in calls}, repeats=4, least=0.0)
    # three calibrations and four measurements, each of one call after one to warm up
    assert calls == {"a": 14, "b": 14}
    assert all(value >= 0 for value in seconds.values())


@pytest.mark.parametrize("make", [heavy_ball, wide])
def test_the_float64_problem_is_the_same_problem(make):
    problem = make()
    exact = problem.in_float64()
    t = torch.zeros(())
    wanted = problem.func(t, problem.y0).double()
    torch.testing.assert_close(exact.func(t.double(), exact.y0), wanted, rtol=0, atol=1e-6)


def test_counts_and_errors_of_every_competitor_are_plausible():
    problem = wide(batch=2)
    truth = bench.reference(problem)
    assert truth.doubt_state < 1e-9
    assert truth.doubt_gradient < 1e-8
    for who in gradient_competitors():
        nfe_forward, nfe_backward = bench.count_evaluations(problem, who, 1e-5)
        assert nfe_forward > 10, who.label
        assert nfe_backward > 10, who.label
        # Float32 at rtol = atol = 1e-5: an order of magnitude of room for every adjoint.
        assert truth.gradient_error(bench.gradient(problem, who, 1e-5)()) < 2e-3, who.label


def test_the_memory_of_a_kept_graph_grows_with_the_steps():
    few, many = (bench._memory_in_child(Competitor("pyjuliaode", "rk4"), n, 1) for n in (10, 100))
    assert many["mib"] > few["mib"] + 10
