"""Phantoms for the other kinds of sequence: studies of four contrasts, and a table of lesions.

    digar phantoms FOLDER --sources --training 8

writes ``FOLDER/studies`` (BraTS layout: a folder per study, t1n, t1c, t2w, t2f on one grid) and ``FOLDER/lesions``
(scans and ``lesions.csv`` in DeepLesion's manner: boxes, types, -1 for unknown). The organs are those of
:mod:`digar.data.phantoms`.
"""

from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from digar.data.lesions import BOX, UNKNOWN_TYPE
from digar.data.phantoms import LABELS, NOISE, Study, make_study, write_volume
from digar.volumes.files import write_rows

# Intensity of background, ellipsoid, tube, shell, landmark, twin_near and twin_far in each contrast; tissue comes last
CONTRASTS = {
    "t1n": (0, 220, 90, 160, 260, 220, 220, 130),
    "t1c": (0, 220, 330, 160, 300, 220, 220, 140),
    "t2w": (0, 110, 300, 340, 60, 110, 110, 180),
    "t2f": (0, 260, 60, 90, 120, 260, 260, 150),
}
LESION_TYPES = {"ellipsoid": "1", "tube": "2", "shell": "3", "landmark": "4", "twin_near": UNKNOWN_TYPE}
SCANS_PER_PATIENT = 2


def make_contrasts(seed: int, index: int) -> dict[str, Study]:
    """Phantom ``index`` of the series ``seed`` in four contrasts on one grid; equal arguments give equal bytes."""
    study = make_study(seed, index)
    generator = np.random.default_rng([seed, index, 1])
    smooth = ndimage.gaussian_filter(study.image.astype(float), 1)
    inside = ndimage.binary_fill_holes(smooth > np.percentile(smooth, [50, 85]).mean())  # air is the larger part
    tissue = np.where((study.label == 0) & inside, len(LABELS), study.label)  # the body's tissue as one more label
    contrasts = {}
    for name, levels in CONTRASTS.items():
        signal = ndimage.gaussian_filter(np.array(levels, dtype=float)[tissue], 0.5)
        image = signal + generator.normal(0, NOISE, signal.shape)
        contrasts[name] = Study(np.rint(image).astype(np.int16), study.label, study.affine)
    return contrasts


def write_studies(folder: str | Path, count: int, seed: int = 0) -> list[Path]:
    """Write ``count`` studies, ``PHANTOM-00000-000/PHANTOM-00000-000-t1n.nii.gz`` and so on; their folders."""
    folders = []
    for index in tqdm(range(count), desc=f"studies in {folder}", unit="study"):
        name = f"PHANTOM-{index:05d}-000"
        folders.append(Path(folder) / name)
        for contrast, study in make_contrasts(seed, index).items():
            write_volume(folders[-1] / f"{name}-{contrast}.nii.gz", study.image, study.affine)
    return folders


def write_lesions(folder: str | Path, patients: int, seed: int = 0) -> Path:
    """Write two scans of each patient and ``lesions.csv`` with a box and a type per organ; the table's path."""
    rows = []
    for index in tqdm(range(patients * SCANS_PER_PATIENT), desc=f"scans in {folder}", unit="scan"):
        study = make_study(seed, index)
        patient, scan = divmod(index, SCANS_PER_PATIENT)
        file = f"images/{patient:06d}_{scan + 1:02d}.nii.gz"
        write_volume(Path(folder) / file, study.image, study.affine)
        for organ, lesion_type in LESION_TYPES.items():
            found = np.argwhere(study.label == LABELS[organ])
            rows.append((f"{patient:06d}", file, lesion_type, *found.min(axis=0), *found.max(axis=0)))
    table = Path(folder) / "lesions.csv"
    write_rows(table, [("patient", "file", "type", *BOX), *rows])
    return table


def write_sources(folder: str | Path, count: int, seed: int = 0) -> tuple[Path, Path]:
    """Write ``count`` studies and as many patients with lesions; the folder of studies and the table."""
    write_studies(Path(folder) / "studies", count, seed)
    return Path(folder) / "studies", write_lesions(Path(folder) / "lesions", count, seed)
