"""The reports of a folder run: a table, a record for programs, a page for people, volumes, and the labels' names."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from digar.inference.journal import Outcome
from digar.inference.page import report_page
from digar.volumes.files import whole_file

INTERNAL = ("thumbnail", "state", "run")  # of no use to a reader


def write_reports(
    output_dir: str | Path, facts: Mapping[str, Any], outcomes: Sequence[Outcome], labels: Mapping[int, str]
) -> None:
    """Write ``report.csv``, ``report.json``, ``report.html``, ``volumes.csv`` and ``labels.json``, each whole.

    Args:
        output_dir: the folder.
        facts: of the run, by name.
        outcomes: of all images, in the order of the rows.
        labels: value in the masks to name.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(output_dir)
    rows = [
        {
            "file": o.name,
            "status": o.status,
            "reason": o.reason,
            "warnings": "; ".join(o.warnings),
            "mask": o.mask,
            "shape": "x".join(map(str, o.shape)),
            "spacing_mm": "x".join(f"{s:g}" for s in o.spacing),
            "seconds": round(sum(o.seconds.get(name, 0) for name in ("reading", "network")), 3),
            **{f"{name} ml": o.volumes_ml.get(name, "") for name in labels.values()},
        }
        for o in outcomes
    ]
    columns = ["file", "status", "reason", "warnings", "mask", "shape", "spacing_mm", "seconds"]
    _write_table(folder / "report.csv", rows, [*columns, *(f"{name} ml" for name in labels.values())])
    done = [{"file": o.name, **o.volumes_ml} for o in outcomes if o.volumes_ml]
    _write_table(folder / "volumes.csv", done, ["file", *labels.values()])
    records = [{k: v for k, v in asdict(o).items() if k not in INTERNAL} for o in outcomes]
    for name, content in (
        ("report.json", {"run": dict(facts), "labels": dict(labels), "files": records}),
        ("labels.json", {0: "background", **labels}),
    ):
        with whole_file(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    with whole_file(folder / "report.html") as temporary:
        temporary.write_text(report_page(facts, outcomes, labels), encoding="utf-8")


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
