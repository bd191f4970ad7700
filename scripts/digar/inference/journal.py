"""The journal of a folder run: one line per finished file, so that a run that was killed goes on where it stopped."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from digar.volumes.files import file_hash
from digar.volumes.reading import VolumeError, volume_files

DONE, FAILED = "done", "failed"


def settings_hash(settings: dict[str, Any]) -> str:
    """SHA-256 of the settings that decide the masks."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def input_state(image: str | Sequence[str]) -> list[list[int]]:
    """Size in bytes and time of change (ns) of a case's files; of a DICOM series, of all its files.

    Raises:
        OSError: a file vanished.
        VolumeError: a DICOM folder does not hold exactly one series.
    """
    states = []
    for path in [image] if isinstance(image, str) else image:
        sizes = [(file.stat().st_size, file.stat().st_mtime_ns) for file in volume_files(path)]
        states.append([sum(size for size, _ in sizes), max((time for _, time in sizes), default=0)])
    return states


@dataclass
class Outcome:
    """What became of one case.

    Args:
        name: of the case.
        status: ``done`` or ``failed``.
        reason: why it failed.
        warnings: what was odd.
        mask: path below the output folder.
        shape: of the image in voxels.
        spacing: in mm.
        volumes_ml: of each label by its name.
        seconds: of reading, the network, and inverting and writing.
        thumbnail: JPEG, base64.
        state: of the input, see :func:`input_state`.
        run: hash of weights and settings.
        mask_hash: SHA-256 of the mask file.
        ended: when, in seconds since 1970.
    """

    name: str
    status: str
    reason: str = ""
    warnings: list[str] = field(default_factory=list)
    mask: str = ""
    shape: list[int] = field(default_factory=list)
    spacing: list[float] = field(default_factory=list)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    thumbnail: str = ""
    state: list[list[int]] = field(default_factory=list)
    run: str = ""
    mask_hash: str = ""
    ended: float = 0.0


class Journal:
    """Outcomes in lines of JSON; each process of a run has a file of its own and reads those of all.

    Args:
        output_dir: of the run; the journals are ``journal*.jsonl`` in it.
        rank: of the process.
        run: hash of weights and settings; outcomes of other runs do not count.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, output_dir: str | Path, rank: int, run: str) -> None:
        self.folder = Path(output_dir)
        self.run = run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / ("journal.jsonl" if rank == 0 else f"journal_{rank}.jsonl")
        self.unwritten: list[str] = []
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write("\n")  # a line that a kill cut short ends here

    def finished(self, case: dict[str, Any], outcomes: dict[str, Outcome]) -> Outcome | None:
        """The outcome of a case that is done and unchanged: input, weights, settings and mask are as they were."""
        outcome = outcomes.get(case["name"])
        if outcome is None or outcome.status != DONE or outcome.run != self.run or outcome.mask != case["mask"]:
            return None
        mask = self.folder / outcome.mask
        try:
            unchanged = outcome.state == input_state(case["image"]) and outcome.mask_hash == file_hash(mask)
        except (OSError, VolumeError):  # the input or the mask is no longer there
            return None
        return outcome if unchanged else None

    def read(self) -> dict[str, Outcome]:
        """The last outcome of every case in all journals of the folder."""
        found = [outcome for file in self.folder.glob("journal*.jsonl") for outcome in _lines(file)]
        return {outcome.name: outcome for outcome in sorted(found, key=lambda outcome: outcome.ended)}

    def add(self, outcome: Outcome) -> None:
        """Write an outcome; where the disk is full it is kept and written with the next."""
        self.unwritten.append(json.dumps(asdict(outcome)))
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write("\n".join(self.unwritten) + "\n")
        self.unwritten.clear()


def _lines(file: Path) -> Iterator[Outcome]:
    known = {f.name for f in fields(Outcome)}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:  # empty, or cut short by a kill
            continue
        if isinstance(content, dict) and set(content) == known:
            yield Outcome(**content)
