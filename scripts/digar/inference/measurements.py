"""Volumes of labels for programs: a row or an object per image and label, with unit, codes and DICOM series."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from digar.data.task import Codes
from digar.inference.journal import Outcome
from digar.volumes.files import printable, whole_file, write_rows

FILES = ("measurements.csv", "measurements.json")
QUANTITY = ("118565006", "SCT", "Volume")
UNIT = ("mL", "UCUM", "milliliter")
CODE = ("code", "scheme", "meaning")
SERIES = ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality")


def write_measurements(folder: Path, outcomes: Sequence[Outcome], labels: Mapping[int, str], codes: Codes) -> None:
    """Write ``measurements.csv`` and ``measurements.json``, each whole; images without a mask are not in them.

    Args:
        folder: the output folder.
        outcomes: of all images.
        labels: value in the masks to name.
        codes: value in the masks to its codes, see :class:`digar.data.task.Task`.

    Raises:
        OSError: the folder cannot be written.
    """
    write_rows(folder / "measurements.csv", _rows(outcomes, labels, codes))
    with whole_file(folder / "measurements.json") as temporary, temporary.open("w", encoding="utf-8") as stream:
        described = [
            {"value": value, "name": name, "codes": {k: _coded(c) for k, c in codes.get(value, {}).items()}}
            for value, name in labels.items()
        ]
        head = {"quantity": _coded(QUANTITY), "unit": _coded(UNIT), "labels": described}
        stream.write(json.dumps(head, indent=1).removesuffix("\n}") + ',\n "images": [')
        measured = (outcome for outcome in outcomes if outcome.volumes_ml)
        for number, outcome in enumerate(measured):
            image = {
                "file": printable(outcome.name),
                "mask": printable(outcome.mask),
                "series": {key: outcome.series[key] for key in SERIES if key in outcome.series},
                "volumes": [
                    {"label": value, "volume": volume, "index": index}
                    for value, index, volume in _volumes(outcome, labels)
                ],
            }
            stream.write((",\n  " if number else "\n  ") + json.dumps(image))
        stream.write("\n ]\n}\n")


def _rows(outcomes: Sequence[Outcome], labels: Mapping[int, str], codes: Codes) -> Iterator[list[Any]]:
    kinds = ("type", "modifier")
    columns = [f"{kind}_{part}" for kind in kinds for part in CODE]
    yield ["file", *SERIES, "label", "name", *columns, "volume_index", "volume", "unit"]
    for outcome in outcomes:
        series = [outcome.series.get(key, "") for key in SERIES]
        for value, index, volume in _volumes(outcome, labels):
            coded = [part for kind in kinds for part in codes.get(value, {}).get(kind, ("", "", ""))]
            yield [outcome.name, *series, value, labels[value], *coded, index, volume, UNIT[0]]


def _volumes(outcome: Outcome, labels: Mapping[int, str]) -> Iterator[tuple[int, int | None, float]]:
    """Label, number of the volume in an image with a fourth axis (else None), and ml."""
    for value, name in labels.items():
        volume = outcome.volumes_ml.get(name)
        if isinstance(volume, list):
            yield from ((value, index, one) for index, one in enumerate(volume))
        elif volume is not None:
            yield value, None, volume


def _coded(code: Sequence[str]) -> dict[str, str]:
    return dict(zip(CODE, code, strict=True))
