"""Files a training writes: the best weights and the state to resume from. Nothing half-written, nothing lost."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

logger = logging.getLogger(__name__)


def save_atomically(content: Any, path: str | Path) -> None:
    """``torch.save`` to a temporary name beside ``path``, then rename: the file is always whole.

    Raises:
        OSError: the disk is full or the folder cannot be written; the former file is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def keep_former(path: str | Path) -> Path | None:
    """Move an existing file, dated, into the sub-folder ``former`` beside it; returns where it is now."""
    path = Path(path)
    if not path.exists():
        return None
    written = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(path.stat().st_mtime))
    kept = path.parent / "former" / f"{path.stem}_{written}{path.suffix}"
    number = 1
    while kept.exists():
        kept = kept.with_name(f"{path.stem}_{written}_{number}{path.suffix}")
        number += 1
    kept.parent.mkdir(parents=True, exist_ok=True)
    path.replace(kept)
    logger.info("former weights %s are kept as %s", path, kept)
    return kept


class BestWeights:
    """Write the network's weights, a raw state dict, whenever the validation metric improves.

    The first write of a new run moves a file that is already there into ``former/``, dated; a resumed run goes on with
    its own. Without any validation, the last weights are written at the end of the training.

    Args:
        network: its weights are written.
        weights_file: path of the weights.
        metric: the evaluator's metric that decides; None to write at the end only.
        smaller_is_better: True for a loss.
    """

    def __init__(
        self,
        network: nn.Module,
        weights_file: str | Path,
        metric: str | None,
        smaller_is_better: bool = False,
    ) -> None:
        self.network = network
        self.weights_file = Path(weights_file)
        self.metric = metric
        self.sign = -1.0 if smaller_is_better else 1.0
        self.best: float | None = None

    def attach(self, trainer: Engine, evaluator: Engine | None = None) -> None:
        if evaluator is not None:
            evaluator.add_event_handler(Events.COMPLETED, self.validated)
        trainer.add_event_handler(Events.COMPLETED, self.completed)

    def state_dict(self) -> dict[str, float | None]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self.best = state["best"]

    def validated(self, evaluator: Engine) -> None:
        """Write if the metric is better than ever; a metric that is not a number never is."""
        score = self.sign * float(evaluator.state.metrics[self.metric])
        if score != score or (self.best is not None and score <= self.best):
            return
        self._write(first=self.best is None)
        self.best = score

    def completed(self, trainer: Engine) -> None:
        """Write the last weights if no validation ever did."""
        if self.best is None:
            self._write(first=True)

    @idist.one_rank_only()
    def _write(self, first: bool) -> None:
        if first:
            keep_former(self.weights_file)
        save_atomically(self.network.state_dict(), self.weights_file)
        logger.info("weights written to %s", self.weights_file)


class TrainingState:
    """Save network, optimizer, scheduler, trainer and best score after every epoch; resume from it.

    Args:
        state_file: path of the state.
        objects: what has ``state_dict`` and ``load_state_dict``, the trainer among them under ``trainer``.
    """

    def __init__(self, state_file: str | Path, objects: dict[str, Any]) -> None:
        self.state_file = Path(state_file)
        self.objects = objects

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    @idist.one_rank_only()
    def save(self, trainer: Engine | None = None) -> None:
        """Write the state of every object."""
        state = {name: item.state_dict() for name, item in self.objects.items()}
        save_atomically(state, self.state_file)

    def resume(self) -> None:
        """Put every object back into the state of the file.

        Raises:
            FileNotFoundError: there is no state to resume from.
            ValueError: the state belongs to another network or to a run of another length.
        """
        if not self.state_file.is_file():
            raise FileNotFoundError(f"there is no training state at {self.state_file}: start without --resume True")
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        former, planned = state["trainer"], self.objects["trainer"].state
        if former["max_epochs"] != planned.max_epochs:
            raise ValueError(
                f"{self.state_file} belongs to a run of {former['max_epochs']} epochs, its learning rate was planned "
                f"for them: resume with --max_epochs {former['max_epochs']} instead of {planned.max_epochs}"
            )
        if planned.epoch_length not in (None, former["epoch_length"]):
            raise ValueError(
                f"{self.state_file} belongs to a run of {former['epoch_length']} batches per epoch, this one has "
                f"{planned.epoch_length}: resume with the same cases, label_ratio, batch_size and processes"
            )
        for name, item in self.objects.items():
            try:
                item.load_state_dict(state[name])
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{self.state_file} is the state of another {name}: {error}") from error
        logger.info("training resumes from %s", self.state_file)
