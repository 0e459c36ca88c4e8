"""Progress of long work on standard error: tqdm's bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 10.0  # seconds between two lines of one part, at least
BETWEEN_PARTS = 1.0  # and between the first lines of two parts


Bar: TypeAlias = "tqdm | Lines"


def progress_bar(
    total: int, unit: str, *, shown: bool = True, initial: int = 0, description: str = ""
) -> Bar:
    """A context manager with tqdm's ``update``, ``set_description`` and ``set_postfix_str``.

    Arguments:
        total: how many units of work there are.
        unit: what one of them is called; "s" makes it many.
        shown: if False nothing is written.
        initial: how many are done already.
        description: of the part that begins.
    """
    if shown and not sys.stderr.isatty():
        return Lines(total, unit, initial, description)
    from tqdm import tqdm

    return tqdm(
        total=total,
        unit=unit,
        initial=initial,
        desc=description or None,
        disable=not shown,
        dynamic_ncols=True,
    )


def say(text: str, shown: bool = True) -> None:
    """A line on standard error, where progress is shown; nothing for an empty text."""
    if shown and text:
        print(text, file=sys.stderr, flush=True)


class Lines:
    """Progress in a file or a pipe: a line as a part begins, and now and then as it goes on."""

    def __init__(self, total: int, unit: str, initial: int = 0, description: str = ""):
        self.total, self.unit = total, unit
        self.done = self.initial = initial
        self.description, self.postfix = description, ""
        self.start, self.last = time.monotonic(), -float("inf")
        self.said = ""

    def __enter__(self) -> Lines:
        if self.description:
            self._line()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.said != self._where():
            self._line()

    def update(self, n: int = 1) -> None:
        """``n`` more units are done."""
        self.done += n
        self._line(EVERY)

    def set_description(self, text: str) -> None:
        """Another part begins."""
        if text != self.description:
            self.description = text
            self._line(BETWEEN_PARTS)

    def set_postfix_str(self, text: str) -> None:
        """What the next lines say beside the time."""
        self.postfix = text

    def _line(self, pause: float = 0.0) -> None:
        now = time.monotonic()
        if now - self.last < pause:
            return
        self.last, self.said = now, self._where()
        say(", ".join(filter(None, (self.said, self._when(now), self.postfix))))

    def _where(self) -> str:
        done = f"{self.done} of {self.total} {self.unit}s"
        return f"{self.description}: {done}" if self.description else done

    def _when(self, now: float) -> str:
        seconds, done = now - self.start, self.done - self.initial
        if not done or self.done >= self.total:
            return _clock(seconds)
        rest = seconds * (self.total - self.done) / done
        return f"{_clock(seconds)} of about {_clock(seconds + rest)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
