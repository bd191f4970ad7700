"""Lists of cases: a CSV table, or a JSON list of objects, with ``image`` and what else is known of each."""

from pathlib import Path
from typing import Any

from digar.data.layouts.layout import Case, DataSet
from digar.volumes.files import read_json, read_table
from digar.volumes.remote import is_remote

CHANNELS = "image_"  # image_t1, image_t2, ...: columns of one channel each
PARTS = ("training", "validation", "test")


class Table:
    """Columns ``image`` (or one column ``image_NAME`` per channel), ``label``, ``patient``, ``part``.

    Paths start from the list's folder; scans to pretrain on may be addresses, see :mod:`digar.volumes.remote`. In a
    JSON list ``image`` may be a list, one file per channel.
    """

    name = "table of cases"
    labelled = True

    def missing(self, place: Path) -> list[str]:
        if not place.is_file() or place.suffix.lower() not in (".csv", ".json"):
            return ["it is no .csv or .json file", "no column 'image' in it"]
        rows = self._rows(place)
        return [] if rows and any(_image_keys(row) for _, row in rows) else ["it has no column 'image'"]

    def read(self, place: Path) -> DataSet:
        rows = self._rows(place)
        labelled: list[Case] = []
        unlabelled: list[Case] = []
        channels: list[str] = []
        for where, row in rows:
            keys = _image_keys(row)
            files = [path for key in keys for path in (row[key] if isinstance(row[key], list) else [row[key]])]
            if not files or not all(isinstance(path, str) and path for path in files):
                raise ValueError(f"{place}, {where}: it names no image")
            channels = [key.removeprefix(CHANNELS) for key in keys] if keys != ["image"] else []
            paths = [path if is_remote(path) else str(place.parent / path) for path in files]
            case: Case = {"image": paths[0] if len(paths) == 1 else paths}
            if row.get("patient"):
                case["patient"] = str(row["patient"])
            if row.get("part"):
                if row["part"] not in PARTS:
                    raise ValueError(f"{place}, {where}: part {row['part']!r} must be one of {', '.join(PARTS)}")
                case["part"] = row["part"]
            if row.get("label"):
                if any(map(is_remote, paths)):
                    raise ValueError(f"{place}, {where}: an image with a label must be a file of this machine")
                labelled.append(case | {"label": str(place.parent / str(row["label"]))})
            else:
                unlabelled.append(case)
        return DataSet(self.name, place, labelled, unlabelled, channels)

    def _rows(self, place: Path) -> list[tuple[str, dict[str, Any]]]:
        """What names each row, and the row."""
        if place.suffix.lower() == ".csv":
            return [(f"line {line}", row) for line, row in read_table(place, ())]
        content = read_json(place)
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            return []
        return [(f"entry {number}", row) for number, row in enumerate(content)]


def _image_keys(row: dict[str, Any]) -> list[str]:
    return ["image"] if "image" in row else [key for key in row if key.startswith(CHANNELS)]
