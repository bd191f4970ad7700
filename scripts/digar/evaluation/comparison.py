"""Score a folder of masks against true labels, whatever program made the masks; see :mod:`digar.evaluation`.

python -m digar.evaluation.comparison --masks OUT --labels TASK/labelsTs --images TASK/imagesTs --output scores
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from digar.data.datalists import image_files
from digar.evaluation.segmentation import score_case
from digar.evaluation.tables import MEAN, case_means, summary_lines, write_scores
from digar.volumes.pictures import picture_page, take_planes
from digar.volumes.reading import read_volume
from digar.volumes.search import case_name


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


def compare(
    masks: Path,
    labels: Path,
    images: Path,
    output: Path,
    names: Sequence[str] | None = None,
    postfix: str = "_mask",
    tolerance_mm: float = 1.0,
    num_pictures: int = 4,
) -> float:
    """Write ``cases.csv``, ``summary.csv`` and ``worst.png``, print the summary, return the mean Dice.

    Args:
        masks: folder of the masks; the label ``a.nii.gz`` belongs to the mask ``a<postfix>.nii.gz``.
        labels: folder of the true labels.
        images: folder of the images, of the labels' file names; they are shown under the worst masks.
        output: folder that is written to.
        names: of the labels 1, 2, ...; without it every value that occurs is a label, ``label 1`` and so on.
        postfix: of the masks' names.
        tolerance_mm: of the surface Dice.
        num_pictures: rows of the page.

    Raises:
        FileNotFoundError: there is no label, or a mask is missing.
        ValueError: a mask lies in another grid than its label, or no mask and no label holds anything.
    """
    pairs = {file: masks / f"{case_name(file)}{postfix}.nii.gz" for file in image_files(labels)}
    if names is None:
        highest = max(int(volume.max()) for label, mask in pairs.items() for volume in load_pair(mask, label))
        names = [f"label {value}" for value in range(1, highest + 1)]
    scores = []
    for label, mask in tqdm(pairs.items(), desc="scoring", leave=False):
        prediction, truth = load_pair(mask, label)
        spacing = [float(s) for s in nib.load(label).header.get_zooms()[:3]]
        scores += score_case(prediction, truth, spacing, tolerance_mm, case_name(label), names)
    means = sorted((mean for mean in case_means(scores) if not np.isnan(mean["dice"])), key=lambda mean: mean["dice"])
    if not means:
        raise ValueError(f"the labels in {labels} and their masks are all empty: there is nothing to score")

    files = {case_name(label): (label, mask) for label, mask in pairs.items()}
    rows = []
    for mean in means[:num_pictures]:
        label, mask = files[mean.case]
        prediction, truth = load_pair(mask, label)
        image = read_volume(images / label.name)
        title = f"{mean.case}: mean Dice {mean['dice']:.3f}"
        rows.append(take_planes(title, image[0].numpy(), [truth, prediction], image.affine.numpy()))
    picture_page(output / "worst.png", rows, "the lowest Dice", dict(enumerate(names, start=1)))
    summary = write_scores(output, scores)
    print("\n".join(summary_lines(summary)))
    mean_dice = next(row["mean"] for row in summary if row["label"] == MEAN and row["metric"] == "dice")
    print(f"mean Dice {mean_dice:.3f}")
    return float(mean_dice)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("masks", "labels", "images", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--names", nargs="+", help="names of the labels 1, 2, ...")
    parser.add_argument("--postfix", default="_mask", help="of the masks' names (default: %(default)s)")
    parser.add_argument("--tolerance_mm", type=float, default=1.0, help="of the surface Dice (default: %(default)s)")
    compare(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
