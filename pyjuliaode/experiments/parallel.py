"""Runs of a comparison in several processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from ..progress import EVERY, progress_bar
from .runner import RUN_FAILURES, execute
from .trainer import Callback, Trainer

if TYPE_CHECKING:
    from .comparison import Planned

_stop: Any = None  # in a worker: set when its run shall end


class _StopOnRequest(Callback):
    """Ends a run as Ctrl-C does, when the main process asks for it."""

    def on_batch(self, trainer: Trainer) -> None:
        if _stop is not None and _stop.is_set():
            raise KeyboardInterrupt


def run(planned: Sequence[Planned], options: Mapping[str, Any], jobs: int, progress: bool) -> None:
    """Execute every run, ``jobs`` at a time; a run that fails is noted in its folder.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the running ones have saved what they had.
    """
    # not fork: a forked child must not use the threads of torch or Julia that its parent started
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(jobs, context, _initialise, (stop,)) as pool:
        futures = [pool.submit(_execute, one, dict(options)) for one in planned]
        try:
            _wait(futures, jobs, progress)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _wait(futures: Sequence[Future[None]], jobs: int, progress: bool) -> None:
    pending = set(futures)
    with progress_bar(len(futures), "run", shown=progress, description=f"{jobs} jobs") as bar:
        while pending:
            # one run may take long: the bar is asked now and then
            done, pending = wait(pending, EVERY, FIRST_COMPLETED)
            for future in done:
                future.result()
            bar.update(len(done))


def _initialise(stop: Any) -> None:
    global _stop
    _stop = stop
    # Ctrl-C reaches the whole process group; the main process decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _execute(one: Planned, options: Mapping[str, Any]) -> None:
    if _stop is not None and _stop.is_set():
        return
    try:
        stop = _StopOnRequest()
        threads = one.threads.number
        execute(one.config, one.folder, threads, progress=False, callbacks=[stop], **options)
    except RUN_FAILURES as error:
        one.folder.note_failure(one.config.to_dict(), str(error))
    except KeyboardInterrupt:
        return
