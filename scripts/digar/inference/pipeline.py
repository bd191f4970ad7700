"""The way of many images through a network: reading, network, and inverting with writing go on at the same time.

Threads joined by bounded queues: one reads and prepares the next image, one (on a CPU one per core, so that small
images share them) runs the network and hands its logits over slab by slab, one brings them back to the image's grid and
writes the mask. What goes wrong with a file is its outcome; what goes wrong with a thread ends the run.
"""

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, MetaTensor
from torch import nn

from digar.inference.inputs import Case
from digar.inference.journal import DONE, FAILED, Outcome, file_state, input_state
from digar.inference.masks import absent_labels, volumes_ml
from digar.inference.record import RunRecord
from digar.inference.streams import Passage, SlabStream, Stopped
from digar.inference.windows import WindowInferer
from digar.volumes.checks import MEMORY_LEFT, NEED, PLACEMENT, WARNINGS, TooLargeError
from digar.volumes.dicom import describe_series, is_series
from digar.volumes.errors import first_error, in_a_line
from digar.volumes.files import file_hash, printable, whole_file
from digar.volumes.grids import CanonicalAxes
from digar.volumes.header import VolumeError
from digar.volumes.memory import GIB, available_memory
from digar.volumes.pictures import thumbnail
from digar.volumes.reading import volume_files
from digar.volumes.writing import write_mask

logger = logging.getLogger(__name__)

FILE_ERRORS = (  # what a single file can be the cause of
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
WAITING = 1  # prepared images that may wait for the network, and images that may wait for their mask
PATIENCE = 0.5  # seconds between looks at images that another process is at


@dataclass(frozen=True)
class FolderOptions:
    """What a folder run does beside the masks.

    Args:
        in_channels: of the network.
        num_classes: of the network.
        probabilities: also write ``(classes, X, Y, Z)`` float16 beside each mask, as ``.npy``.
        thumbnails: keep small pictures of the images for the report.
        fail_fast: stop at the first image that fails.
        dicom_seg: also write the masks of DICOM series as DICOM SEG.
    """

    in_channels: int
    num_classes: int
    probabilities: bool = False
    thumbnails: bool = True
    fail_fast: bool = False
    dicom_seg: bool = False


@dataclass
class Work:
    """An image on its way."""

    case: Case
    state: list[list[int]]
    image: MetaTensor  # (C, X, Y, Z) in the working grid
    streams: list[SlabStream]  # one per volume
    seconds: dict[str, float] = field(default_factory=dict)


Finished = tuple[Case, Outcome]


class Pipeline:
    """Images to masks.

    Args:
        device: of the network.
        dataset: ``{"name", "image", "mask"}`` of each case (:func:`digar.inference.inputs.find_cases`) with the
            preprocessing.
        network: windows to logits.
        inferer: runs it over a volume.
        postprocessing: ``pred`` from slabs to a mask in the image's grid.
        record: of the run, open.
        options: see :class:`FolderOptions`.
    """

    def __init__(
        self,
        device: torch.device,
        dataset: Dataset,
        network: nn.Module,
        inferer: WindowInferer,
        postprocessing: Callable[[Mapping], Mapping],
        record: RunRecord,
        options: FolderOptions,
    ) -> None:
        self.device = device
        self.dataset = dataset
        self.network = network
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.record = record
        self.options = options

    def run(self, pending: Sequence[int]) -> Generator[Finished, None, None]:
        """Start the threads, and give cases with their outcomes as they come; the threads end with the generator.

        Args:
            pending: which cases of the dataset.
        """
        stop = threading.Event()
        to_network, to_writing, finished = (Passage(depth, stop) for depth in (WAITING, WAITING, 0))
        errors: list[BaseException] = []
        progress = {"passed": 0, "ended": 0, "taken": 0.0, "freed": 0.0}  # each written by one thread alone
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

    # The threads

    def _read(
        self,
        pending: Sequence[int],
        to_network: Passage,
        finished: Passage,
        progress: dict[str, float],
        stop: threading.Event,
    ) -> None:
        memory = available_memory()  # that all images on their way share
        for case in self._claimed(pending, stop):
            meanwhile = self.record.meanwhile(case)
            if meanwhile is not None:
                finished.put((case, meanwhile))
                continue
            began = time.monotonic()
            try:
                state = input_state(case["image"])
                prepared = self._prepared(case, memory, progress, stop)
            except FILE_ERRORS as error:
                finished.put((case, self._failure(case, error, seconds={"reading": time.monotonic() - began})))
                continue
            image = prepared["image"]
            streams = [SlabStream(stop) for _ in range(image.shape[0] // self.options.in_channels)]
            progress["passed"] += 1
            progress["taken"] += image.meta[NEED]
            to_network.put(Work(case, state, image, streams, {"reading": time.monotonic() - began}))

    def _prepared(
        self, case: Case, memory: float, progress: Mapping[str, float], stop: threading.Event
    ) -> Mapping[str, Any]:
        """A case that is read and prepared, as soon as the images before it leave enough of the memory."""
        while not stop.is_set():
            ended, left = progress["ended"], memory - progress["taken"] + progress["freed"]
            alone = progress["passed"] == ended
            try:
                return self.dataset.transform(case if alone else {**case, MEMORY_LEFT: left})
            except FILE_ERRORS as error:
                if alone or not isinstance(first_error(error), TooLargeError):
                    raise
            while progress["ended"] == ended and not stop.is_set():
                time.sleep(0.05)
        raise Stopped

    def _claimed(self, pending: Sequence[int], stop: threading.Event) -> Iterator[Case]:
        """The cases, each when it is claimed; those that another process is at come when that lets them go."""
        waiting = list(pending)
        while waiting and not stop.is_set():
            busy = []
            for index in waiting:
                case = self.dataset.data[index]
                if self.record.claim(case):
                    yield case
                else:
                    busy.append(index)
            if len(busy) == len(waiting):
                stop.wait(PATIENCE)
            waiting = busy

    @torch.inference_mode()
    def _infer(self, to_network: Passage, to_writing: Passage) -> None:
        while True:
            work: Work = to_network.get()
            to_writing.put(work)
            began = time.monotonic()
            for stream, volume in zip(work.streams, work.image.split(self.options.in_channels), strict=True):
                try:
                    for slab in self.inferer.slabs(volume, self.network, self.device):
                        if not stream.put(slab):
                            break
                    stream.put(None)
                except FILE_ERRORS as error:
                    stream.put(error)
            work.seconds["network"] = time.monotonic() - began

    def _write(self, to_writing: Passage, finished: Passage, progress: dict[str, float]) -> None:
        while True:
            work: Work = to_writing.get()
            began = time.monotonic()
            try:
                outcome = self._finish(work, began)
            except FILE_ERRORS as error:
                for stream in work.streams:
                    stream.cancel()
                outcome = self._failure(work.case, error, work.image, work.seconds)
            progress["freed"] += work.image.meta[NEED]
            progress["ended"] += 1
            finished.put((work.case, outcome))

    # One image

    def _finish(self, work: Work, began: float) -> Outcome:
        """Bring the logits of an image back to its grid, and write its mask."""
        case = work.case
        target = self.record.output_dir / case["mask"]
        shape = tuple(int(n) for n in work.image.meta["spatial_shape"])
        affine = np.asarray(work.image.meta["original_affine"], dtype=np.float64)
        paths = [case["image"]] if isinstance(case["image"], str) else list(case["image"])
        masks: list[np.ndarray] = []
        arrays: dict[str, tuple[Path, np.memmap]] = {}
        with contextlib.ExitStack() as files:  # all get their names together, the mask first
            for number, stream in enumerate(work.streams):
                data: dict[str, Any] = {"image": work.image, "pred": stream}
                if self.options.probabilities:
                    name = f"{target.name.removesuffix('.nii.gz')}_probabilities"
                    name += f"_{number:04d}.npy" if len(work.streams) > 1 else ".npy"
                    temporary = files.enter_context(whole_file(target.with_name(name)))
                    arrays[name] = (temporary, _array_on_disk(temporary, (self.options.num_classes, *shape)))
                    data["probabilities"] = arrays[name][1]
                masks.append(self.postprocessing(data)["pred"].numpy()[0])
            mask = np.stack(masks, axis=-1) if len(masks) > 1 else masks[0]
            written = files.enter_context(whole_file(target))
            write_mask(written, mask, affine, work.image.meta.get(PLACEMENT))
            if input_state(case["image"]) != work.state:
                raise VolumeError(case["name"], "was changed while it was read: run again")
            for _, array in arrays.values():
                array.flush()
            volumes = volumes_ml(mask, affine, self.record.labels)
            outcome = Outcome(
                name=case["name"],
                status=DONE,
                warnings=[*work.image.meta[WARNINGS], *absent_labels(volumes)],
                mask=case["mask"],
                shape=list(mask.shape),
                spacing=[round(float(s), 4) for s in np.linalg.norm(affine[:3, :3], axis=0)],
                volumes_ml=volumes,
                image=paths,
                state=work.state,
                run=self.record.run,
                mask_hash=file_hash(written),
                beside={name: file_state(path) for name, (path, _) in arrays.items()},
                series=_series(case),
            )
            if self.options.thumbnails:
                outcome.thumbnail = self._thumbnail(work.image, masks[0], affine, outcome)
            work.seconds["writing"] = time.monotonic() - began  # the wait for the network is in it
            outcome.seconds, outcome.ended = _rounded(work.seconds), time.time()
            self.record.make_way(case, list(arrays))
            self.record.add(outcome)
        return outcome

    def _thumbnail(self, image: MetaTensor, mask: np.ndarray, affine: np.ndarray, outcome: Outcome) -> str:
        axes = CanonicalAxes.of(affine)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[list(axes.order)]
        if not self.record.room_for_picture(outcome):
            return ""
        picture = thumbnail(image[0].numpy(), axes.apply(mask), spacing)
        self.record.keep_picture(outcome, picture)
        return picture

    def _failure(
        self,
        case: Case,
        error: BaseException,
        image: MetaTensor | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> Outcome:
        """The outcome of an image that has no mask; a mask of a former run is taken away."""
        cause = first_error(error)
        if isinstance(cause, VolumeError):
            reason = cause.reason
        elif isinstance(cause, torch.OutOfMemoryError | MemoryError):
            size = "x".join(str(n) for n in image.shape[1:]) if image is not None else "its"
            free = f", {torch.cuda.mem_get_info()[0] / GIB:.1f} GiB are free" if self.device.type == "cuda" else ""
            first_line = str(cause).partition("\n")[0]
            reason = f"memory ran out with {size} voxels at the network's spacing{free}: {first_line}"
        else:
            reason = in_a_line(cause).partition("\n")[0]
            if not isinstance(cause, OSError):
                logger.error("%s failed", printable(case["name"]), exc_info=error)
        reason = printable(reason + self.record.remove_former(case))
        logger.warning("%s: %s", printable(case["name"]), reason)
        outcome = Outcome(case["name"], FAILED, reason, seconds=_rounded(seconds or {}), run=self.record.run)
        outcome.series, outcome.ended = _series(case), time.time()
        return self.record.add(outcome)


def _series(case: Case) -> dict[str, str]:
    """What a DICOM series says of itself; nothing for other images."""
    path = case["image"] if isinstance(case["image"], str) else case["image"][0]
    with contextlib.suppress(VolumeError, OSError):
        return describe_series(volume_files(path)) if is_series(path) else {}
    return {}


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


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
