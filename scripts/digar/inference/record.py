"""The record of a folder run: what is known of each image, whose the files in the output folder are, the reports."""

import contextlib
import datetime
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from digar.data.task import Codes, model_file
from digar.inference.inputs import Case
from digar.inference.journal import DONE, FAILED, SEG_SUFFIX, Journal, Outcome, file_state, input_state
from digar.inference.masks import volumes_ml
from digar.inference.report import REPORTS, write_reports
from digar.inference.sharing import SharedFolder
from digar.networks.description import settings_hash
from digar.volumes.files import file_hash, printable, read_json, remove_leftovers
from digar.volumes.header import VolumeError
from digar.volumes.reading import UNREADABLE
from digar.volumes.search import JOURNAL

logger = logging.getLogger(__name__)
OTHERS = ". It was made with other weights or settings"
PICTURES = 6_000_000  # bytes of pictures that a process keeps of images with warnings, and as many of the others


class RunRecord:
    """What a process knows and notes of a run, which several may share.

    A mask in the output folder is this program's own if its hash stands in the journals; any other is never replaced.

    Args:
        output_dir: of masks, journals and reports.
        weights_file: of the network, or the folder of its model.
        metadata_file: of the bundle, for its name and version.
        labels: value in the masks to name.
        codes: value in the masks to its codes, see :class:`digar.data.task.Task`.
        rank, num_processes: this process takes every ``num_processes``-th image, from ``rank`` on.

    Raises:
        ValueError: a rank outside the number of processes.
    """

    def __init__(
        self,
        output_dir: str | Path,
        weights_file: str | Path,
        metadata_file: str | Path,
        labels: Mapping[int, str],
        codes: Codes | None = None,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        if not 0 <= rank < num_processes:
            raise ValueError(
                f"rank {rank}: with num_processes {num_processes} it must be from 0 to {num_processes - 1}"
            )
        # absolute: while ITK loads a format, it changes the working folder of all threads for a moment
        self.output_dir = Path(output_dir).absolute()
        self.weights_file = model_file(weights_file).absolute()
        self.metadata_file = Path(metadata_file).absolute()
        self.labels = dict(labels)
        self.codes = dict(codes or {})
        self.rank, self.num_processes = rank, num_processes
        self.outcomes: Sequence[Outcome] = ()
        self.failed = 0  # of this process' images
        self.run = ""

    @contextlib.contextmanager
    def open(
        self, cases: Sequence[Case], settings: Mapping[str, Any], facts: Mapping[str, Any], thumbnails: bool = True
    ) -> Iterator[None]:
        """Be at work in the output folder; in the end, whatever happened, the reports are written.

        Args:
            cases: all images, of all processes.
            settings: what decides the masks, see :mod:`digar.networks.description`.
            facts: more about the run, for the reports.
            thumbnails: show pictures in the page.

        Raises:
            OSError: the folder cannot be written, or holds a file in a report's place that is not this program's.
            InUseError: a run with other settings is at work in it.
        """
        self._refuse_foreign_reports()
        metadata = read_json(self.metadata_file, dict)
        weights = file_hash(self.weights_file)
        about = {
            "input": _common_folder(cases),
            "output": str(self.output_dir),
            "bundle": " ".join(str(metadata.get(name)) for name in ("name", "version")),
            "weights": str(self.weights_file),
            "weights_sha256": weights,
            "codes": self.codes,
            **facts,
            "processes": self.num_processes,
            "started": datetime.datetime.now().isoformat(timespec="seconds"),
        }
        decisive = {"version": metadata.get("version"), "weights": weights, "labels": self.labels, **settings}
        self.run = settings_hash(decisive)
        with contextlib.ExitStack() as stack:
            self.folder = SharedFolder(self.output_dir, self.run, self.rank)
            stack.callback(self.folder.leave)
            self.journal = Journal(self.output_dir, self.folder.journal_number)
            stack.callback(self.journal.close)
            for place in {os.path.dirname(case["mask"]) for case in cases}:
                remove_leftovers(self.output_dir / place)
            self.journal.begin(self.run, about, self.labels, [case["name"] for case in cases])
            self.began = time.time()
            self.room = {True: PICTURES, False: PICTURES}
            self.failed = 0
            try:
                yield
            finally:
                self.outcomes, counts = write_reports(self.journal, self.run, thumbnails)
                logger.info(counts)

    def _refuse_foreign_reports(self) -> None:
        foreign = [name for name in REPORTS if (self.output_dir / name).exists()]
        if foreign and not (self.output_dir / JOURNAL).exists():
            raise FileExistsError(
                f"output_dir {self.output_dir} holds {', '.join(foreign)}, which no run of this program wrote: "
                "move them away, or pass another --output_dir"
            )

    # Images

    def share(self, cases: Sequence[Case]) -> list[int]:
        """The images of this process."""
        return list(range(self.rank, len(cases), self.num_processes))

    def pending(self, cases: Sequence[Case]) -> list[int]:
        """The images of this process that have no valid mask yet. What stands in their way is noted."""
        own = self.share(cases)
        pending = []
        for index in tqdm(own, desc="masks that are there", unit="image", leave=False, delay=2):
            known = self.known(cases[index])
            if known is None:
                pending.append(index)
            elif known.status == FAILED:
                self.failed += 1
        if len(pending) < len(own):
            logger.info("%d of %d masks are there already", len(own) - len(pending), len(own))
        return pending

    def known(self, case: Case) -> Outcome | None:
        """The outcome of a case for which there is nothing to do, or None.

        That is one which is done, with input, weights, settings and mask as they were; one whose mask was changed by
        hand, or is not this program's; or one that another process of this run tried since this one began.
        """
        former = self.journal.former(case["name"])
        mask = self.output_dir / case["mask"]
        if not os.path.lexists(mask):
            tried = former and former.status == FAILED and former.run == self.run and former.ended > self.began
            return former if tried else None
        if former is not None and former.mask != case["mask"]:
            former = None
        try:
            found = file_hash(mask)
        except OSError as error:
            return self._stands_in_the_way(case, f"cannot be read ({error.strerror})")
        try:
            state = input_state(case["image"])
        except (OSError, VolumeError):  # whoever reads it tells why
            return None
        images = [case["image"]] if isinstance(case["image"], str) else list(case["image"])
        if former is not None and former.image not in ([], images) and former.state != state:
            return self._stands_in_the_way(case, f"is that of another image, {', '.join(former.image)}")
        if self.journal.wrote(found):
            if former is not None and former.status == DONE:
                holds = (former.run, former.mask_hash, former.state) == (self.run, found, state)
                return former if holds else None
            return None
        if former is None or former.status == FAILED:
            return self._stands_in_the_way(case, "was not written by this program")
        if former.state != state:
            return self._stands_in_the_way(case, "was changed by hand, and its image was changed since")
        if (former.kept, former.run, former.mask_hash) == (True, self.run, found):
            return former
        return self._keep(case, former, found)

    def _stands_in_the_way(self, case: Case, reason: str) -> Outcome:
        reason = (
            f"the mask {printable(case['mask'])} is there, but {reason}: move it away, or pass another --output_dir"
        )
        return self.add(Outcome(case["name"], FAILED, reason, run=self.run, ended=time.time()))

    def _keep(self, case: Case, former: Outcome, found: str) -> Outcome:
        """Note a mask that was changed by hand, with its volumes as they are now."""
        others = former.run != self.run or any(word.endswith(OTHERS) for word in former.warnings)
        warning = "its mask was changed by hand, and is kept: move it away to have a new one" + (
            OTHERS if others else ""
        )
        try:
            image = nib.load(self.output_dir / case["mask"])
            values = np.asanyarray(image.dataobj)
            volumes = volumes_ml(np.rint(values).astype(np.int64), image.affine, self.labels)
        except UNREADABLE as error:
            return self._stands_in_the_way(case, f"was changed by hand, and cannot be read ({error})")
        former.warnings = [word for word in former.warnings if "changed by hand" not in word] + [warning]
        self.remove_beside(case, SEG_SUFFIX)  # it was one of the mask before
        former.beside = {name: state for name, state in former.beside.items() if not name.endswith(SEG_SUFFIX)}
        former.volumes_ml, former.mask_hash, former.kept, former.thumbnail = volumes, found, True, ""
        former.run, former.ended = self.run, time.time()
        return self.add(former)

    def claim(self, case: Case) -> bool:
        """Take a case, unless another process is at it."""
        return self.folder.claim(case["mask"])

    def meanwhile(self, case: Case) -> Outcome | None:
        """The outcome of a case that another process has finished since this one began, or None."""
        self.journal.scan()
        entry = self.journal.latest.get(case["name"])
        return self.known(case) if entry is not None and entry.ended > self.began else None

    def add(self, outcome: Outcome) -> Outcome:
        """Note what became of a case, before its mask gets its name: so that no mask is ever unknown.

        Raises:
            OSError: the journal cannot be written.
        """
        self.journal.add(outcome)
        return outcome

    def finished(self, case: Case, outcome: Outcome) -> None:
        """Count a case of this process, and let it go."""
        self.failed += outcome.status == FAILED
        self.folder.release(case["mask"])

    def remove_former(self, case: Case) -> str:
        """Take away what a former run left of a case that has failed now: its mask, if it is this program's own.

        Returns:
            A word on a mask that stays.
        """
        mask = self.output_dir / case["mask"]
        with contextlib.suppress(OSError):
            if mask.exists() and not self.journal.wrote(file_hash(mask)):
                return f"; the mask {printable(case['mask'])} was changed by hand and is kept"
            mask.unlink(missing_ok=True)
            self.remove_beside(case)
        return ""

    def make_way(self, case: Case, beside: Sequence[str]) -> None:
        """Take away what a former run left of a case, before its new files get their names.

        Args:
            case: that is finished.
            beside: names of its files beside the mask.

        Raises:
            VolumeError: a file that is not this program's stands in the way.
        """
        mask = self.output_dir / case["mask"]
        self.remove_beside(case)
        foreign = [name for name in beside if os.path.lexists(mask.with_name(name))]
        if os.path.lexists(mask) and not self.journal.wrote(file_hash(mask)):
            foreign.append(mask.name)
        if foreign:
            names = ", ".join(map(printable, foreign))
            raise VolumeError(case["name"], f"{names} is there, but was not written by this program: move it away")

    def remove_beside(self, case: Case, ending: str = "") -> None:
        """Take away what lies beside a former mask (files of this ending), where it is as it was written."""
        former = self.journal.former(case["name"])
        for name, state in (former.beside if former is not None else {}).items():
            file = (self.output_dir / case["mask"]).with_name(Path(name).name)
            with contextlib.suppress(OSError):
                if name.endswith(ending) and file_state(file) == state:
                    file.unlink()

    def room_for_picture(self, outcome: Outcome) -> bool:
        """Whether the report may still show a picture: their number is limited, whatever that of the images."""
        return self.room[bool(outcome.warnings)] > 0

    def keep_picture(self, outcome: Outcome, picture: str) -> None:
        """Count the bytes of a picture."""
        self.room[bool(outcome.warnings)] -= len(picture)


def _common_folder(cases: Sequence[Case]) -> str:
    """The folder that all images lie in."""
    first = (case["image"] if isinstance(case["image"], str) else case["image"][0] for case in cases)
    folders = {os.path.dirname(os.path.abspath(path)) for path in first}
    return os.path.commonpath(folders) if folders else ""
