"""Trainer: trains a continuous-depth classifier or regressor, and loses nothing.

After every epoch a checkpoint is on disk, and the metrics at least every second; both are written
atomically. A resumed run continues bit for bit. Ctrl-C keeps the complete epochs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, PyJuliaODEError
from ..progress import progress_bar
from . import rng
from .config import RunConfig, differences
from .environment import describe
from .folder import RunFolder

Samples = tuple[Tensor, Tensor]
# of a step of the optimizer, on average: evaluations, and the calls that they were made in
COSTS = ("nfe_forward", "nfe_backward", "sequential_forward", "sequential_backward")


class TrainingError(PyJuliaODEError, RuntimeError):
    """Training cannot go on: the loss is no longer finite."""


@dataclass
class Task:
    """What is trained, on what.

    Attributes:
        model: network; where it solves something, its ``stats`` are those of its last solve.
        loss: (output, target) -> scalar tensor, a mean over the samples.
        correct: (output, target) -> number of samples that are classified right.
        train, test: inputs and targets, first axis the samples.
        batch_size: samples in a step; the whole training set where it is not smaller.
        lr: learning rate of Adam.
        clip: largest norm of the gradient, or None.
        info: what else metrics.json shall say of the task.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], int]
    train: Samples
    test: Samples
    batch_size: int
    lr: float
    clip: float | None = None
    info: dict[str, Any] = field(default_factory=dict)


def right_choices(logits: Tensor, labels: Tensor) -> int:
    """How many of B samples have their largest logit, of (B, C), where the label (B,) says."""
    return int((logits.argmax(dim=1) == labels).sum())


class Callback:
    """Hooks of the trainer; what ``state`` returns travels in the checkpoint."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first epoch of a run, not on resuming."""

    def on_batch(self, trainer: Trainer) -> None:
        """After every optimizer step."""

    def on_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """After every epoch, before its checkpoint is written; it must draw no random numbers."""

    def state(self) -> Any:
        """Tensors and plain data."""
        return None

    def load(self, state: Any) -> None:
        """Take back what ``state`` returned."""


class Trainer:
    """Adam on a :class:`Task`, into a :class:`RunFolder`.

    Arguments:
        task: what is trained.
        config: recorded, and compared with the checkpoint's on resuming.
        folder: already opened.
        callbacks: hooks, called in order.
        progress: say on standard error how far it is.
    """

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        folder: RunFolder,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ):
        if config.epochs is None:
            raise InvalidArgumentError("a config to train with needs a number of epochs")
        self.task, self.config, self.folder = task, config, folder
        self.callbacks, self.progress = list(callbacks), progress
        self.model = task.model.to(config.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.lr)
        self.order = torch.Generator().manual_seed(config.seed)
        self.train = tuple(tensor.to(config.device) for tensor in task.train)
        self.test = tuple(tensor.to(config.device) for tensor in task.test)
        self.records: list[dict[str, Any]] = []
        self.solver: dict[str, str] = {}
        self.environment = describe(config.device)
        self._written = 0.0  # when metrics.json was

    @property
    def epoch(self) -> int:
        """Complete epochs."""
        return len(self.records)

    def fit(self) -> dict[str, Any]:
        """Train up to ``config.epochs``, from the folder's checkpoint if there is one.

        Returns:
            The metrics, as written to metrics.json.

        Raises:
            KeyboardInterrupt: Ctrl-C; the complete epochs are on disk.
            TrainingError, SolverError: the loss is not finite or a solve failed; likewise.
        """
        if not self._load():
            for callback in self.callbacks:
                callback.on_start(self)
            self._write_metrics("running")
            self._save(self.records)
        status = "failed"
        try:
            self._epochs()
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            # The model is in the middle of an epoch here if this is not the regular end; the
            # records and the checkpoint on disk are of the last complete one.
            metrics = self._write_metrics(status)
        return metrics

    def metrics(self, status: str) -> dict[str, Any]:
        """Everything that metrics.json holds."""
        return {
            "status": status,
            "config": self.config.to_dict(),
            "environment": self.environment,
            "parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "solver": self.solver,
            "task": self.task.info,
            "epochs": self.records,
            "final": _final(self.records),
        }

    def _write_metrics(self, status: str) -> dict[str, Any]:
        metrics = self.metrics(status)
        self.folder.write_metrics(metrics)
        self._written = time.monotonic()
        return metrics

    def _epochs(self) -> None:
        planned = self.config.epochs
        bar = progress_bar(
            planned,
            "epoch",
            shown=self.progress,
            initial=min(self.epoch, planned),
            description=f"{self.config.model}, seed {self.config.seed}",
        )
        with bar:
            while self.epoch < planned:
                record = self._one_epoch()
                for callback in self.callbacks:
                    callback.on_epoch(self, record)
                # one assignment, after the checkpoint: an interrupt never sees half an epoch
                self._save([*self.records, record])
                self.records = [*self.records, record]
                # not after each of many short epochs: the file is written whole every time
                if time.monotonic() - self._written > 1.0:
                    self._write_metrics("running")
                bar.set_postfix_str(_postfix(record))
                bar.update()

    def _one_epoch(self) -> dict[str, Any]:
        start = time.perf_counter()
        self.model.train()
        seen = correct = batches = 0
        loss, costs = 0.0, {}
        for x, y in self._batches():
            output, value, stats = self._step(x, y)
            seen, batches = seen + len(x), batches + 1
            loss += value * len(x)
            correct += self.task.correct(output, y)
            if stats is not None:
                costs = {key: costs.get(key, 0) + getattr(stats, key) for key in COSTS}
            for callback in self.callbacks:
                callback.on_batch(self)
        seconds = time.perf_counter() - start
        test_loss, test_accuracy = self.evaluate(self.test)
        return {
            "epoch": self.epoch + 1,
            "loss": loss / seen,
            "accuracy": correct / seen,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            **{key: cost / batches for key, cost in costs.items()},
            "seconds": seconds,
        }

    def _step(self, x: Tensor, y: Tensor) -> tuple[Tensor, float, Any]:
        """One optimizer step; returns the output, the loss and the cost of the solve."""
        self.optimizer.zero_grad(set_to_none=True)
        output = self.model(x)
        stats = getattr(self.model, "stats", None)
        loss = self.task.loss(output, y)
        value = loss.item()
        if value != value or abs(value) == float("inf"):
            raise TrainingError(
                f"the loss is {value} in epoch {self.epoch + 1}: lower the learning rate "
                "(--set lr=...), tighten --tol, or take another seed"
            )
        loss.backward()  # fills stats.nfe_backward
        if self.task.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip)
        self.optimizer.step()
        if stats is not None:
            self.solver = {key: getattr(stats, key) for key in ("method", "adjoint", "backend")}
        return output.detach(), value, stats

    def _batches(self) -> Iterator[Samples]:
        x, y = self.train
        size = self.task.batch_size
        if size >= len(x):
            yield x, y
            return
        order = torch.randperm(len(x), generator=self.order).to(x.device)
        for start in range(0, len(x), size):
            chosen = order[start : start + size]
            yield x[chosen], y[chosen]

    @torch.no_grad()
    def evaluate(self, samples: Samples, batch_size: int = 512) -> tuple[float, float]:
        """Mean loss and share of correct answers over ``samples``."""
        self.model.eval()
        loss, correct = 0.0, 0
        for x, y in zip(samples[0].split(batch_size), samples[1].split(batch_size), strict=True):
            output = self.model(x)
            loss += self.task.loss(output, y).item() * len(x)
            correct += self.task.correct(output, y)
        return loss / len(samples[0]), correct / len(samples[0])

    def _save(self, records: list[dict[str, Any]]) -> None:
        self.folder.write_checkpoint(
            {
                "config": self.config.to_dict(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "order": self.order.get_state(),
                "rng": rng.capture(),
                "records": records,
                "solver": self.solver,
                "callbacks": [callback.state() for callback in self.callbacks],
            }
        )

    def _load(self) -> bool:
        """Continue from the folder's checkpoint; False where there is none."""
        state = self.folder.read_checkpoint()
        if state is None:
            return False
        differing = differences(state["config"], self.config.to_dict())
        if differing:
            raise InvalidArgumentError(
                f"the checkpoint in {self.folder.path} is of another run ({'; '.join(differing)})"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.set_state(state["order"])
        self.records, self.solver = state["records"], state["solver"]
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=False):
            callback.load(saved)
        rng.restore(state["rng"])
        return True


def _final(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What a table shows of a run: the last epoch's values, costs over all of them."""
    if not records:
        return {}
    last, n = records[-1], len(records)
    return {
        "epoch": n,
        **{key: last[key] for key in ("loss", "accuracy", "test_loss", "test_accuracy")},
        **{key: sum(record[key] for record in records) / n for key in COSTS if key in records[0]},
        **{f"{key}_last": last[key] for key in ("nfe_forward", "nfe_backward") if key in last},
        "seconds": sum(record["seconds"] for record in records),
    }


def _postfix(record: dict[str, Any]) -> str:
    text = f"loss {record['loss']:.4f}, test acc {record['test_accuracy']:.3f}"
    if "nfe_forward" in record:
        text += f", nfe {record['nfe_forward']:.0f} + {record['nfe_backward']:.0f}"
    return text
