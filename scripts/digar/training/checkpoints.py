"""Files a training writes: the best weights and the states to resume from. Nothing half-written, nothing lost."""

import filecmp
import json
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn
from torch.utils.data import DataLoader

from digar.data.sampler import resumable_sampler
from digar.data.task import Task, task_file, write_task
from digar.networks.weights import is_whole, load_tensors
from digar.training.decisive import differences
from digar.training.sharding import restore, whole_state
from digar.volumes.files import whole_file

logger = logging.getLogger(__name__)


def save_atomically(content: Any, path: str | Path) -> None:
    """``torch.save`` to a temporary name beside ``path``, then rename: the file is always whole.

    Raises:
        OSError: the disk is full or the folder cannot be written; it names the file, which is then untouched.
    """
    path = Path(path)
    try:
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            torch.save(content, stream)
    except (OSError, RuntimeError) as error:
        # torch.save ends a failed write by an error of its own and hides the system's behind it
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        free = shutil.disk_usage(path.parent).free / 2**20
        advice = (
            f"cannot be written: {reason.strerror}. {free:.0f} MiB are free there; what stood there before is whole"
        )
        raise OSError(reason.errno, advice, str(path)) from None


def keep_former(path: str | Path) -> Path | None:
    """Keep an existing file or folder under its date in the sub-folder ``former`` beside it; returns that name.

    A folder is moved. A file gets the name as a second one (a copy, where the disk has no links), so that it stands
    under its own until another takes its place: at no moment are there no weights.
    """
    path = Path(path)
    if not path.exists():
        return None
    written = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(path.stat().st_mtime))
    kept = path.parent / "former" / f"{path.stem}_{written}{path.suffix}"
    number = 1
    while kept.exists():
        if kept.is_file() and filecmp.cmp(path, kept, shallow=False):
            return kept  # by a run that was killed before it wrote its own
        kept = kept.with_name(f"{path.stem}_{written}_{number}{path.suffix}")
        number += 1
    kept.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.replace(kept)
    else:
        try:
            kept.hardlink_to(path)
        except OSError:
            with whole_file(kept) as temporary:
                shutil.copy2(path, temporary)
    logger.info("former %s is kept as %s", path, kept)
    return kept


class BestWeights:
    """Write the weights, a raw state dict, whenever the validation metric improves, and their task beside them.

    The first write of a new run keeps a file that is already there in ``former/``, dated; a resumed run goes on with
    its own. Where no validation gives a number (no held-out case holds a label), the weights of the last one are kept;
    without any validation, those of the last epoch. Both are said in the log.

    Args:
        network: its weights are written.
        weights_file: path of the weights.
        evaluator: its key metric decides, and its ``metric_cmp_fn`` says which of two scores is better.
        patience: this many validations in a row without a better score end the training; None for any number.
        task: of the training, written beside the weights; None writes none.

    Raises:
        FileExistsError: there is a task file without weights: it may be a plan, or belong to other weights.
    """

    def __init__(
        self,
        network: nn.Module,
        weights_file: str | Path,
        evaluator: Evaluator,
        patience: int | None = None,
        task: Task | None = None,
    ) -> None:
        self.network = network
        self.weights_file = Path(weights_file)
        self.task = task
        self.task_file = task_file(weights_file)
        if task is not None and self.task_file.exists() and not self.weights_file.exists():
            raise FileExistsError(
                f"{self.task_file} is there without {self.weights_file.name}, and would be replaced by the training's "
                "own: name another --output_dir or --weights_file, or move it away"
            )
        self.evaluator = evaluator
        self.patience = patience
        self.best: float | None = None
        self.waited = 0  # validations since the best
        self.written = False

    def attach(self, trainer: Engine) -> None:
        self.evaluator.add_event_handler(Events.COMPLETED, self.validated, trainer)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    @property
    def exhausted(self) -> bool:
        """Whether the patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """The best score and how long ago it was, and MONAI's record of it (value and epoch), which its log shows."""
        record = self.evaluator.state
        return {
            "best": self.best,
            "waited": self.waited,
            "written": self.written,
            "best_metric": float(record.best_metric),
            "best_metric_epoch": record.best_metric_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited, self.written = state["best"], state["waited"], state["written"]
        self.evaluator.state.best_metric = state["best_metric"]
        self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]

    def validated(self, evaluator: Evaluator, trainer: Engine) -> None:
        """Write if the metric is better than ever, or if it has never been a number."""
        name = evaluator.state.key_metric_name
        score = float(evaluator.state.metrics[name])
        if math.isnan(score) and self.best is None:
            if not self.written:
                logger.warning("%s is undefined on the held-out cases: the last weights are kept, not the best", name)
            self._write()
        if not math.isnan(score) and (self.best is None or evaluator.metric_cmp_fn(score, self.best)):
            self._write()
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.exhausted:
            logger.info("%d validations without a better score: the training ends", self.waited)
            trainer.terminate()

    def epoch_completed(self, trainer: Engine) -> None:
        """Write the last weights if no validation ever did."""
        if not self.written and trainer.state.epoch == trainer.state.max_epochs:
            self._write()
            logger.info("nothing was validated: these are the weights of the last epoch")

    def _write(self) -> None:
        weights = whole_state(self.network)
        if idist.get_rank() == 0:
            if not self.written:
                keep_former(self.weights_file)
            if self.task is not None and not self.written:
                keep_former(self.task_file)
                self.task_file.unlink(missing_ok=True)  # never the task of other weights, whenever a kill comes
            save_atomically(weights, self.weights_file)
            if self.task is not None:
                write_task(self.task, self.task_file)
            logger.info("weights written to %s", self.weights_file)
        self.written = True


class TrainingState:
    """Save network, optimizer, scheduler, trainer and best score every few minutes and after every epoch; resume.

    A resumed training computes what it would have computed without the stop: the loader's sampler leaves out what the
    epoch has seen (:class:`digar.data.sampler.ResumableSampler`), samples depend on (seed, epoch, index) and the
    network's own draws on (seed, step, process) alone (:class:`digar.training.run_seed.RunSeed`). States are whole: any
    number of processes, sharded or not, goes on from those of any other.

    Args:
        folder: where ``step_NNNNNNN.pt`` go, one for each state that is kept.
        objects: what has ``state_dict`` and ``load_state_dict``, the trainer among them under ``trainer``.
        loader: of the training, with a ``ResumableSampler``.
        keep: how many of the last states stay.
        save_minutes: between two states within an epoch.
    """

    def __init__(
        self,
        folder: str | Path,
        objects: dict[str, Any],
        loader: DataLoader,
        keep: int = 2,
        save_minutes: float = 10.0,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep_states is {keep}: at least one state must be kept")
        self.folder = Path(folder)
        self.objects = objects
        self.loader = loader
        self.keep = keep
        self.save_minutes = save_minutes
        self.saved_at = time.monotonic()
        self.decisive: dict[str, Any] = {}  # see digar.training.decisive; set before the training begins

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    @property
    def due(self) -> bool:
        """Whether the last state is old enough for another within the epoch."""
        return time.monotonic() - self.saved_at >= 60 * self.save_minutes

    @property
    def samples_per_step(self) -> int:
        """Over all processes: what gives a position within an epoch its meaning."""
        return (self.loader.batch_size or 1) * resumable_sampler(self.loader).num_replicas

    @property
    def complete(self) -> bool:
        """Whether the training has reached its last step."""
        trainer = self.objects["trainer"].state
        return trainer.iteration >= trainer.max_epochs * trainer.epoch_length

    def files(self) -> list[Path]:
        """The states there are, the last one first."""
        return sorted(self.folder.glob("step_*.pt"), reverse=True)

    def save(self, trainer: Engine) -> None:
        """Write the state of every object; remove the states before the last ones. All processes take part."""
        state = {name: whole_state(item) for name, item in self.objects.items()}
        if idist.get_rank() == 0:
            self._write(state, trainer.state.iteration)
        self.saved_at = time.monotonic()

    def _write(self, state: dict[str, Any], step: int) -> None:
        written = self.folder / f"step_{step:07d}.pt"
        about = {"samples_per_step": self.samples_per_step, "decisive": json.dumps(self.decisive)}
        save_atomically({**state, **about}, written)
        others = [file for file in self.files() if file != written]
        earlier = [file for file in others if file < written]
        for file in others:
            if file not in earlier[: self.keep - 1]:
                file.unlink()

    def begin(self, resume: bool | str) -> bool:
        """Go on from the last state, or begin anew; whether it goes on.

        Args:
            resume: True to go on; False to begin anew, when states of a former run are moved into ``former/``; "auto"
                to go on if there is a state, for commands that a scheduler starts again.

        Raises:
            FileNotFoundError: there is no state to resume from.
            ValueError: no state can be read, or it belongs to another network, other data or a run of another length.
        """
        if resume not in (True, False, "auto"):
            raise ValueError(f"resume is {resume!r}: it must be True, False or auto")
        if resume is True and not self.files():
            raise FileNotFoundError(
                f"there is no training state in {self.folder}: correct --output_dir, or start without --resume"
            )
        if resume and self.files():
            self._resume()
            return True
        # only when the training starts: a workflow may be initialised to be looked at
        self.objects["trainer"].add_event_handler(Events.STARTED, self._set_former_apart)
        return False

    @idist.one_rank_only()
    def _set_former_apart(self, trainer: Engine) -> None:
        if self.files():
            keep_former(self.folder)

    def _resume(self) -> None:
        file, state = self._last_readable()
        trainer, planned = state["trainer"], self.objects["trainer"].state
        if trainer["max_epochs"] != planned.max_epochs:
            raise ValueError(
                f"{file} belongs to a run of {trainer['max_epochs']} epochs, its learning rate was planned "
                f"for them: resume with --max_epochs {trainer['max_epochs']} instead of {planned.max_epochs}"
            )
        then, processes = state["samples_per_step"], resumable_sampler(self.loader).num_replicas
        if then != self.samples_per_step:
            raise ValueError(
                f"{file} belongs to a run of {then} samples per step, over all processes; this one has "
                f"{self.samples_per_step}: resume with --batch_size {then / processes:g} for {processes} "
                f"process{'es' * (processes > 1)}"
            )
        decisive = json.loads(state["decisive"])
        differ = differences(decisive, json.loads(json.dumps(self.decisive)))
        if differ:
            raise ValueError(
                f"{file} belongs to another training; these differ: {'; '.join(differ)}. Resume with the data and "
                "options of the run (dataset_dir, task, fold and the other options of the split decide over the "
                "cases), or start without --resume"
            )
        for name, item in self.objects.items():
            try:
                restore(item, state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(f"{file} is the state of another {name}: {error}") from None
        self._take_rates(decisive["rates"], trainer["iteration"])
        steps = trainer["iteration"] % trainer["epoch_length"]
        epoch = trainer["iteration"] // trainer["epoch_length"] + 1
        resumable_sampler(self.loader).skip(epoch, steps * self.loader.batch_size)
        total = trainer["max_epochs"] * trainer["epoch_length"]
        logger.info("training resumes from %s, after step %d of %d", file, trainer["iteration"], total)

    def _take_rates(self, then: list[float], step: int) -> None:
        """Go on with this run's learning rates, where the state was saved with others."""
        now = self.decisive["rates"]
        if now == then:
            return
        optimizer, scheduler = self.objects["optimizer"], self.objects["scheduler"]
        scheduler.base_lrs = now
        for group, old, new in zip(optimizer.param_groups, then, now, strict=True):
            group["lr"] *= new / old
        before, after = (", ".join(f"{rate:g}" for rate in sorted(set(rates))) for rates in (then, now))
        logger.warning("learning rates are planned as %s after step %d, they were as %s before", after, step, before)

    def _last_readable(self) -> tuple[Path, dict[str, Any]]:
        """The last state that is whole; a broken one (a full disk, a power cut) is passed over with a warning."""
        for file in self.files():
            if is_whole(file):
                try:
                    return file, load_tensors(file)
                except ValueError as error:
                    logger.warning("%s", error)
            logger.warning("the training state %s is damaged: going back to the one before it", file)
        raise ValueError(
            f"every training state in {self.folder} is damaged: start without --resume, they are then moved to former/"
        )
