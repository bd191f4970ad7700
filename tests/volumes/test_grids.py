"""The way to the working grid is MONAI's, and the way back ends in the image's own grid."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from digar.inference.inverting import InvertToMaskd, cut
from digar.volumes.grids import CanonicalAxes, WorkingGridd, working_shape
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, Invertd, Orientationd, Spacingd
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

LABELS = [["L", "R"], ["P", "A"], ["I", "S"]]
CODES = [
    "".join(code)
    for axes in itertools.permutations(range(3))
    for code in itertools.product(*(LABELS[axis] for axis in axes))
]
ROTATION = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])


def image(shape: tuple[int, ...], affine: np.ndarray, seed: int = 0) -> MetaTensor:
    values = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))
    meta = {"original_affine": affine.copy(), "spatial_shape": np.array(shape)}
    return MetaTensor(values, affine=torch.from_numpy(affine.copy()), meta=meta)


def affine_of(spacing: tuple[float, ...], rotation: np.ndarray = ROTATION) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = [-12.5, 30.25, 7]
    return affine


def turn(volume: MetaTensor, code: str) -> MetaTensor:
    """The same volume with its axes in another order."""
    canonical = nib.Nifti1Image(volume[0].numpy(), volume.affine.numpy())
    orientation = nib.orientations.ornt_transform(nib.orientations.io_orientation(canonical.affine), axcodes2ornt(code))
    turned = canonical.as_reoriented(orientation)
    values = np.ascontiguousarray(turned.get_fdata(dtype=np.float32))[None]
    meta = {"original_affine": turned.affine.copy(), "spatial_shape": np.array(turned.shape)}
    assert nib.aff2axcodes(turned.affine) == tuple(code)
    assert inv_ornt_aff(orientation, canonical.shape).shape == (4, 4)
    return MetaTensor(values, affine=torch.from_numpy(turned.affine), meta=meta)


GRIDS = [
    ((20, 24, 18), (1.0, 1.0, 1.0)),
    ((20, 13, 9), (0.7, 1.9, 3.3)),
    ((9, 8, 30), (2.5, 2.0, 0.45)),
    ((11, 12, 13), (1.0000001, 0.5, 2.0)),
]


@pytest.mark.parametrize(("shape", "spacing"), GRIDS)
@pytest.mark.parametrize("code", ["RAS", "LPS", "SRA", "IPL"])
def test_the_working_grid_is_that_of_monais_orientation_and_spacing(shape, spacing, code):
    volume = turn(image(shape, affine_of(spacing)), code)
    pixdim = (1.0, 1.0, 1.0)
    monai = Compose([Orientationd("image", axcodes="RAS", labels=LABELS), Spacingd("image", pixdim, mode="bilinear")])
    expected = monai({"image": volume.clone()})["image"]
    found = WorkingGridd("image", pixdim)({"image": volume})["image"]
    assert found.shape == expected.shape
    assert working_shape(volume.shape[1:], volume.affine.numpy(), pixdim) == tuple(found.shape[1:])
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("shape", "spacing"), [*GRIDS[:2], ((9, 8, 30), (2.3, 1.7, 0.45))])
@pytest.mark.parametrize("code", ["RAS", "SRA"])
def test_a_label_moves_to_the_nearest_voxel_as_in_monai(shape, spacing, code):
    volume = turn(image(shape, affine_of(spacing)), code)
    label = MetaTensor((volume * 5).round(), affine=volume.affine, meta=volume.meta)
    monai = Compose([Orientationd("label", axcodes="RAS", labels=LABELS), Spacingd("label", (1, 1, 1), mode="nearest")])
    expected = monai({"label": label.clone()})["label"].as_tensor()
    byte = MetaTensor(label.as_tensor().to(torch.uint8), affine=label.affine, meta=label.meta)
    found = WorkingGridd(["image", "label"], (1, 1, 1), ["linear", "nearest"])({"image": volume, "label": byte})
    assert found["label"].dtype == torch.uint8
    assert found["label"].shape == found["image"].shape == expected.shape
    assert torch.equal(found["label"].as_tensor().float(), expected.float())


def test_without_a_spacing_the_axes_alone_are_turned():
    volume = turn(image((9, 11, 7), affine_of((0.8, 1.3, 2.1))), "SRA")
    found = WorkingGridd("image", None)({"image": volume})["image"]
    assert torch.equal(found.as_tensor(), image((9, 11, 7), affine_of((0.8, 1.3, 2.1))).as_tensor())


def test_a_volume_that_comes_without_channels_and_origin_finds_its_way_back():
    """As MONAI Deploy hands it over: three axes, whole numbers, an affine."""
    values = (100 * image((9, 11, 7), np.eye(4))[0]).round().to(torch.int16).as_tensor()
    affine = affine_of((0.8, 1.3, 2.1))
    moved = WorkingGridd("image", (1, 1, 1))({"image": MetaTensor(values, affine=affine)})
    assert moved["image"].dtype == torch.float32
    assert moved["image"].dim() == 4
    mask = InvertToMaskd("pred")({**moved, "pred": torch.zeros(2, *moved["image"].shape[1:])})["pred"]
    assert mask.shape == (1, 9, 11, 7)
    np.testing.assert_allclose(mask.affine, affine)


@pytest.mark.parametrize(("shape", "spacing"), GRIDS)
@pytest.mark.parametrize("code", ["RAS", "PSL"])
def test_the_mask_is_that_of_monais_invertd_and_argmax(shape, spacing, code):
    volume = turn(image(shape, affine_of(spacing)), code)
    transforms = [Orientationd("image", axcodes="RAS", labels=LABELS), Spacingd("image", (1.0, 1, 1), mode="bilinear")]
    monai = Compose(transforms)
    case = monai({"image": volume.clone()})
    logits = 4 * torch.randn(3, *case["image"].shape[1:], generator=torch.Generator().manual_seed(1))
    back = Compose([
        Invertd("pred", monai, orig_keys="image", nearest_interp=False), AsDiscreted("pred", argmax=True)
    ])  # fmt: skip
    expected = back({**case, "pred": MetaTensor(logits.softmax(0))})["pred"]
    ours = WorkingGridd("image", (1.0, 1.0, 1.0))({"image": volume})
    found = InvertToMaskd("pred")({**ours, "pred": logits})["pred"]
    assert found.shape == expected.shape == volume.shape
    assert found.dtype == torch.uint8
    np.testing.assert_allclose(found.affine, volume.affine, atol=1e-6)
    assert (found.as_tensor() == expected.as_tensor()).float().mean() > 0.9999


@pytest.mark.parametrize("code", CODES)
def test_every_axis_order_has_the_same_working_grid_bit_by_bit(code):
    volume = image((9, 11, 7), affine_of((0.8, 1.3, 2.1)))
    expected = WorkingGridd("image", (1.0, 1.5, 1.2))({"image": volume})["image"]
    found = WorkingGridd("image", (1.0, 1.5, 1.2))({"image": turn(volume, code)})["image"]
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)


@pytest.mark.parametrize("code", CODES)
def test_axes_are_turned_and_turned_back(code):
    values = turn(image((3, 4, 5), affine_of((1, 2, 3))), code)
    axes = CanonicalAxes.of(values.affine.numpy())
    turned = axes.apply(values.numpy())
    np.testing.assert_array_equal(axes.undo(turned), values.numpy())
    affine = axes.turn_affine(values.affine.numpy(), values.shape[1:])
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    np.testing.assert_allclose(affine, affine_of((1, 2, 3)), atol=1e-9)


@pytest.mark.parametrize("thickness", [1, 2, 5, 100])
def test_the_mask_does_not_depend_on_the_slabs(thickness, monkeypatch):
    volume = image((14, 9, 12), affine_of((1.7, 0.6, 1.1)))
    case = WorkingGridd("image", (1.0, 1.0, 1.0))({"image": volume})
    logits = 4 * torch.randn(5, *case["image"].shape[1:], generator=torch.Generator().manual_seed(1))
    expected = InvertToMaskd("pred")({**case, "pred": logits})["pred"]
    monkeypatch.setattr("digar.inference.inverting.SLAB_THICKNESS", thickness)
    found = InvertToMaskd("pred")({**case, "pred": cut(logits)})["pred"]
    assert torch.equal(found.as_tensor(), expected.as_tensor())


def test_probabilities_are_filled_in_the_images_own_grid_and_agree_with_the_mask():
    volume = turn(image((14, 9, 12), affine_of((1.7, 0.6, 1.1))), "SLA")
    case = WorkingGridd("image", (1.0, 1.0, 1.0))({"image": volume})
    logits = torch.randn(3, *case["image"].shape[1:], generator=torch.Generator().manual_seed(1))
    sink = np.zeros((3, *volume.shape[1:]), np.float32)
    mask = InvertToMaskd("pred")({**case, "pred": logits, "probabilities": sink})["pred"]
    np.testing.assert_allclose(sink.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(sink.argmax(axis=0), mask[0].numpy())
    plain = InvertToMaskd("pred")({**case, "pred": logits})["pred"]
    assert torch.equal(plain.as_tensor(), mask.as_tensor())


def test_a_prediction_across_the_images_axes_is_refused():
    volume = image((9, 9, 9), affine_of((1, 1, 1)))
    tilted = MetaTensor(volume.as_tensor(), affine=torch.eye(4, dtype=torch.float64), meta=dict(volume.meta))
    with pytest.raises(ValueError, match="not parallel"):
        InvertToMaskd("pred")({"image": tilted, "pred": torch.zeros(2, 9, 9, 9)})
