"""Lesions with a class each, for semantic sequences: read from a table, or written to one from a task's labels.

    digar lesions DATA/Task04_Hippocampus lesions.csv

A table is a CSV with the columns ``patient``, ``file`` (relative to the table's folder, or absolute), ``type``, and
either a centre ``x, y, z`` or a box ``x1, y1, z1, x2, y2, z2``, in voxels of the file, counted from 0. DeepLesion's
types are 1 to 8; rows of type -1 (unknown) are left out.
"""

import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from digar.data.datalists import labelled_cases
from digar.volumes.checks import read_label
from digar.volumes.files import read_table, write_rows
from digar.volumes.reading import read_header

UNKNOWN_TYPE = "-1"
CENTRE = ("x", "y", "z")
BOX = ("x1", "y1", "z1", "x2", "y2", "z2")
SMALLEST_MM3 = 50.0  # smaller components of a label are specks


def lesion_cases(table: str | Path) -> list[dict[str, Any]]:
    """The lesions of a table: ``{"kind": "semantic", "image": path, "patient", "type", "centre": voxels (3,)}``.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a column is missing, a row does not fit, or no row has a known type.
    """
    file = Path(table)
    if not file.is_file():
        raise FileNotFoundError(f"lesion_table {file} is not a file")
    rows = read_table(file, ("patient", "file", "type"))
    columns = set(rows[0][1]) if rows else set()
    boxed = set(BOX) <= columns
    if rows and not (boxed or set(CENTRE) <= columns):
        raise ValueError(f"{file} has neither the columns x, y, z nor {', '.join(BOX)} (voxels of the file)")
    cases = []
    for line, row in rows:
        if row["type"] == UNKNOWN_TYPE:
            continue
        try:
            if not (row["patient"] and row["file"] and row["type"]):
                raise ValueError("patient, file or type is empty")
            numbers = np.array([float(row[name]) for name in (BOX if boxed else CENTRE)])
            if not np.isfinite(numbers).all():
                raise ValueError("a position is not finite")
        except ValueError as error:
            raise ValueError(f"{file}, line {line}: {error}") from None
        cases.append(
            {
                "kind": "semantic",
                "image": str(file.parent / row["file"]),
                "patient": row["patient"],
                "type": row["type"],
                "centre": numbers.reshape(-1, 3).mean(axis=0).tolist(),
            }
        )
    if not cases:
        raise ValueError(f"{file} contains no lesion of a known type")
    return cases


def label_components(label: str | Path) -> list[tuple[int, list[float]]]:
    """Every connected component (26 neighbours) of every label of at least 50 mm3: label, and the centre of its box."""
    header = read_header(label)
    voxel_mm3 = abs(float(np.linalg.det(header.affine[:3, :3])))
    labels = read_label(label, header)
    components = []
    for value in np.unique(labels[labels > 0]):
        numbered, _ = ndimage.label(labels == value, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(numbered.ravel())
        for number, box in enumerate(ndimage.find_objects(numbered), start=1):
            if sizes[number] * voxel_mm3 >= SMALLEST_MM3:
                components.append((int(value), [(axis.start + axis.stop - 1) / 2 for axis in box]))
    return components


def write_lesion_table(task: str | Path, table: str | Path) -> int:
    """Write the components of an MSD task's labels as a lesion table: the label is the type.

    Returns:
        The number of rows.

    Raises:
        ValueError: no label holds a component.
    """
    cases = labelled_cases(task)
    file = Path(table)
    with ThreadPool() as pool:
        found = pool.imap(lambda case: label_components(case["label"]), cases)
        rows = [
            (case["patient"], _relative(case["image"], file.parent), value, *centre)
            for case, components in zip(cases, tqdm(found, total=len(cases), desc="labels"), strict=True)
            for value, centre in components
        ]
    if not rows:
        raise ValueError(f"{task}: no label holds a component of {SMALLEST_MM3:g} mm3")
    write_rows(file, [("patient", "file", "type", *CENTRE), *rows])
    return len(rows)


def _relative(path: str, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return os.path.abspath(path)
