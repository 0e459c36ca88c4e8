"""Progress where standard error is no terminal: lines that say what is done, now and then."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pyjuliaode import progress
from pyjuliaode.progress import Lines, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_line_is_written_as_a_part_begins_and_every_ten_seconds(clock, capsys):
    with progress_bar(40, "step", description="first") as bar:
        for _ in range(20):
            clock.now += 1
            bar.set_postfix_str("loss 0.5")
            bar.update()
        bar.set_description("second")
        bar.set_description("second")
        bar.update(20)
    assert capsys.readouterr().err.splitlines() == [
        "first: 0 of 40 steps, 0:00",
        "first: 10 of 40 steps, 0:10 of about 0:40, loss 0.5",
        "first: 20 of 40 steps, 0:20 of about 0:40, loss 0.5",
        "second: 40 of 40 steps, 0:20, loss 0.5",
    ]


def test_many_short_parts_are_not_a_line_each(clock, capsys):
    with progress_bar(100, "solve") as bar:
        for i in range(100):
            bar.set_description(f"part {i}")
            clock.now += 0.1
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "part 0: 0 of 100 solves, 0:00"
    assert lines[-1] == "part 99: 100 of 100 solves, 0:10"
    assert 9 <= len(lines) <= 12


def test_what_was_done_before_does_not_make_the_rest_look_short(clock, capsys):
    with progress_bar(30, "epoch", initial=20) as bar:
        clock.now += 7000
        bar.update()
    assert capsys.readouterr().err == "21 of 30 epochs, 1:56:40 of about 19:26:40\n"


def test_an_error_is_not_swallowed_and_the_last_line_says_how_far_it_came(clock, capsys):
    def interrupted():
        with progress_bar(3, "run") as bar:
            bar.update()
            bar.update()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err.splitlines()[-1].startswith("2 of 3 runs")


def test_nothing_is_written_where_nobody_wants_to_know(capsys):
    with progress_bar(3, "run", shown=False) as bar:
        bar.set_description("a part")
        bar.set_postfix_str("loss")
        bar.update()
    progress.say("a line", shown=False)
    progress.say("")
    written = capsys.readouterr()
    assert (written.out, written.err) == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(3, "run", description="a part") as bar:
        assert not isinstance(bar, Lines)
        bar.update()
    assert "a part:  33%" in capsys.readouterr().err
