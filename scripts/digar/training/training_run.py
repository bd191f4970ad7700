"""A training that a signal stops cleanly: it finishes its step, saves its state and says how to go on."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from monai.handlers import CheckpointLoader

from digar.data.task import Task
from digar.training.checkpoints import BestWeights, TrainingState
from digar.training.decisive import decisive
from digar.training.distributed import restarts
from digar.training.progress import TrainingProgress
from digar.volumes.files import remove_leftovers
from digar.volumes.locks import LOCK_NAME, InUseError, held

logger = logging.getLogger(__name__)
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@dataclass(frozen=True)
class RunSettings:
    """How a training begins, saves and ends.

    Args:
        resume: see :meth:`TrainingState.begin`.
        keep_states, save_minutes: see :class:`TrainingState`.
        patience: see :class:`BestWeights`.
    """

    resume: bool | str = False
    keep_states: int = 2
    save_minutes: float = 10.0
    patience: int | None = None


class TrainingRun:
    """Run a trainer to its end, or until SIGTERM, SIGUSR1 (which schedulers can send ahead of time) or Ctrl-C.

    With it go the best weights (:class:`BestWeights`), the states to resume from (:class:`TrainingState`) and a
    progress bar.

    At a signal the step is finished (a validation too), the state saved, and :meth:`leave` ends the program with 128 +
    the signal's number, as shells do. A second Ctrl-C leaves at once. One process that is told to stop stops all.

    Args:
        trainer: what runs.
        evaluator: decides over the best weights.
        saved: what a state holds beside the trainer and the best score: ``network``, ``optimizer``, ``scheduler``, and
            whatever else has ``state_dict`` and ``load_state_dict``.
        output_dir: the states go into its ``states``.
        weights_file: where the best weights go.
        settings: the fields of :class:`RunSettings`.
        handlers: of the trainer.
        task: of the training, written beside the weights.
    """

    def __init__(
        self,
        trainer: Trainer,
        evaluator: Evaluator,
        saved: dict[str, Any],
        output_dir: str | Path,
        weights_file: str | Path,
        settings: dict[str, Any] | None = None,
        handlers: Sequence[Any] = (),
        task: Task | None = None,
    ) -> None:
        self.trainer = trainer
        self.evaluator = evaluator
        self.saved = saved
        self.handlers = handlers
        self.settings = RunSettings(**(settings or {}))
        self.output_dir = Path(output_dir)
        self.best_weights = BestWeights(saved["network"], weights_file, evaluator, self.settings.patience, task)
        objects = {**saved, "trainer": trainer, "best_weights": self.best_weights}
        loader = trainer.data_loader
        self.state = TrainingState(
            self.output_dir / "states", objects, loader, self.settings.keep_states, self.settings.save_minutes
        )
        self.received = 0
        self.stopped_by = 0

    def start(self) -> None:
        """Begin or go on; a training that is complete is left as it is.

        Raises:
            InUseError: another run writes to the same output folder or the same weights.
        """
        for part in (self.best_weights, self.state, TrainingProgress()):
            part.attach(self.trainer)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        with self.alone():
            self.prepare()
            if self.complete:
                logger.info("the training is complete: nothing is left to do")
                return
            with self.listening():
                self.trainer.run()

    def prepare(self) -> None:
        """Go on from a state, or plan to begin anew; see :meth:`TrainingState.begin`.

        Processes that torchrun restarted resume, even if their command began a new training.
        """
        network, scheduler = self.saved["network"], self.saved["scheduler"]
        self.state.decisive = decisive(self.trainer, self.evaluator, network, scheduler, self.handlers)
        if self.state.begin("auto" if restarts() else self.settings.resume):
            for handler in self.handlers:  # what a training began with is not what it goes on from
                if isinstance(handler, CheckpointLoader):
                    self.trainer.remove_event_handler(handler, Events.STARTED)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs from this one's files, and remove what killed ones left half-written."""
        weights_file = self.best_weights.weights_file
        with ExitStack() as locks:
            refusal = ""
            if idist.get_rank() == 0:
                try:
                    locks.enter_context(held(self.output_dir / LOCK_NAME, f"output_dir {self.output_dir}"))
                    if self.output_dir.resolve() not in weights_file.resolve().parents:
                        lock_file = weights_file.with_name(f".{weights_file.name}.lock")
                        locks.enter_context(held(lock_file, f"weights_file {weights_file}"))
                except InUseError as error:
                    refusal = str(error)
            refusal = idist.broadcast(refusal, safe_mode=True)
            if refusal:
                raise InUseError(refusal)
            if idist.get_rank() == 0:
                for folder in (self.output_dir, *self.output_dir.glob("*/"), weights_file.parent):
                    remove_leftovers(folder)
            yield

    @property
    def complete(self) -> bool:
        """Whether the training has made its last step, or waited in vain for a better score."""
        return self.state.complete or self.best_weights.exhausted

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals; Python lets only the main thread do so, elsewhere the program keeps its own ways."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self.receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note the signal: little else is safe wherever the program may be (a write past Python's buffers is)."""
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: finishing this step and saving; Ctrl-C twice leaves at once\n".encode())

    def iteration_completed(self, trainer: Engine) -> None:
        """Save if it is time, and stop at a signal; an epoch's last step is saved with its validation."""
        due = self._agree()
        if trainer.state.iteration % trainer.state.epoch_length == 0:
            return
        if due or self.stopped_by:
            self.state.save(trainer)
        if self.stopped_by:
            self._stop(trainer)

    def epoch_completed(self, trainer: Engine) -> None:
        """Stop between epochs, where the state is saved already."""
        self._agree()
        if self.stopped_by and not self.complete:
            self._stop(trainer)

    def _agree(self) -> bool:
        """All processes save and stop at the same steps, whichever got the signal; whether it is time to save."""
        due = idist.get_rank() == 0 and self.state.due
        self.stopped_by, due = idist.all_reduce(torch.tensor([self.received, int(due)]), "MAX").tolist()
        return bool(due)

    def _stop(self, trainer: Engine) -> None:
        idist.barrier()  # the first process has written the state before another one's end can take it along
        total = trainer.state.max_epochs * trainer.state.epoch_length
        logger.info(
            "stopped by %s after step %d of %d; the state is in %s, the same command with --resume goes on",
            signal.Signals(self.stopped_by).name,
            trainer.state.iteration,
            total,
            self.state.folder,
        )
        trainer.terminate(skip_completed=True)

    def leave(self) -> None:
        """End the program if the training was stopped: the last thing that a workflow does.

        Raises:
            SystemExit: with 128 + the signal's number (143 for SIGTERM).
        """
        if self.stopped_by and not self.complete:
            sys.exit(128 + self.stopped_by)
