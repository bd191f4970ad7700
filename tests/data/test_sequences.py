"""Pretraining samples: a window of the scan, scaled by itself, perhaps cut into slabs, with a random prefix."""

from collections import Counter

import numpy as np
import pytest
import torch
from digar.data.sequences import (
    KINDS,
    ContrastSequenced,
    RandPrefixd,
    SemanticSequenced,
    Sequenced,
    SpatialSequenced,
    copied_patches,
    prepare_next_patch,
)
from torch import Tensor
from torch.nn.functional import interpolate


def numbered(*shape: int) -> Tensor:
    """A scan whose voxels all differ, so that a window tells where it was cut."""
    return torch.arange(np.prod(shape), dtype=torch.float32).reshape(shape)


def seeded(seed: int, *arguments: object, **keywords: object) -> SpatialSequenced:
    return SpatialSequenced("image", *arguments, **keywords).set_random_state(seed=seed)


def random_scan(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).gamma(2.0, 100.0, shape).astype(np.float32))


# The crop


@pytest.mark.parametrize("shape", [(1, 9, 7, 8), (2, 9, 7, 8)], ids=["one-channel", "two-channels"])
def test_a_crop_is_a_window_of_the_scan(shape):
    scan = numbered(*shape)
    for seed in range(10):
        crop = seeded(seed, (4, 5, 3)).crop(scan)
        x, y, z = np.unravel_index(int(crop[0, 0, 0, 0]), shape[1:])
        assert torch.equal(crop, scan[:, x : x + 4, y : y + 5, z : z + 3])


def test_windows_reach_both_ends_of_every_axis():
    scan = numbered(1, 4, 3, 5)
    transform = seeded(0, (2, 2, 2))
    corners = [np.unravel_index(int(transform.crop(scan)[0, 0, 0, 0]), (4, 3, 5)) for _ in range(200)]
    for axis, last in enumerate((2, 1, 3)):
        assert {int(corner[axis]) for corner in corners} == set(range(last + 1))


def test_a_scan_of_the_samples_size_is_taken_as_it_is():
    scan = numbered(1, 4, 5, 3)
    assert torch.equal(seeded(0, (4, 5, 3)).crop(scan), scan)


def test_a_short_axis_is_taken_whole_and_resized():
    scan = random_scan(2, 3, 10, 4)
    crop = seeded(1, (6, 6, 4)).crop(scan)
    windows = [scan[:, :, start : start + 6] for start in range(5)]
    resized = [interpolate(window[None], (6, 6, 4), mode="trilinear")[0] for window in windows]
    assert [torch.allclose(crop, candidate, rtol=1e-5, atol=1e-3) for candidate in resized].count(True) == 1


# Its intensities


def test_a_sample_is_scaled_by_its_own_percentiles():
    scan = random_scan(1, 20, 20, 20)
    scan[:, :10] += 1000.0  # the scan's percentiles are not the crop's
    size = (8, 9, 10)
    crop = seeded(2, size).crop(scan).numpy()
    low, high = np.percentile(crop, [1, 99.9])
    sample = seeded(2, size)({"image": scan})["image"]
    expected = torch.from_numpy(np.clip((crop - low) / (high - low), 0, 1))
    torch.testing.assert_close(torch.as_tensor(sample), expected, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert (sample.min(), sample.max()) == (0, 1)
    assert sample.dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, -1000.0, 7.0])
def test_a_constant_scan_gives_finite_values_from_0_to_1(value):
    sample = seeded(0, (4, 4, 4))({"image": torch.full((1, 6, 6, 6), value)})["image"]
    assert sample.isfinite().all()
    assert sample.min() >= 0
    assert sample.max() <= 1


def test_a_few_bright_voxels_in_a_constant_crop_stay_within_0_and_1():
    scan = torch.zeros(1, 16, 16, 16)  # both percentiles are 0: the background of a skull-stripped scan, and its rim
    scan[0, 0, 0, :2] = 3000.0
    sample = seeded(0, (16, 16, 16))({"image": scan})["image"]
    assert sample.isfinite().all()
    assert sample.max() <= 1


def test_the_given_sample_and_scan_are_not_changed():
    scan = random_scan(1, 6, 6, 6)
    data, before = {"image": scan, "name": "a"}, scan.clone()
    result = seeded(0, (4, 4, 4), slab_offset=1)(data)
    assert data["image"] is scan
    assert torch.equal(scan, before)
    assert result["name"] == "a"


# Slabs


def plain_slabs(crop: Tensor, start: int, offset: int) -> Tensor:
    quarter = crop.shape[3] // 4
    taken = [start + i * offset + k for i in range(4) for k in range(quarter)]
    return crop[:, :, :, taken]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("offset", [1, 3, 4])
def test_slabs_are_the_published_slices_of_the_crop(offset, channels):
    crop = numbered(channels, 2, 3, 16)
    transform = seeded(0, (2, 3, 16), slab_offset=offset)
    starts = set()
    for _ in range(150):
        joined = transform.join_slabs(crop)
        starts.add(int(joined[0, 0, 0, 0]))
        assert torch.equal(joined, plain_slabs(crop, int(joined[0, 0, 0, 0]), offset))
    assert starts == set(range(16 - 4 - 3 * offset + 1))


def test_a_sample_of_slabs_is_the_scaled_crop_cut_into_slabs():
    scan = random_scan(1, 4, 4, 8)  # of the sample's size: the crop is the scan
    scaled = torch.as_tensor(seeded(0, (4, 4, 8))({"image": scan})["image"])
    for seed in range(5):
        sample = torch.as_tensor(seeded(seed, (4, 4, 8), slab_offset=1)({"image": scan})["image"])
        assert any(torch.equal(sample, plain_slabs(scaled, start, 1)) for start in range(4))


@pytest.mark.parametrize("slab_offset", [None, 2])
def test_samples_have_their_size_and_all_channels(slab_offset):
    sample = seeded(0, (4, 5, 8), slab_offset=slab_offset)({"image": random_scan(3, 9, 3, 11)})["image"]
    assert sample.shape == (3, 4, 5, 8)


@pytest.mark.parametrize(
    ("slices", "offset", "start", "thickness"),
    [
        (16, 5, None, 4),
        (128, 33, None, 32),
        (16, -1, None, 4),
        (16, 2, (0, 7), 4),
        (16, 2, (3, 2), 4),
        (16, 2, (1,), 4),
    ],
)
def test_slabs_that_do_not_fit_are_refused_with_the_numbers(slices, offset, start, thickness):
    message = f"slab_offset {offset} and slab_start .* not fit: 4 slabs of {thickness} slices must lie within {slices}"
    with pytest.raises(ValueError, match=message):
        SpatialSequenced("image", (8, 8, slices), slab_offset=offset, slab_start=start)


def test_slices_that_four_slabs_cannot_divide_are_refused():
    with pytest.raises(ValueError, match="its 18 slices cannot be divided into 4 slabs"):
        SpatialSequenced("image", (8, 8, 18), slab_offset=1)


def test_the_first_slab_starts_within_the_given_range():
    crop = numbered(1, 2, 3, 16)
    transform = seeded(0, (2, 3, 16), slab_offset=1, slab_start=(2, 4))
    assert {int(transform.join_slabs(crop)[0, 0, 0, 0]) for _ in range(60)} == {2, 3, 4}


@pytest.mark.parametrize(
    ("size", "patch", "offset"),
    [
        ((4, 4, 128), (2, 4, 16), 8), ((4, 4, 128), (2, 4, 16), 16), ((4, 4, 128), (2, 4, 16), 5),
        ((4, 4, 32), (2, 2, 2), 3), ((4, 4, 32), (2, 2, 2), 0), ((4, 4, 32), (4, 4, 16), 4),
        ((4, 4, 32), (2, 2, 2), None),
    ],
)  # fmt: skip
def test_copied_patches_are_those_that_equal_an_earlier_one_of_a_built_sample(size, patch, offset):
    sample = seeded(0, size, slab_offset=offset)({"image": random_scan(1, *size)})["image"][0].numpy()
    earlier, expected = [], []
    for x in range(0, size[0], patch[0]):
        for y in range(0, size[1], patch[1]):
            for z in range(0, size[2], patch[2]):
                pixels = sample[x : x + patch[0], y : y + patch[1], z : z + patch[2]]
                expected.append(any(np.array_equal(pixels, other) for other in earlier))
                earlier.append(pixels)
    assert copied_patches(size, patch, offset).tolist() == expected


def test_a_quarter_of_the_published_samples_patches_are_copies():
    assert copied_patches((128, 128, 128), (16, 16, 16), 8).float().mean() == 0.25


# Contrast


def plain_part(scan: Tensor, start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    """A window by loops over its voxels, scaled by its own percentiles."""
    part = np.array(
        [
            [[float(scan[0, start[0] + i, start[1] + j, start[2] + k]) for k in range(size[2])] for j in range(size[1])]
            for i in range(size[0])
        ]
    )
    low, high = np.percentile(part, [1, 99.9])
    return np.clip((part - low) / (high - low), 0, 1)


def test_a_contrast_sequence_is_one_window_of_each_modality_scaled_by_itself_and_joined():
    modalities = [random_scan(1, 7, 8, 9) * factor + 100 * factor for factor in (1, 5, 0.1, 20)]
    starts = set()
    for seed in range(30):
        transform = ContrastSequenced("image", (4, 5, 12)).set_random_state(seed=seed)
        sample = transform({"image": modalities})["image"]
        assert sample.shape == (1, 4, 5, 12)
        state = np.random.RandomState(seed)
        start = tuple(state.randint(length - size + 1) for length, size in zip((7, 8, 9), (4, 5, 3), strict=True))
        expected = np.concatenate([plain_part(scan, start, (4, 5, 3)) for scan in modalities], axis=2)
        np.testing.assert_allclose(sample[0], expected, atol=1e-4)
        starts.add(start)
    assert {start[2] for start in starts} == set(range(7))


@pytest.mark.parametrize("shapes", [[(1, 6, 6, 6)] * 3, [(1, 6, 6, 6)] * 3 + [(1, 6, 6, 7)]], ids=["three", "grids"])
def test_modalities_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="needs 4 modalities on one grid"):
        ContrastSequenced("image", (4, 4, 8))({"image": [random_scan(*shape) for shape in shapes]})


# Semantic


def test_a_semantic_sequence_is_a_crop_around_each_centre_scaled_by_itself_and_joined():
    lesions = [random_scan(1, 12, 11, 10 + i) * (i + 1) for i in range(4)]
    centres = [(6, 5, 5), (5.4, 6.4, 2.2), (0, 20, 5), (11, 0, 12)]  # the last two would leave their scans
    starts = [(4, 3, 4), (3, 4, 1), (0, 6, 4), (7, 0, 10)]
    sample = SemanticSequenced("image", (5, 5, 12))({"image": lesions, "centre": centres})["image"]
    expected = [plain_part(scan, start, (5, 5, 3)) for scan, start in zip(lesions, starts, strict=True)]
    np.testing.assert_allclose(sample[0], np.concatenate(expected, axis=2), atol=1e-4)


def test_a_scan_thinner_than_the_crop_is_taken_whole_and_resized():
    lesions = [random_scan(1, 3, 9, 2)] * 4
    sample = SemanticSequenced("image", (6, 6, 16))({"image": lesions, "centre": [(1, 4, 1)] * 4})["image"]
    assert sample.shape == (1, 6, 6, 16)
    whole = interpolate(lesions[0][None, :, :, 2:8], (6, 6, 4), mode="trilinear")[0].numpy()
    low, high = np.percentile(whole, [1, 99.9])
    np.testing.assert_allclose(sample[..., :4], np.clip((whole - low) / (high - low), 0, 1), atol=1e-4)


def test_three_lesions_are_refused():
    with pytest.raises(ValueError, match="needs 4 scans and centres, not 3 and 3"):
        SemanticSequenced("image", (4, 4, 8))({"image": [random_scan(1, 6, 6, 6)] * 3, "centre": [(1, 1, 1)] * 3})


# All kinds


def test_every_kind_ends_as_the_same_sample():
    scan = random_scan(1, 9, 9, 9)
    items = [
        {"kind": "spatial", "image": scan},
        {"kind": "contrast", "image": [scan] * 4},
        {"kind": "semantic", "image": [scan] * 4, "centre": [(4, 4, 4)] * 4},
    ]
    transform = Sequenced("image", (4, 4, 8)).set_random_state(seed=0)
    for index, item in enumerate(items):
        sample = transform(item)
        assert set(sample) == {"image", "kind"}
        assert (sample["image"].shape, sample["image"].dtype) == ((1, 4, 4, 8), torch.float32)
        assert KINDS[int(sample["kind"])] == KINDS[index] == item["kind"]


def test_one_state_draws_every_kind_again():
    item = {"kind": "contrast", "image": [random_scan(1, 20, 20, 20)] * 4}
    first, second = (Sequenced("image", (4, 4, 8)).set_random_state(seed=3)(item)["image"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(Sequenced("image", (4, 4, 8)).set_random_state(seed=4)(item)["image"], first)


# The prefix


@pytest.mark.parametrize("patch_size", [(2, 4, 2), 2], ids=["per-axis", "one-number"])
def test_prefixes_are_uniform_from_0_to_one_patch_less_than_all(patch_size):
    sample = {"image": torch.zeros(1, 4, 4, 4)}
    num_patches = 4 if patch_size == (2, 4, 2) else 8
    transform = RandPrefixd("image", patch_size).set_random_state(seed=0)
    drawn = Counter(int(transform(sample)["prefix"]) for _ in range(200 * num_patches))
    assert set(drawn) == set(range(num_patches))
    assert all(140 < count < 260 for count in drawn.values())  # 200 each, give or take four deviations


def test_prefixes_collate_to_integers_beside_the_image():
    sample = {"image": torch.zeros(1, 4, 4, 4)}
    result = RandPrefixd("image", 2)(sample)
    assert result["image"] is sample["image"]
    assert "prefix" not in sample
    assert result["prefix"].shape == ()
    assert result["prefix"].dtype == torch.int64


def test_a_batch_becomes_the_images_the_losss_target_and_the_networks_second_input():
    batch = {"image": torch.rand(2, 1, 4, 4, 4), "prefix": torch.tensor([3, 0]), "kind": torch.tensor([0, 2])}
    image, target, arguments, keywords = prepare_next_patch(batch, "cpu", False, dtype=torch.float64)
    assert image.dtype == torch.float64
    torch.testing.assert_close(image, batch["image"].double())
    assert target[0] is image
    assert torch.equal(target[1], batch["prefix"])
    assert torch.equal(target[2], batch["kind"])
    assert target[1].dtype == torch.int64  # lengths are no pixels: the images' type is not theirs
    assert arguments == (target[1],)
    assert keywords == {}
