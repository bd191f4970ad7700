"""Scores of masks: as counted by hand, as scipy measures them, and what empty masks give."""

import math

import numpy as np
import pytest
import torch
from digar.evaluation.metrics import METRICS
from digar.evaluation.segmentation import Score, score_case
from medpy.metric import binary as medpy
from monai.metrics import compute_surface_dice


def box(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def score(prediction: np.ndarray, truth: np.ndarray, spacing=(1.0, 1.0, 1.0), tolerance: float = 1.0) -> Score:
    (result,) = score_case(prediction.astype(np.uint8), truth.astype(np.uint8), spacing, tolerance, "a", ["organ"])
    return result


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping random masks, one of which touches the border."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(14, 11, 9)).cumsum(0).cumsum(1).cumsum(2)
    truth = field > np.quantile(field, 0.7)
    return np.roll(truth, 1, axis=int(rng.integers(3))) & (rng.random(truth.shape) > 0.1), truth


# By hand


def test_two_boxes_on_anisotropic_voxels_score_as_counted_by_hand():
    # 2 x 2 x 2 voxels of 1 x 2 x 5 mm; the prediction lies one voxel (5 mm) further along z
    truth, prediction = box((6, 6, 6), (2, 2, 1), (4, 4, 3)), box((6, 6, 6), (2, 2, 2), (4, 4, 4))
    result = score(prediction, truth, spacing=(1.0, 2.0, 5.0))
    assert result["dice"] == pytest.approx(2 * 4 / (8 + 8))
    assert result["jaccard"] == pytest.approx(4 / 12)
    # every voxel is surface; in each direction four distances of 0 and four of 5 mm
    assert result["hd95_mm"] == pytest.approx(5.0)
    assert result["assd_mm"] == pytest.approx(2.5)
    assert result["surface_dice"] == pytest.approx(0.5)
    assert result["volume_ml"] == pytest.approx(8 * 10 / 1000)
    assert result["true_volume_ml"] == pytest.approx(0.08)
    assert result["volume_error_ml"] == 0
    assert result.empty == ""


def test_a_volume_error_is_positive_where_the_mask_is_too_large():
    result = score(box((5, 5, 5), (0, 0, 0), (3, 1, 1)), box((5, 5, 5), (0, 0, 0), (1, 1, 1)), spacing=(2, 2, 2))
    assert result["volume_error_ml"] == pytest.approx(2 * 8 / 1000)


def test_equal_masks_are_perfect_at_the_border_too():
    mask = box((4, 4, 4), (0, 0, 0), (4, 4, 2))
    result = score(mask, mask)
    assert (result["dice"], result["jaccard"], result["hd95_mm"], result["assd_mm"], result["surface_dice"]) == (
        1,
        1,
        0,
        0,
        1,
    )


def test_hd95_and_assd_take_both_directions_together():
    # truth is one voxel; the prediction is that voxel and 19 more, 1 to 19 mm away
    truth, prediction = box((30, 3, 3), (5, 1, 1), (6, 2, 2)), box((30, 3, 3), (5, 1, 1), (25, 2, 2))
    distances = [*range(20), 0]
    result = score(prediction, truth)
    assert result["hd95_mm"] == pytest.approx(np.percentile(distances, 95))
    assert result["assd_mm"] == pytest.approx(sum(distances) / 21)


def test_a_distance_equal_to_the_tolerance_is_within_it_although_spacings_are_rounded():
    truth, prediction = box((5, 5, 5), (1, 1, 1), (2, 2, 2)), box((5, 5, 5), (2, 1, 1), (3, 2, 2))
    assert score(prediction, truth, spacing=(1.00001, 1, 1), tolerance=1.0)["surface_dice"] == 1.0
    assert score(prediction, truth, spacing=(1.1, 1, 1), tolerance=1.0)["surface_dice"] == 0.0


# Against other programs


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 4.0)], ids=["isotropic", "thick-slices"])
@pytest.mark.parametrize("seed", range(4))
def test_hd95_and_assd_are_medpys(seed, spacing):
    prediction, truth = blobs(seed)
    result = score(prediction, truth, spacing)
    assert result["hd95_mm"] == pytest.approx(medpy.hd95(prediction, truth, voxelspacing=spacing), rel=1e-5)
    assert result["assd_mm"] == pytest.approx(medpy.assd(prediction, truth, voxelspacing=spacing), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_surface_dice_is_monais(seed):
    prediction, truth = blobs(seed)
    one_hot = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    monai = compute_surface_dice(*one_hot, class_thresholds=[1.5], include_background=True, spacing=(0.7, 1.3, 4.0))
    assert score(prediction, truth, (0.7, 1.3, 4.0), 1.5)["surface_dice"] == pytest.approx(monai.item(), abs=1e-6)


# Empty masks


def test_a_label_in_neither_mask_is_not_scored():
    empty = np.zeros((4, 4, 4), bool)
    result = score(empty, empty)
    assert result.empty == "both"
    assert all(math.isnan(result[name]) for name in METRICS)


@pytest.mark.parametrize(("missing", "volume"), [("truth", 0.001), ("prediction", 0.0)])
def test_a_label_in_one_mask_alone_has_dice_0_and_no_distance(missing, volume):
    masks = {name: box((4, 4, 4), (1, 1, 1), (2, 2, 2)) for name in ("prediction", "truth")}
    masks[missing][:] = False
    result = score(**masks)
    assert result.empty == missing
    assert (result["dice"], result["jaccard"], result["surface_dice"]) == (0, 0, 0)
    assert math.isnan(result["hd95_mm"])
    assert math.isnan(result["assd_mm"])
    assert result["volume_ml"] == pytest.approx(volume)
    assert result["volume_error_ml"] == pytest.approx(0.001 if missing == "truth" else -0.001)


def test_every_label_is_scored_by_its_name():
    prediction = np.zeros((4, 4, 4), np.uint8)
    truth = prediction.copy()
    prediction[0], truth[0] = 2, 2
    first, second = score_case(prediction, truth, (1, 1, 1), 1.0, "a", ["head", "tail"])
    assert (first.label, first.empty) == ("head", "both")
    assert (second.label, second["dice"]) == ("tail", 1.0)


def test_masks_of_two_shapes_are_refused_with_the_case():
    with pytest.raises(ValueError, match=r"b: the mask has shape \(2, 2, 2\), the label \(2, 2, 3\)"):
        score_case(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), (1, 1, 1), 1.0, "b", ["organ"])
