"""A network over a folder of images: reading, network, and inverting with writing go on at the same time.

Threads joined by bounded queues: one reads and prepares the next image, one (on a CPU one per core, so that small
images share them) runs the network and hands its logits over slab by slab, one brings them back to the image's grid and
writes the mask. What goes wrong with a file is its row in the report; what goes wrong with a thread ends the run.
"""

import contextlib
import datetime
import functools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.data import Dataset, MetaTensor

from digar.data.task import model_file
from digar.inference.inputs import Case
from digar.inference.journal import DONE, FAILED, Journal, Outcome, input_state, settings_hash
from digar.inference.masks import volumes_ml
from digar.inference.report import write_reports
from digar.inference.streams import Passage, SlabStream, Stopped
from digar.inference.windows import WindowInferer
from digar.volumes.checks import PLACEMENT, WARNINGS, TooLargeError
from digar.volumes.files import file_hash, whole_file
from digar.volumes.grids import CanonicalAxes
from digar.volumes.memory import GIB
from digar.volumes.pictures import thumbnail
from digar.volumes.reading import VolumeError
from digar.volumes.writing import write_mask

logger = logging.getLogger(__name__)

FILE_ERRORS = (  # what a single file can be the cause of
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
WAITING = 1  # prepared images that may wait for the network, and images that may wait for their mask


@dataclass
class Work:
    """An image on its way."""

    case: Case
    state: list[list[int]]
    image: MetaTensor  # (C, X, Y, Z) in the working grid
    streams: list[SlabStream]  # one per volume
    seconds: dict[str, float] = field(default_factory=dict)


class FolderEvaluator(Engine):
    """An ignite engine whose iterations are finished images; ``engine.state.output`` is the :class:`Outcome`.

    Args:
        device: of the network.
        dataset: ``{"name", "image", "mask"}`` of each case (:func:`find_cases`) with the preprocessing.
        network: windows to logits.
        inferer: runs it over a volume.
        postprocessing: ``pred`` from slabs to a mask in the image's grid.
        output_dir: of masks, journal and reports.
        weights_file: whose hash tells whether masks of a former run still hold.
        metadata_file: of the bundle, for its name and version.
        settings: that decide the masks, by name; the same for masks of a former run.
        labels: value in the mask to name.
        in_channels: of the network.
        num_classes: of the network.
        probabilities: also write ``(classes, X, Y, Z)`` float16 beside each mask, as ``.npy``.
        thumbnails: keep small pictures of the images for the report.
        fail_fast: stop at the first image that fails.
        rank, num_processes: this process takes every ``num_processes``-th image, from ``rank`` on.
        handlers: ignite handlers with ``attach``.
    """

    def __init__(
        self,
        device: str | torch.device,
        dataset: Dataset,
        network: torch.nn.Module,
        inferer: WindowInferer,
        postprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        output_dir: str | Path,
        weights_file: str | Path,
        metadata_file: str | Path,
        settings: Mapping[str, Any],
        labels: Mapping[int, str],
        in_channels: int,
        num_classes: int,
        probabilities: bool = False,
        thumbnails: bool = True,
        fail_fast: bool = False,
        rank: int = 0,
        num_processes: int = 1,
        handlers: Sequence[Any] = (),
    ) -> None:
        super().__init__(lambda engine, outcome: self._take(outcome))
        self.device = torch.device(device)
        self.dataset = dataset
        self.network = network
        self.inferer = inferer
        self.postprocessing = postprocessing
        # absolute: while ITK loads a format, it changes the working folder of all threads for a moment
        self.output_dir = Path(output_dir).absolute()
        self.weights_file = model_file(weights_file).absolute()
        self.settings = dict(settings)
        self.labels = dict(labels)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.probabilities = probabilities
        self.thumbnails = thumbnails
        self.fail_fast = fail_fast
        self.rank, self.num_processes = rank, num_processes
        self.metadata_file = Path(metadata_file).absolute()
        self.outcomes: list[Outcome] = []
        for handler in handlers or ():
            handler.attach(self)

    @property
    def failed(self) -> int:
        """Images without a mask."""
        return sum(outcome.status == FAILED for outcome in self.outcomes)

    def run(self) -> list[Outcome]:
        """Run over all images that have no valid mask yet, and write the reports.

        Returns:
            The outcome of every image of all processes, in order; those that were never begun are missing.

        Raises:
            OSError: the output folder cannot be written.
            KeyboardInterrupt: by Ctrl-C or SIGTERM, after the reports are written.
        """
        started = time.time()
        weights = file_hash(self.weights_file)
        metadata = json.loads(self.metadata_file.read_text(encoding="utf-8"))
        run = settings_hash({"weights": weights, **self.settings})
        self.journal = Journal(self.output_dir, self.rank, run)
        known = self.journal.read()
        cases = list(self.dataset.data)
        pending = []
        for index in range(self.rank, len(cases), self.num_processes):
            former = self.journal.finished(cases[index], known)
            if former is None:
                pending.append(index)
            else:
                self.outcomes.append(former)
        if self.outcomes:
            logger.info("%d of %d masks are there already", len(self.outcomes), len(self.outcomes) + len(pending))
        try:
            if pending:
                with _interrupted_by_sigterm(), contextlib.closing(self._finished_images(pending)) as outcomes:
                    super().run(outcomes, max_epochs=1, epoch_length=len(pending))
        finally:
            self._wait_for_others()
            if self.rank == 0:
                names = {case["name"]: None for case in cases}
                latest = {**self.journal.read(), **{outcome.name: outcome for outcome in self.outcomes}}
                self.outcomes = [latest[name] for name in names if name in latest and latest[name].run == run]
                facts = {
                    "bundle": " ".join(str(metadata.get(name)) for name in ("name", "version")),
                    "weights": self.weights_file.name,
                    "weights_sha256": weights,
                    "device": str(self.device),
                    "processes": self.num_processes,
                    "started": datetime.datetime.fromtimestamp(started).isoformat(timespec="seconds"),
                    "seconds": round(time.time() - started, 1),
                    "images": len(cases),
                    "done": len(self.outcomes) - self.failed,
                    "failed": self.failed,
                    "not_run": len(cases) - len(self.outcomes),
                    "settings": self.settings,
                }
                with self._errors_named():
                    write_reports(self.output_dir, facts, self.outcomes, self.labels)
                logger.info("%(done)d done, %(failed)d failed, %(not_run)d not run", facts)
        return self.outcomes

    def _take(self, outcome: Outcome) -> Outcome:
        """An iteration of the engine: note what became of an image."""
        self.outcomes.append(outcome)
        with self._errors_named():
            self.journal.add(outcome)
        if outcome.status == FAILED and self.fail_fast:
            self.terminate()
        return outcome

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Errors of writing journal and reports, with the folder and what to do."""
        try:
            yield
        except OSError as error:
            word = f"{error.strerror}: finished masks are kept, make room and start again"
            raise OSError(error.errno, word, str(self.output_dir)) from None

    def _wait_for_others(self) -> None:
        if self.num_processes > 1 and dist.is_initialized():
            try:
                dist.barrier()
            except RuntimeError as error:
                logger.warning("another process has ended early, its images may be missing: %s", first_line(error))

    # The threads

    def _finished_images(self, pending: Sequence[int]) -> Generator[Outcome, None, None]:
        """Start the threads, and give the outcomes as they come; the threads end with the generator."""
        stop = threading.Event()
        to_network, to_writing, finished = (Passage(depth, stop) for depth in (WAITING, WAITING, 0))
        errors: list[BaseException] = []
        self.network.eval()
        progress = {"passed": 0, "ended": 0}  # each written by one thread alone
        reading = functools.partial(self._read, pending, to_network, finished, progress, stop)
        network = functools.partial(self._infer, to_network, to_writing)
        writing = functools.partial(self._write, to_writing, finished, progress)
        at_once = self.inferer.threads if self.device.type == "cpu" else 1  # small images share the threads

        def guarded(stage: Callable[[], None]) -> None:
            try:
                torch.set_num_threads(1)  # a thread's own setting: the stages are beside each other
                stage()
            except Stopped:
                pass
            except BaseException as error:
                errors.append(error)
                stop.set()
                raise

        threads = [
            threading.Thread(target=guarded, args=(stage,), name=f"stage {number}", daemon=True)
            for number, stage in enumerate([reading, *[network] * at_once, writing])
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in pending:
                yield finished.get()
        except Stopped:
            raise errors[0] from None
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _read(
        self,
        pending: Sequence[int],
        to_network: Passage,
        finished: Passage,
        progress: dict[str, int],
        stop: threading.Event,
    ) -> None:
        for index in pending:
            case = self.dataset.data[index]
            began = time.monotonic()
            try:
                state = input_state(case["image"])
                try:
                    prepared = self.dataset.transform({**case, "beside_others": True})
                except FILE_ERRORS as error:
                    if not isinstance(root_cause(error), TooLargeError):
                        raise
                    while progress["passed"] > progress["ended"] and not stop.is_set():
                        time.sleep(0.05)  # memory that images before it still hold
                    prepared = self.dataset.transform(case)
            except FILE_ERRORS as error:
                finished.put(self._failure(case, error, seconds={"reading": time.monotonic() - began}))
                continue
            image = prepared["image"]
            streams = [SlabStream(stop) for _ in range(image.shape[0] // self.in_channels)]
            progress["passed"] += 1
            to_network.put(Work(case, state, image, streams, {"reading": time.monotonic() - began}))

    @torch.inference_mode()
    def _infer(self, to_network: Passage, to_writing: Passage) -> None:
        while True:
            work: Work = to_network.get()
            to_writing.put(work)
            began = time.monotonic()
            for stream, volume in zip(work.streams, work.image.split(self.in_channels), strict=True):
                try:
                    for slab in self.inferer.slabs(volume, self.network, self.device):
                        if not stream.put(slab):
                            break
                    stream.put(None)
                except FILE_ERRORS as error:
                    stream.put(error)
            work.seconds["network"] = time.monotonic() - began

    def _write(self, to_writing: Passage, finished: Passage, progress: dict[str, int]) -> None:
        while True:
            work: Work = to_writing.get()
            began = time.monotonic()
            try:
                outcome = self._finish(work)
            except FILE_ERRORS as error:
                for stream in work.streams:
                    stream.cancel()
                outcome = self._failure(work.case, error, work.image)
            work.seconds["writing"] = time.monotonic() - began  # the wait for the network is in it
            outcome.seconds = {name: round(value, 3) for name, value in work.seconds.items()}
            progress["ended"] += 1
            finished.put(outcome)

    # One image

    def _finish(self, work: Work) -> Outcome:
        """Bring the logits of an image back to its grid, and write its mask."""
        target = self.output_dir / work.case["mask"]
        shape = tuple(int(n) for n in work.image.meta["spatial_shape"])
        affine = np.asarray(work.image.meta["original_affine"], dtype=np.float64)
        masks = []
        with contextlib.ExitStack() as files:
            for number, stream in enumerate(work.streams):
                data = {"image": work.image, "pred": stream}
                if self.probabilities:
                    name = f"{target.name.removesuffix('.nii.gz')}_probabilities"
                    name += f"_{number:04d}.npy" if len(work.streams) > 1 else ".npy"
                    temporary = files.enter_context(whole_file(target.with_name(name)))
                    data["probabilities"] = _array_on_disk(temporary, (self.num_classes, *shape))
                masks.append(self.postprocessing(data)["pred"].numpy()[0])
        mask = np.stack(masks, axis=-1) if len(masks) > 1 else masks[0]
        paths = work.case["image"]
        write_mask(target, mask, affine, work.image.meta.get(PLACEMENT))
        if input_state(paths) != work.state:
            target.unlink()
            raise VolumeError(work.case["name"], "was changed while it was read: run again")
        return Outcome(
            name=work.case["name"],
            status=DONE,
            warnings=list(work.image.meta[WARNINGS]),
            mask=work.case["mask"],
            shape=list(mask.shape),
            spacing=[round(float(s), 4) for s in np.linalg.norm(affine[:3, :3], axis=0)],
            volumes_ml=volumes_ml(mask, affine, self.labels),
            thumbnail=self._thumbnail(work.image, masks[0], affine) if self.thumbnails else "",
            state=work.state,
            run=self.journal.run,
            mask_hash=file_hash(target),
            ended=time.time(),
        )

    def _thumbnail(self, image: MetaTensor, mask: np.ndarray, affine: np.ndarray) -> str:
        axes = CanonicalAxes.of(affine)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[list(axes.order)]
        return thumbnail(image[0].numpy(), axes.apply(mask), spacing)

    def _failure(
        self,
        case: Case,
        error: BaseException,
        image: MetaTensor | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> Outcome:
        """The row of an image that has no mask; a mask of a former run is taken away."""
        cause = root_cause(error)
        if isinstance(cause, VolumeError):
            reason = cause.reason
        elif isinstance(cause, torch.OutOfMemoryError | MemoryError):
            size = "x".join(str(n) for n in image.shape[1:]) if image is not None else "its"
            free = f", {torch.cuda.mem_get_info()[0] / GIB:.1f} GiB are free" if self.device.type == "cuda" else ""
            reason = f"memory ran out with {size} voxels at the network's spacing{free}: {first_line(cause)}"
        else:
            reason = f"{type(cause).__name__}: {first_line(cause)}"
            if not isinstance(cause, OSError):
                logger.error("%s failed", case["name"], exc_info=error)
        with contextlib.suppress(OSError):
            (self.output_dir / case["mask"]).unlink(missing_ok=True)
        logger.warning("%s: %s", case["name"], reason)
        rounded = {name: round(value, 3) for name, value in (seconds or {}).items()}
        run = self.journal.run
        return Outcome(case["name"], FAILED, reason, seconds=rounded, run=run, ended=time.time())


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """What schedulers send ends the run as Ctrl-C does, unless the program around it has an answer of its own."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not mine:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _array_on_disk(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A float16 array in a ``.npy`` file whose room on the disk is taken at once.

    Raises:
        OSError: the disk is too small; without this a full disk would end the process with a signal.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def root_cause(error: BaseException) -> BaseException:
    """The first cause of an error; MONAI wraps those of transforms."""
    while error.__cause__ is not None and not isinstance(error, VolumeError):
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return str(error).strip().partition("\n")[0] or "no further word"
