"""Volumes whose class is a property of all three dimensions: a helix that winds to the left or to the right."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np

CLASSES = ("left", "right")


def helix(rng: np.random.Generator, winding: int, size: int = 24) -> np.ndarray:
    """A bright wire that winds half around the third axis; a slice alone hardly tells which way."""
    x, y, z = np.indices((size, size, size))
    angle = rng.uniform(-0.5, 0.5) + (1 if winding else -1) * np.pi * (z / size - 0.5)
    middle, radius = (size - 1) / 2 + rng.uniform(-1, 1), size / 4
    distance = np.hypot(x - middle - radius * np.cos(angle), y - middle - radius * np.sin(angle))
    return (200 * np.exp(-((distance / 2.5) ** 2)) + rng.normal(0, 10, x.shape)).astype(np.float32)


def write_table(folder: Path, num_cases: int, columns: tuple[str, ...] = (), size: int = 24) -> Path:
    """Helixes as files, of both classes in turn, and their table; two volumes of a patient, if that column is asked."""
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir(parents=True)
    rows = []
    for index in range(num_cases):
        winding = (index // 2) % 2
        name = f"scans/helix_{index:03d}.nii.gz"
        nib.save(nib.Nifti1Image(helix(rng, winding, size), np.diag([1.0, 1.0, 2.0, 1.0])), folder / name)
        rows.append({"file": name, "class": CLASSES[winding], "patient": f"p{index // 2}", "part": "training"})
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["file", "class", *columns], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def write_archive(path: Path, counts: tuple[int, int, int], size: int = 28) -> Path:
    """Helixes as a MedMNIST archive: training, validation and test images and labels."""
    rng = np.random.default_rng(1)
    arrays = {}
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        labels = np.arange(count) % 2
        arrays[f"{part}_images"] = np.stack([helix(rng, n, size).clip(0, 255) for n in labels]).astype(np.uint8)
        arrays[f"{part}_labels"] = labels[:, None].astype(np.uint8)
    np.savez_compressed(path, **arrays)
    return path
