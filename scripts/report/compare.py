"""Compare a folder of masks with a folder of true labels: Dice per label, and a picture page.

python -m scripts.report.compare --masks OUT --labels TASK/labelsTs --images TASK/imagesTs --picture page.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.report.pictures import picture_page


def dice(mask: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Dice of one label; NaN where neither volume holds it."""
    predicted, true = mask == label, truth == label
    total = predicted.sum() + true.sum()
    return float(2 * (predicted & true).sum() / total) if total else float("nan")


def load_pair(mask_file: Path, label_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mask and truth, which must lie in one grid.

    Raises:
        FileNotFoundError: there is no mask.
        ValueError: shapes or affines differ.
    """
    if not mask_file.is_file():
        raise FileNotFoundError(f"there is no mask {mask_file} for {label_file}")
    mask, truth = nib.load(mask_file), nib.load(label_file)
    if mask.shape != truth.shape or not np.allclose(mask.affine, truth.affine, atol=1e-3):
        raise ValueError(f"{mask_file} lies in another grid than {label_file}")
    return np.asanyarray(mask.dataobj), np.asanyarray(truth.dataobj)


def compare(masks: Path, labels: Path, images: Path, picture: Path, num_pictures: int = 4) -> float:
    """Print Dice per label over the cases that hold it, write a picture page of the first cases, return the mean Dice.

    Raises:
        FileNotFoundError: there is no label, or a mask is missing.
        ValueError: a mask lies in another grid than its label, or no label holds anything.
    """
    files = sorted(file for file in labels.glob("*.nii.gz") if not file.name.startswith("._"))
    if not files:
        raise FileNotFoundError(f"{labels} holds no label (*.nii.gz)")
    scores: dict[int, list[float]] = {}
    rows = []
    for file in files:
        name = file.name.removesuffix(".nii.gz")
        mask, truth = load_pair(masks / f"{name}_mask.nii.gz", file)
        case = {int(value): dice(mask, truth, int(value)) for value in np.unique(truth) if value > 0}
        for value, score in case.items():
            scores.setdefault(value, []).append(score)
        if len(rows) < num_pictures:
            image = nib.load(images / file.name)
            title = f"{name}: mean Dice {np.mean(list(case.values())):.3f}" if case else f"{name}: nothing labelled"
            spacing = [float(s) for s in image.header.get_zooms()[:3]]
            rows.append({"title": title, "image": image.get_fdata(), "masks": [truth, mask], "spacing": spacing})
    if not scores:
        raise ValueError(f"the labels in {labels} are all empty: there is nothing to score")
    picture_page(picture, rows, "truth solid, prediction dashed")
    for value in sorted(scores):
        print(f"label {value}: Dice {np.mean(scores[value]):.3f} over {len(scores[value])} cases")
    mean = float(np.mean([np.mean(values) for values in scores.values()]))
    print(f"pictures: {picture}")
    print(f"mean Dice {mean:.3f}")
    return mean


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("masks", "labels", "images", "picture"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args(arguments)
    compare(options.masks, options.labels, options.images, options.picture)


if __name__ == "__main__":
    main()
