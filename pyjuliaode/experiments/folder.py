"""RunFolder: the output folder of one run, written so that nothing is ever half there."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidArgumentError
from .config import differences

METRICS = "metrics.json"
CHECKPOINT = "checkpoint.pt"
FIGURES = "frames"  # a folder; figures beside it are *.png


_NO_NAME = "out is empty: name a folder with --out, '.' for this one"


class RunFolder:
    """The folder of one run: metrics.json, checkpoint.pt, figures.

    Arguments:
        path: of the folder; it is made with the first file in it, not before.
    """

    def __init__(self, path: str | os.PathLike[str]):
        if not os.fspath(path):
            raise InvalidArgumentError(_NO_NAME)
        self.path = Path(path)
        self._replaces = False  # the run that lies there, with the first file that is written

    def open(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Take the folder for a run with ``config``, or refuse; nothing is written yet.

        With ``overwrite`` the old run is as good as gone, and is removed as the new one first
        writes: one that cannot begin leaves it where it is.

        Raises:
            InvalidArgumentError: another run lies there, or this one and neither ``resume`` nor
                ``overwrite`` was asked for, or nothing can be written there.
        """
        self.check(config, resume=resume, overwrite=overwrite)
        self._replaces = overwrite

    def check(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Raise what :meth:`open` would raise."""
        if resume and overwrite:
            raise InvalidArgumentError("resume and overwrite exclude each other: choose one")
        check_writable(self.path)
        if not overwrite:
            self._refuse_other_run(config, resume)

    def _refuse_other_run(self, config: Mapping[str, Any], resume: bool) -> None:
        old = self.read_metrics() or self.read_checkpoint()
        if old is None:
            return
        differing = differences(old.get("config", {}), config)
        if differing:
            raise InvalidArgumentError(
                f"{self.path} holds another run ({'; '.join(differing)}): choose another folder "
                "with --out, or --overwrite that run"
            )
        if not resume:
            raise InvalidArgumentError(
                f"{self.path} already holds this run ({_progress(old)}): --resume continues it, "
                "--overwrite starts it again, --out writes somewhere else"
            )

    def refuse_run(self) -> None:
        """Raise where a single run lies here, beside which other results would be mistaken."""
        if any((self.path / name).exists() for name in (METRICS, CHECKPOINT)):
            raise InvalidArgumentError(
                f"{self.path} holds a single run, and a comparison has a folder for every run: "
                "choose another folder with --out"
            )

    def _remove_run(self) -> None:
        """Remove what a run writes, and nothing else that may lie in the folder."""
        for name in (METRICS, CHECKPOINT):
            (self.path / name).unlink(missing_ok=True)
        for figure in self.path.glob("*.png"):
            figure.unlink()
        shutil.rmtree(self.path / FIGURES, ignore_errors=True)

    def read_metrics(self) -> dict[str, Any] | None:
        """metrics.json, or None where there is none.

        Raises:
            InvalidArgumentError: the file is there but is not the metrics of a run.
        """
        if self._replaces:
            return None
        path = self.path / METRICS
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(f"cannot read {path}: {error}") from error
        if not isinstance(metrics, dict) or not isinstance(metrics.get("config"), dict):
            raise InvalidArgumentError(
                f"{path} is not the metrics of a run; --overwrite it or "
                "choose another folder with --out"
            )
        return metrics

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json atomically; numbers that are not finite become null."""
        self.write_json(METRICS, metrics)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write ``values`` as JSON, atomically; numbers that are not finite become null."""
        text = json.dumps(plain(values), indent=1, allow_nan=False) + "\n"
        self.write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def note_failure(self, config: Mapping[str, Any], message: str) -> None:
        """Put the error that ended a run into its metrics."""
        metrics = self.read_metrics() or {"config": dict(config)}
        self.write_metrics({**metrics, "status": "failed", "error": message})

    def read_checkpoint(self) -> dict[str, Any] | None:
        """checkpoint.pt, or None where there is none.

        Raises:
            InvalidArgumentError: the file is there but cannot be loaded.
        """
        path = self.path / CHECKPOINT
        if self._replaces or not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever unpickling raised
            raise InvalidArgumentError(
                f"cannot read {path} ({type(error).__name__}); --overwrite starts the run again"
            ) from error

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write checkpoint.pt atomically; ``state`` is tensors and plain data."""
        self.write(CHECKPOINT, lambda path: torch.save(dict(state), path))

    def write(self, name: str, writer: Callable[[Path], Any]) -> Path:
        """Let ``writer`` write a temporary file, then rename it to ``name`` in this folder."""
        target = self.path / name
        if self._replaces:
            self._remove_run()
            self._replaces = False
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix
        )
        os.close(handle)
        try:
            writer(Path(temporary))
            # mkstemp makes files that only the owner may read
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return target


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise where no file can be written into ``folder``, which need not be there yet.

    Raises:
        InvalidArgumentError: a file is in the way, or the system does not allow it.
    """
    if not os.fspath(folder):
        raise InvalidArgumentError(_NO_NAME)
    path = place = Path(folder).absolute()
    try:
        try:
            path.stat()
        except FileNotFoundError:
            place = next(parent for parent in path.parents if parent.exists())
        if place.is_dir():
            with tempfile.TemporaryFile(dir=place):
                return
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidArgumentError(
            f"cannot write to {folder} ({why}): choose another folder with --out"
        ) from error
    raise InvalidArgumentError(f"{place} is a file: choose a folder with --out")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: floats that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _progress(metrics: Mapping[str, Any]) -> str:
    done, planned = (
        len(metrics.get("epochs") or metrics.get("records") or []),
        metrics["config"].get("epochs"),
    )
    status = metrics.get("status", "unknown")
    return status if planned is None else f"{status}, {done} of {planned} epochs"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
