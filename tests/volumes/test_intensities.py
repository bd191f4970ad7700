"""Fast percentiles are the exact ones, and scaling by them is what the formula says."""

import numpy as np
import pytest
import torch
from digar.volumes.intensities import ScaleIntensityd, percentiles, scale_by_percentiles, scale_on_device
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRangePercentilesd

NUMBERS = {
    "skewed": lambda rng, n: rng.gamma(2, 30, n),
    "constant": lambda rng, n: np.full(n, 7.0),
    "half-zero": lambda rng, n: np.maximum(rng.normal(0, 30, n), 0),
    "sorted": lambda rng, n: np.sort(rng.normal(100, 30, n)),
    "misleading": lambda rng, n: (np.arange(n) % 61 == 0) * 100.0,  # every number that stands for the others is 100
    "misleading-low": lambda rng, n: 100 - (np.arange(n) % 61 == 0) * 100.0,
}


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("count", [1, 2, 100, 4096, 4097, 100_003])
@pytest.mark.parametrize("name", NUMBERS)
def test_percentiles_are_numpys(name, count, dtype):
    values = NUMBERS[name](np.random.default_rng(0), count).clip(0, 255).astype(dtype)
    expected = np.percentile(values.astype(np.float64), [1, 99.9])
    np.testing.assert_allclose(percentiles(values), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("count", [1, 2, 100, 100_003])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_gpus_way_to_scale_gives_the_same_numbers(name, count, dtype):
    values = torch.from_numpy(NUMBERS[name](np.random.default_rng(0), count).clip(0, 255).astype(dtype))
    expected = scale_by_percentiles(values[None])[0]
    torch.testing.assert_close(scale_on_device(values), expected, rtol=0, atol=1e-6)


def test_each_channel_is_scaled_by_its_own_percentiles_and_clipped():
    crop = np.random.default_rng(1).gamma(2, 100, (2, 20, 20, 20)).astype(np.float32)
    crop[1] += 5000
    expected = np.empty_like(crop)
    for channel in range(2):
        low, high = np.percentile(crop[channel], [1, 99.9])
        expected[channel] = np.clip((crop[channel] - low) / (high - low), 0, 1)
    scaled = scale_by_percentiles(torch.from_numpy(crop))
    assert scaled.dtype == torch.float32
    np.testing.assert_allclose(scaled.numpy(), expected, atol=1e-5)


def test_where_both_percentiles_agree_what_is_above_becomes_1():
    crop = np.full((1, 20, 20, 20), 5, np.int16)
    crop[0, 0, 0, :3] = 6, 4, 300
    scaled = scale_by_percentiles(torch.from_numpy(crop))
    assert scaled[0, 0, 0, :4].tolist() == [1, 0, 1, 0]
    assert scaled.sum() == 2


def test_the_transform_is_monais_with_its_metadata_kept():
    values = torch.rand(2, 20, 21, 22, generator=torch.Generator().manual_seed(0)) ** 3
    volume = MetaTensor(values, affine=2 * torch.eye(4, dtype=torch.float64), meta={"filename_or_obj": "a.nii"})
    monai = ScaleIntensityRangePercentilesd("image", 1, 99.9, 0.0, 1.0, clip=True, channel_wise=True)
    expected = monai({"image": volume.clone()})["image"]
    found = ScaleIntensityd("image")({"image": volume, "label": 3})
    torch.testing.assert_close(found["image"].as_tensor(), expected.as_tensor(), rtol=0, atol=1e-6)
    assert found["image"].meta["filename_or_obj"] == "a.nii"
    assert torch.equal(found["image"].affine, volume.affine)
    assert found["label"] == 3


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="the intensity rule is 'percentile': it must be percentiles or a window"):
        ScaleIntensityd("image", "percentile")
