"""Score a folder of masks against true labels, whatever program made the masks; see :mod:`digar.evaluation`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from digar.data.datalists import image_files
from digar.data.task import label_name
from digar.evaluation.segmentation import score_case
from digar.evaluation.tables import MEAN, case_means, summary_lines, write_scores
from digar.volumes.checks import read_label
from digar.volumes.pictures import picture_page, take_planes
from digar.volumes.reading import read_header, read_volume
from digar.volumes.search import case_names

logger = logging.getLogger(__name__)


def load_pair(mask_file: str | Path, label_file: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask and truth ``(X, Y, Z)`` in one grid, and its affine: the label's.

    Raises:
        VolumeError: one of them cannot be read or holds other values than labels, or they lie in different grids.
    """
    header = read_header(label_file)
    mask, truth = (read_label(file, header, role="its label") for file in (mask_file, label_file))
    return mask, truth, header.affine


def find_masks(masks: str | Path, labels: str | Path, postfix: str = "_mask") -> dict[str, tuple[Path, Path]]:
    """Case to mask and label, by their names below the folders; labels without a mask are reported and left out.

    Raises:
        FileNotFoundError: there is no label, or none of them has a mask.
    """
    folder = Path(masks)
    files = image_files(labels)
    found: dict[str, tuple[Path, Path]] = {}
    for name, label in zip(case_names(files), files, strict=True):
        below = label.relative_to(labels).parent / f"{Path(name).name}{postfix}.nii.gz"
        mask = next((place for place in (folder / below, folder / below.name) if place.is_file()), None)
        if mask is not None:
            found[name] = (mask, label)
    if not found:
        raise FileNotFoundError(
            f"none of the {len(files)} labels in {labels} has a mask in {masks}: the mask of {files[0].name} must be "
            f"named {case_names(files)[0]}{postfix}.nii.gz"
        )
    if len(found) < len(files):
        logger.warning("%d of %d labels have no mask and are left out", len(files) - len(found), len(files))
    return found


def compare(
    masks: str | Path,
    labels: str | Path,
    output: str | Path,
    images: str | Path | None = None,
    names: Mapping[int, str] | None = None,
    postfix: str = "_mask",
    tolerance_mm: float = 1.0,
    num_pictures: int = 4,
) -> float:
    """Write ``cases.csv``, ``summary.csv`` and, with images, ``worst.png``; print the summary; return the mean Dice.

    Args:
        masks: folder of the masks; the label ``a.nii.gz`` belongs to the mask ``a<postfix>.nii.gz``.
        labels: folder of the true labels.
        output: folder that is written to.
        images: folder of the images, of the labels' file names; they are shown under the worst masks.
        names: of the labels by their values; without it every value up to the highest is a label, by its number.
        postfix: of the masks' names.
        tolerance_mm: of the surface Dice.
        num_pictures: rows of the page.

    Raises:
        FileNotFoundError: there is no label, or none has a mask.
        ValueError: a mask lies in another grid than its label, or no mask and no label holds anything.
    """
    pairs = find_masks(masks, labels, postfix)
    if names is None:
        highest = max(int(volume.max()) for files in pairs.values() for volume in load_pair(*files)[:2])
        names = {value: label_name({}, value) for value in range(1, highest + 1)}
    listed = [label_name(names, value) for value in range(1, max(names, default=0) + 1)]
    scores = []
    for case, files in tqdm(pairs.items(), desc="scoring", leave=False):
        prediction, truth, affine = load_pair(*files)
        scores += score_case(prediction, truth, _spacing(affine), tolerance_mm, case, listed)
    means = sorted((mean for mean in case_means(scores) if not np.isnan(mean["dice"])), key=lambda mean: mean["dice"])
    if not means:
        raise ValueError(f"the labels in {labels} and their masks are all empty: there is nothing to score")
    if images is not None:
        rows = []
        for mean in means[:num_pictures]:
            prediction, truth, affine = load_pair(*pairs[mean.case])
            image = read_volume(Path(images) / pairs[mean.case][1].relative_to(labels))[0].numpy()
            rows.append(take_planes(f"{mean.case}: mean Dice {mean['dice']:.3f}", image, [truth, prediction], affine))
        picture_page(Path(output) / "worst.png", rows, "the lowest Dice", names)
    summary = write_scores(Path(output), scores)
    print("\n".join(summary_lines(summary)))
    mean_dice = next(row["mean"] for row in summary if row["label"] == MEAN and row["metric"] == "dice")
    print(f"mean Dice {mean_dice:.3f}")
    return float(mean_dice)


def _spacing(affine: np.ndarray) -> Sequence[float]:
    """Voxel size in mm along each axis."""
    return [float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)]
