"""A network over a folder of images, as an engine: what runs is a :class:`Pipeline`, what is noted a ``RunRecord``."""

import contextlib
import importlib.util
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.data import Dataset
from torch import nn
from tqdm import tqdm

from digar.inference.inputs import Case
from digar.inference.journal import FAILED, Outcome
from digar.inference.pipeline import Finished, FolderOptions, Pipeline
from digar.inference.record import RunRecord
from digar.inference.windows import WindowInferer
from digar.networks.description import describe
from digar.volumes.errors import in_a_line

logger = logging.getLogger(__name__)


class FolderEvaluator(Engine):
    """An ignite engine whose iterations are finished images; ``engine.state.output`` is the :class:`Outcome`.

    Args:
        device: of the network.
        dataset, network, inferer, postprocessing: see :class:`Pipeline`; together they decide whether masks of a
            former run still hold.
        record: of the run.
        options: what is done beside the masks.
        handlers: ignite handlers with ``attach``.

    Raises:
        ModuleNotFoundError: DICOM SEG is asked for, and what writes it is not installed.
    """

    def __init__(
        self,
        device: str | torch.device,
        dataset: Dataset,
        network: nn.Module,
        inferer: WindowInferer,
        postprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        record: RunRecord,
        options: FolderOptions,
        handlers: Sequence[Any] = (),
    ) -> None:
        super().__init__(lambda engine, finished: self._take(finished))
        if options.dicom_seg and importlib.util.find_spec("highdicom") is None:
            raise ModuleNotFoundError("dicom_seg needs highdicom: pip install -r requirements-dicom.txt")
        self.record = record
        self.pipeline = Pipeline(torch.device(device), dataset, network, inferer, postprocessing, record, options)
        self.without_seg = 0
        for handler in handlers or ():
            handler.attach(self)

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """The outcomes of all images of all processes of the run, in order, as the last report has them."""
        return self.record.outcomes

    @property
    def failed(self) -> int:
        """Images of this process without a mask, or without the DICOM SEG that was asked for."""
        return self.record.failed + self.without_seg

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the masks, beside the file of the weights and the labels: as it is in memory."""
        pipeline = self.pipeline
        parts = {
            "network": pipeline.network,
            "preprocessing": pipeline.dataset.transform,
            "inferer": pipeline.inferer,
            "postprocessing": pipeline.postprocessing,
            "probabilities": pipeline.options.probabilities,
        }
        return {name: describe(part) for name, part in parts.items()}

    def run(self) -> Sequence[Outcome]:
        """Run over all images of this process that have no valid mask yet, and write the reports.

        Returns:
            The outcomes of all processes' images so far, in order; those that were never begun are missing.

        Raises:
            InUseError: a run with other settings is at work in the output folder.
            OSError: the output folder cannot be written.
            KeyboardInterrupt: by Ctrl-C, after the reports are written.
            SystemExit: with 143 by SIGTERM, after the reports are written.
        """
        pipeline = self.pipeline
        pipeline.network.eval()
        cases, settings = pipeline.dataset.data, self.settings
        facts = {
            "settings": {**settings, "network": _in_short(settings["network"])},
            "device": str(pipeline.device),
            "backend": _of_network(pipeline.network, "backend", "PyTorch"),
            "precision": _of_network(pipeline.network, "precision", str(pipeline.inferer.dtype).removeprefix("torch.")),
        }
        try:
            with _leaving_by_sigterm(), self.record.open(cases, settings, facts, pipeline.options.thumbnails):
                pending = self.record.pending(cases)
                self.without_seg = 0
                if pipeline.options.dicom_seg:
                    self._segment_former(cases, pending)
                if pending:
                    with contextlib.closing(pipeline.run(pending)) as finished:
                        super().run(finished, max_epochs=1, epoch_length=len(pending))
        finally:
            self._wait_for_others()
        return self.outcomes

    def _take(self, finished: Finished) -> Outcome:
        """An iteration of the engine: an image is finished."""
        case, outcome = finished
        if self.pipeline.options.dicom_seg:
            self._segment(case, outcome)
        self.record.finished(case, outcome)
        if outcome.status == FAILED and self.pipeline.options.fail_fast:
            self.terminate()
        return outcome

    def _segment_former(self, cases: Sequence[Case], pending: Sequence[int]) -> None:
        """Write what DICOM SEG are missing of masks that are there already."""
        self.record.journal.scan()
        others = sorted({*self.record.share(cases)} - {*pending})
        for index in tqdm(others, desc="DICOM SEG", unit="image", leave=False, delay=2):
            outcome = self.record.journal.former(cases[index]["name"])
            if outcome is not None:
                self._segment(cases[index], outcome)

    def _segment(self, case: Case, outcome: Outcome) -> None:
        """Write the DICOM SEG of a DICOM series."""
        from digar.inference.dicom_seg import NO_SEG, add_dicom_seg  # needs requirements-dicom.txt

        warnings = add_dicom_seg(self.record.journal, case, outcome).warnings
        self.without_seg += any(word.startswith(NO_SEG) for word in warnings)

    def _wait_for_others(self) -> None:
        """Torchrun ends all processes as soon as one ends with failed images: so all end together."""
        if self.record.num_processes > 1 and dist.is_initialized():
            try:
                dist.barrier()
            except RuntimeError as error:
                logger.warning("another process has ended early, its images may be missing: %s", in_a_line(error))


def _of_network(network: nn.Module, name: str, default: str) -> str:
    """What a network of its own kind says of itself, such as an exported one of its backend; else the default."""
    return next((getattr(module, name) for module in network.modules() if hasattr(module, name)), default)


def _in_short(network: dict[str, Any]) -> dict[str, Any]:
    """Of a network's description the largest parts, and the hash of its weights."""
    large = {name: about for name, about in network["modules"].items() if name.count(".") < 2}
    return {**large, "weights": network["weights"]}


@contextlib.contextmanager
def _leaving_by_sigterm() -> Iterator[None]:
    """What schedulers send ends the run as Ctrl-C does, unless the program around it has an answer of its own."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not mine:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except SystemExit as error:
        if error.code == 128 + signal.SIGTERM:
            logger.warning("stopped by SIGTERM: finished masks are kept, the same command goes on")
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
