"""The journal of an output folder: a line per finished image, so that a run goes on where another was stopped.

``journal.jsonl``, ``journal_1.jsonl`` ...: one file for each process that was at work at the same time. Besides images
they tell of runs (``{"run": ...}``: what decided the masks) and of lists of images (``{"list": ...}``: what there was
to do).
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from digar.volumes.reading import volume_files

DONE, FAILED = "done", "failed"
SEG_SUFFIX = ".dcm"  # of the DICOM SEG beside a mask
CLOSED = -1  # no file


def input_state(image: str | Sequence[str]) -> list[list[int]]:
    """State of each of a case's files; of a DICOM series, that of all its files together.

    Raises:
        OSError: a file vanished.
        VolumeError: a DICOM folder does not hold exactly one series.
    """
    paths = [image] if isinstance(image, str) else image
    return [file_state(*volume_files(path)) for path in paths]


def file_state(*files: str | Path) -> list[int]:
    """Size in bytes, and time of the last change (ns), of some files together."""
    found = [os.stat(file) for file in files]
    return [sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)]


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
        volumes_ml: of each label by its name; of an image with a fourth axis a list, one for each of its volumes.
        seconds: of reading, the network, and inverting and writing.
        thumbnail: JPEG, base64.
        image: the input's file, or files.
        state: of the input, see :func:`input_state`.
        run: hash of weights and settings.
        mask_hash: SHA-256 of the mask file.
        kept: the mask was changed since it was written, and left as it is.
        beside: files beside the mask (probabilities, DICOM SEG) to their state.
        series: description of a DICOM series, see :func:`digar.volumes.dicom.describe_series`.
        ended: when, in seconds since 1970.
    """

    name: str
    status: str
    reason: str = ""
    warnings: list[str] = field(default_factory=list)
    mask: str = ""
    shape: list[int] = field(default_factory=list)
    spacing: list[float] = field(default_factory=list)
    volumes_ml: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    thumbnail: str = ""
    image: list[str] = field(default_factory=list)
    state: list[list[int]] = field(default_factory=list)
    run: str = ""
    mask_hash: str = ""
    kept: bool = False
    beside: dict[str, list[int]] = field(default_factory=dict)
    series: dict[str, str] = field(default_factory=dict)
    ended: float = 0.0


FIELDS = {f.name for f in fields(Outcome)}
Kind = type | tuple[type, ...]
NUMBER: Kind = (int, float)
LISTS: dict[str, Kind] = {"warnings": str, "shape": int, "spacing": NUMBER, "image": str, "state": list}
TABLES: dict[str, Kind] = {"volumes_ml": (int, float, list), "seconds": NUMBER, "beside": list, "series": str}
OTHERS: dict[str, Kind] = {"ended": NUMBER, "kept": bool}


class Entry(NamedTuple):
    """Where the last line of a case stands, and what is asked of it most."""

    ended: float
    run: str
    failed: bool
    warned: bool
    file: int
    offset: int


class Journal:
    """The journals of a folder, as far as they are written; what they say of each case stays on the disk.

    Args:
        folder: the output folder.
        number: of this process' own journal; None to read alone.

    Raises:
        OSError: the folder cannot be read or written.
        FileExistsError: the file at the journal's path is not a journal.
    """

    def __init__(self, folder: str | Path, number: int | None = None) -> None:
        self.folder = Path(folder)
        self.latest: dict[str, Entry] = {}
        self.written: set[bytes] = set()  # hashes of all masks that this program ever wrote in the folder
        self.runs: dict[str, dict[str, Any]] = {}  # what was last said of each run
        self.lists: dict[str, tuple[int, int]] = {}  # lists of images, by their hash: the place of the line
        self.lists_of: dict[str, set[str]] = {}  # those of each run
        self.files: list[Path] = []
        self.read_to: list[int] = []
        self.lock = threading.Lock()
        self.own = CLOSED
        self.torn = True  # a line that a kill cut short ends before the next
        self.scan()
        if number is not None:
            name = f"journal_{number}.jsonl" if number else "journal.jsonl"
            self.own = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def close(self) -> None:
        """Stop writing."""
        if self.own != CLOSED:
            os.close(self.own)
        self.own = CLOSED

    # Reading

    def scan(self) -> None:
        """Take in what has been written since the last time, by this process or others."""
        for file in sorted(self.folder.glob("journal*.jsonl")):
            if file not in self.files:
                self.files.append(file)
                self.read_to.append(0)
        for number, file in enumerate(self.files):
            if file.stat().st_size <= self.read_to[number]:
                continue
            understood = begun = self.read_to[number] > 0
            with file.open("rb") as stream:
                stream.seek(self.read_to[number])
                for line in stream:
                    if not line.endswith(b"\n"):  # being written
                        break
                    begun = begun or not line.isspace()
                    understood = self._take_in(line, number, self.read_to[number]) or understood
                    self.read_to[number] += len(line)
            if begun and not understood:
                raise FileExistsError(
                    f"{file} is not a journal of this program: move it away, or pass another --output_dir"
                )

    def _take_in(self, line: bytes, file: int, offset: int) -> bool:
        """Note what a line tells; False where it tells nothing."""
        content = _object(line)
        if _is_outcome(content):
            former = self.latest.get(content["name"])
            ended = content.get("ended", 0.0)
            if not content.get("kept"):
                self.written.update(_short(content.get("mask_hash", "")))
            if former is None or former.file == file or former.ended <= ended:  # clocks may differ, or be set back
                run = sys.intern(content.get("run", ""))  # one text for all
                failed, warned = content["status"] == FAILED, bool(content.get("warnings"))
                self.latest[content["name"]] = Entry(ended, run, failed, warned, file, offset)
        elif isinstance(content.get("run"), str) and isinstance(content.get("began"), float):
            self.runs[content["run"]] = content
            self.lists_of.setdefault(content["run"], set()).add(str(content.get("list")))
        elif isinstance(content.get("list"), str) and isinstance(content.get("names"), list):
            self.lists[content["list"]] = (file, offset)
        else:
            return False
        return True

    def outcome(self, name: str) -> Outcome:
        """The last outcome of a case.

        Raises:
            KeyError: there is none.
        """
        entry = self.latest[name]
        content = self._line(entry.file, entry.offset)
        return Outcome(**{key: value for key, value in content.items() if key in FIELDS})

    def former(self, name: str) -> Outcome | None:
        """The last outcome of a case, or None."""
        return self.outcome(name) if name in self.latest else None

    def names(self, run: str) -> list[str]:
        """The names of all images that a run's processes were given, and of all that it has an outcome of; sorted."""
        known = {name for name, entry in self.latest.items() if entry.run == run}
        for key in self.lists_of.get(run, ()):
            if key in self.lists:
                known.update(name for name in self._line(*self.lists[key])["names"] if isinstance(name, str))
        return sorted(known)

    def _line(self, file: int, offset: int) -> dict[str, Any]:
        with self.files[file].open("rb") as stream:
            stream.seek(offset)
            return _object(stream.readline())

    def wrote(self, mask_hash: str) -> bool:
        """Whether a mask of this hash was written in this folder by this program."""
        return not self.written.isdisjoint(_short(mask_hash))

    # Writing

    def add(self, outcome: Outcome) -> None:
        """Write an outcome; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written; says that finished masks are kept.
        """
        self._write(asdict(outcome))

    def begin(self, run: str, facts: Mapping[str, Any], labels: Mapping[int, str], names: Iterable[str]) -> None:
        """Write what decides the masks of a run, and which images there are, unless the journals tell it already."""
        names = list(names)
        key = hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()
        self._write({"run": run, "began": time.time(), "facts": dict(facts), "labels": dict(labels), "list": key})
        if key not in self.lists:
            self._write({"list": key, "names": names})
        self.scan()

    def _write(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content).encode() + b"\n"
        with self.lock:
            line = b"\n" + line if self.torn else line
            self.torn = True
            with writing(self.folder):
                while line:
                    line = line[os.write(self.own, line) :]
                os.fsync(self.own)
            self.torn = False


@contextlib.contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Errors of writing journal and reports, with the folder and what to do."""
    try:
        yield
    except OSError as error:
        word = f"{error.strerror}: finished masks are kept, make room and start again"
        raise OSError(error.errno, word, str(folder)) from None


def _object(line: bytes) -> dict[str, Any]:
    """The object in a line; an empty one if the line is empty or was cut short by a kill."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_outcome(content: Mapping[str, Any]) -> bool:
    """Whether there is an outcome, with each field of its kind; fields of other versions do not count."""
    return {"name", "status"} <= content.keys() and all(
        _fits(key, value) for key, value in content.items() if key in FIELDS
    )


def _fits(key: str, value: Any) -> bool:
    if key in LISTS:
        return isinstance(value, list) and all(isinstance(item, LISTS[key]) for item in value)
    if key in TABLES:
        return isinstance(value, dict) and all(isinstance(item, TABLES[key]) for item in value.values())
    return isinstance(value, OTHERS.get(key, str))


def _short(mask_hash: str) -> Iterator[bytes]:
    """Half of a hash as bytes, since many are kept in memory; empty for anything else."""
    try:
        half = bytes.fromhex(mask_hash)[:16]
    except ValueError:
        return
    if half:
        yield half
