"""The reports of a folder run: a table, a record for programs, a page for people, volumes, and the labels' names.

They are written from the journals of the output folder, whatever processes wrote those, an image at a time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from digar.data.task import Codes
from digar.inference.journal import SEG_SUFFIX, Journal, Outcome, writing
from digar.inference.measurements import FILES, write_measurements
from digar.inference.page import report_page, series_text
from digar.inference.sharing import reporting
from digar.volumes.files import printable, whole_file, write_rows, write_text

REPORTS = ("report.csv", "report.json", "report.html", "volumes.csv", "labels.json", *FILES)
INTERNAL = ("thumbnail", "image", "state", "run", "kept", "beside")  # of no use to a reader
COLUMNS = ("file", "status", "reason", "warnings", "mask", "shape", "spacing_mm", "seconds")


class Outcomes(Sequence):
    """Outcomes of images by their names, each read from the journals when it is asked for."""

    def __init__(self, journal: Journal, names: Sequence[str]) -> None:
        self.journal = journal
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Outcomes(self.journal, self.names[index])
        return self.journal.outcome(self.names[index])


def merge_reports(output_dir: str | Path) -> str:
    """Write the reports of a folder anew, from the journals of all processes that worked in it.

    Args:
        output_dir: of folder inferences; the last one's weights and settings count, and so do all others with the same.

    Returns:
        How many images are done, and so on, in a line.

    Raises:
        FileNotFoundError: no folder inference ever wrote there.
        OSError: the reports cannot be written.
    """
    journal = Journal(output_dir)
    return write_reports(journal, last_run(journal))[1]


def labels_and_codes(about: Mapping[str, Any]) -> tuple[dict[int, str], Codes]:
    """Value in the masks to name, and to codes, as a journal tells of a run."""
    tables = about["labels"], about["facts"].get("codes", {})
    labels, codes = ({int(value): entry for value, entry in table.items()} for table in tables)
    return labels, codes


def last_run(journal: Journal) -> str:
    """The run that was begun last.

    Raises:
        FileNotFoundError: no folder inference ever wrote there.
    """
    if not journal.runs:
        raise FileNotFoundError(
            f"{journal.folder} is not the output folder of a folder inference: it has no journal.jsonl"
        )
    return max(journal.runs, key=lambda run: journal.runs[run]["began"])


def write_reports(journal: Journal, run: str, thumbnails: bool = True) -> tuple[Outcomes, str]:
    """Write the ``REPORTS``, each whole.

    Args:
        journal: of the folder.
        run: whose images are reported.
        thumbnails: show the pictures that there are.

    Returns:
        The outcomes, and how many there are of each kind in a line.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = journal.folder
    with reporting(folder):
        journal.scan()
        about = journal.runs[run]
        labels, codes = labels_and_codes(about)
        names = journal.names(run)
        outcomes = Outcomes(journal, [name for name in names if _stands(journal, name, run)])
        facts = {**about["facts"], **_counts(journal, run, names, outcomes)}
        with writing(folder):
            write_rows(folder / "report.csv", _rows(outcomes, labels))
            write_rows(folder / "volumes.csv", _volumes(outcomes, labels))
            write_measurements(folder, outcomes, labels, codes)
            write_text(folder / "labels.json", json.dumps({0: "background", **labels}, indent=1) + "\n")
            _write_record(folder / "report.json", facts, outcomes, labels)
            write_text(folder / "report.html", report_page(facts, outcomes, labels, thumbnails))
    counts = ("done", "with_warnings", "failed", "not_run")
    line = ", ".join(f"{facts[name]} {name.replace('_', ' ')}" for name in counts)
    others = facts["of_other_settings"]
    return outcomes, line + (f"; {others} masks of other weights or settings lie there too" if others else "")


def _stands(journal: Journal, name: str, run: str) -> bool:
    """Whether an image of a run has an outcome that still holds: a mask that is gone is to be made again."""
    entry = journal.latest.get(name)
    if entry is None or entry.run != run:
        return False
    return entry.failed or (journal.folder / journal.outcome(name).mask).exists()


def _counts(journal: Journal, run: str, names: Sequence[str], outcomes: Outcomes) -> dict[str, Any]:
    entries = [journal.latest[name] for name in outcomes.names]
    failed = sum(entry.failed for entry in entries)
    ended = max((entry.ended for entry in entries), default=0.0)
    return {
        "seconds": round(max(ended - journal.runs[run]["began"], 0), 1),
        "images": len(names),
        "done": len(entries) - failed,
        "with_warnings": sum(entry.warned and not entry.failed for entry in entries),
        "failed": failed,
        "not_run": len(names) - len(entries),
        "done_before": sum(entry.ended < journal.runs[run]["began"] for entry in entries),
        "of_other_settings": sum(entry.run != run and not entry.failed for entry in journal.latest.values()),
    }


def _rows(outcomes: Sequence[Outcome], labels: Mapping[int, str]) -> Iterator[list[Any]]:
    yield [*COLUMNS, *(f"{name} ml" for name in labels.values()), "series", "dicom_seg"]
    for o in outcomes:
        seconds = round(sum(o.seconds.get(name, 0) for name in ("reading", "network")), 3)
        shape, spacing = "x".join(map(str, o.shape)), "x".join(f"{s:g}" for s in o.spacing)
        volumes = [volume_text(o.volumes_ml.get(name, "")) for name in labels.values()]
        words, series, seg = "; ".join(o.warnings), series_text(o), _dicom_seg(o)
        yield [o.name, o.status, o.reason, words, o.mask, shape, spacing, seconds, *volumes, series, seg]


def _dicom_seg(outcome: Outcome) -> str:
    """The DICOM SEG of an image, relative to the output folder; empty if there is none."""
    names = [name for name in outcome.beside if name.endswith(SEG_SUFFIX)]
    return (Path(outcome.mask).parent / names[0]).as_posix() if names else ""


def volume_text(volume: float | list[float] | str) -> float | str:
    """Several volumes, of an image with a fourth axis, in one field."""
    return "; ".join(map(str, volume)) if isinstance(volume, list) else volume


def _volumes(outcomes: Sequence[Outcome], labels: Mapping[int, str]) -> Iterator[list[Any]]:
    """A row per image; of one with a fourth axis, a row for each of its volumes, counted from 0."""
    yield ["file", *labels.values(), "volume", "warnings"]
    for o in outcomes:
        if not o.volumes_ml:
            continue
        several = [len(v) for v in o.volumes_ml.values() if isinstance(v, list)]
        for number in range(max(several, default=1)):
            volumes = [o.volumes_ml.get(name, "") for name in labels.values()]
            own = [v[number] if isinstance(v, list) else v for v in volumes]
            yield [o.name, *own, number if several else "", "; ".join(o.warnings)]


def _write_record(path: Path, facts: Mapping[str, Any], outcomes: Sequence[Outcome], labels: Mapping[int, str]) -> None:
    """``report.json``, written image by image."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(f'{{\n"run": {json.dumps(facts, indent=1)},\n"labels": {json.dumps(labels)},\n"files": [')
        for number, outcome in enumerate(outcomes):
            record = {k: v for k, v in asdict(outcome).items() if k not in INTERNAL}
            record |= {"name": printable(outcome.name), "mask": printable(outcome.mask)}
            record["dicom_seg"] = printable(_dicom_seg(outcome))
            stream.write((",\n" if number else "\n") + json.dumps(record))
        stream.write("\n]\n}\n")
