"""Pretraining samples: a window of the scan, scaled by itself, perhaps cut into slabs, with a random prefix."""

from collections import Counter

import numpy as np
import pytest
import torch
from digar.data.sequences import (
    Contrast,
    RandPrefixd,
    Semantic,
    Sequenced,
    SequenceKind,
    Spatial,
    join_samples,
    prepare_next_patch,
    scale_samples,
)
from digar.data.sequences.crops import random_window, resized, stored
from digar.data.sequences.parts import join_parts
from digar.volumes.intensities import scale_by_percentiles
from torch import Tensor
from torch.nn.functional import interpolate

STATE = np.random.RandomState(0)  # where nothing is random


def numbered(*shape: int) -> Tensor:
    """A scan whose voxels all differ, so that a window tells where it was cut."""
    return torch.arange(np.prod(shape), dtype=torch.float32).reshape(shape)


def crop_of(scan: Tensor, size: tuple[int, ...], seed: int) -> Tensor:
    """A random window in the scan's own numbers, as a spatial sequence cuts it."""
    return resized(stored(scan, random_window(scan.shape[1:], size, np.random.RandomState(seed))), size)


def build_spatial(scan: Tensor, size: tuple[int, ...], seed: int, **options: object) -> Tensor:
    return scaled(Spatial(size, None, **options), [scan], [], np.random.RandomState(seed))


def scaled(kind: SequenceKind, *build: object) -> Tensor:
    """A sample as a training sees it."""
    image, extents = join_parts(kind.build(*build), kind.sample_size)
    return scale_samples(image[None], (0 if kind.scales else 1) * extents[None])[0]


def random_scan(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).gamma(2.0, 100.0, shape).astype(np.float32))


# The crop


@pytest.mark.parametrize("shape", [(1, 9, 7, 8), (2, 9, 7, 8)], ids=["one-channel", "two-channels"])
def test_a_crop_is_a_window_of_the_scan(shape):
    scan = numbered(*shape)
    for seed in range(10):
        crop = crop_of(scan, (4, 5, 3), seed)
        x, y, z = np.unravel_index(int(crop[0, 0, 0, 0]), shape[1:])
        assert torch.equal(crop, scan[:, x : x + 4, y : y + 5, z : z + 3])


def test_windows_reach_both_ends_of_every_axis():
    scan = numbered(1, 4, 3, 5)
    corners = [np.unravel_index(int(crop_of(scan, (2, 2, 2), seed)[0, 0, 0, 0]), (4, 3, 5)) for seed in range(200)]
    for axis, last in enumerate((2, 1, 3)):
        assert {int(corner[axis]) for corner in corners} == set(range(last + 1))


def test_a_scan_of_the_samples_size_is_taken_as_it_is():
    scan = numbered(1, 4, 5, 3)
    assert torch.equal(crop_of(scan, (4, 5, 3), 0), scan)


def test_a_short_axis_is_taken_whole_and_resized():
    scan = random_scan(2, 3, 10, 4)
    crop = crop_of(scan, (6, 6, 4), 1)
    windows = [scan[:, :, start : start + 6] for start in range(5)]
    resized = [interpolate(window[None], (6, 6, 4), mode="trilinear")[0] for window in windows]
    assert [torch.allclose(crop, candidate, rtol=1e-5, atol=1e-3) for candidate in resized].count(True) == 1


# Its intensities


def test_a_sample_is_scaled_by_its_own_percentiles():
    scan = random_scan(1, 20, 20, 20)
    scan[:, :10] += 1000.0  # the scan's percentiles are not the crop's
    size = (8, 9, 10)
    crop = crop_of(scan, size, 2).numpy()
    low, high = np.percentile(crop, [1, 99.9])
    sample = build_spatial(scan, size, 2)
    expected = torch.from_numpy(np.clip((crop - low) / (high - low), 0, 1))
    torch.testing.assert_close(torch.as_tensor(sample), expected, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert (sample.min(), sample.max()) == (0, 1)
    assert sample.dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, -1000.0, 7.0])
def test_a_constant_scan_gives_finite_values_from_0_to_1(value):
    sample = build_spatial(torch.full((1, 6, 6, 6), value), (4, 4, 4), 0)
    assert sample.isfinite().all()
    assert sample.min() >= 0
    assert sample.max() <= 1


def test_a_few_bright_voxels_in_a_constant_crop_stay_within_0_and_1():
    scan = torch.zeros(1, 16, 16, 16)  # both percentiles are 0: the background of a skull-stripped scan, and its rim
    scan[0, 0, 0, :2] = 3000.0
    sample = build_spatial(scan, (16, 16, 16), 0)
    assert sample.isfinite().all()
    assert sample.max() <= 1


def test_the_given_scan_is_not_changed():
    scan = random_scan(1, 6, 6, 6)
    before = scan.clone()
    build_spatial(scan, (4, 4, 4), 0, slab_offset=1)
    assert torch.equal(scan, before)


# Slabs


def plain_slabs(crop: Tensor, start: int, offset: int) -> Tensor:
    quarter = crop.shape[3] // 4
    taken = [start + i * offset + k for i in range(4) for k in range(quarter)]
    return crop[:, :, :, taken]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("offset", [1, 3, 4])
def test_slabs_are_the_published_slices_of_the_scaled_crop(offset, channels):
    scan = random_scan(channels, 2, 3, 16)  # of the sample's size: the crop is the scan
    scaled = build_spatial(scan, (2, 3, 16), 0)
    last = 16 - 4 - 3 * offset
    starts = set()
    for seed in range(150):
        joined = build_spatial(scan, (2, 3, 16), seed, slab_offset=offset)
        starts |= {start for start in range(last + 1) if torch.equal(joined, plain_slabs(scaled, start, offset))}
    assert starts == set(range(last + 1))


@pytest.mark.parametrize("slab_offset", [None, 2])
def test_samples_have_their_size_and_all_channels(slab_offset):
    sample = build_spatial(random_scan(3, 9, 3, 11), (4, 5, 8), 0, slab_offset=slab_offset)
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
        Spatial((8, 8, slices), None, slab_offset=offset, slab_start=start)


def test_slices_that_four_parts_cannot_divide_are_refused():
    with pytest.raises(ValueError, match="its 18 slices cannot be divided into 4 parts"):
        Spatial((8, 8, 18), None, slab_offset=1)


def test_the_first_slab_starts_within_the_given_range():
    scan, options = random_scan(1, 2, 3, 16), {"slab_offset": 1, "slab_start": (2, 4)}
    scaled = build_spatial(scan, (2, 3, 16), 0)
    samples = [build_spatial(scan, (2, 3, 16), seed, **options) for seed in range(60)]
    starts = [start for sample in samples for start in range(10) if torch.equal(sample, plain_slabs(scaled, start, 1))]
    assert set(starts) == {2, 3, 4}
    assert len(starts) == 60


@pytest.mark.parametrize(
    ("size", "patch", "offset"),
    [
        ((4, 4, 128), (2, 4, 16), 8), ((4, 4, 128), (2, 4, 16), 16), ((4, 4, 128), (2, 4, 16), 5),
        ((4, 4, 32), (2, 2, 2), 3), ((4, 4, 32), (2, 2, 2), 0), ((4, 4, 32), (4, 4, 16), 4),
        ((4, 4, 32), (2, 2, 2), None),
    ],
)  # fmt: skip
def test_copied_patches_are_those_that_equal_an_earlier_one_of_a_built_sample(size, patch, offset):
    sample = build_spatial(random_scan(1, *size), size, 0, slab_offset=offset)[0].numpy()
    earlier, expected = [], []
    for x in range(0, size[0], patch[0]):
        for y in range(0, size[1], patch[1]):
            for z in range(0, size[2], patch[2]):
                pixels = sample[x : x + patch[0], y : y + patch[1], z : z + patch[2]]
                expected.append(any(np.array_equal(pixels, other) for other in earlier))
                earlier.append(pixels)
    assert Spatial(size, None, offset).copied_patches(patch).tolist() == expected


def test_a_quarter_of_the_published_samples_patches_are_copies():
    assert Spatial((128, 128, 128), None, 8).copied_patches((16, 16, 16)).float().mean() == 0.25


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
        sample = scaled(Contrast((4, 5, 12), None, "abcd"), modalities, [], np.random.RandomState(seed))
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
        Contrast((4, 4, 8), None, "abcd").build([random_scan(*shape) for shape in shapes], [], STATE)


# Semantic


def test_a_semantic_sequence_is_a_crop_around_each_centre_scaled_by_itself_and_joined():
    lesions = [random_scan(1, 12, 11, 10 + i) * (i + 1) for i in range(4)]
    centres = [(6, 5, 5), (5.4, 6.4, 2.2), (0, 20, 5), (11, 0, 12)]  # the last two would leave their scans
    starts = [(4, 3, 4), (3, 4, 1), (0, 6, 4), (7, 0, 10)]
    sample = scaled(Semantic((5, 5, 12), None), lesions, centres, STATE)
    expected = [plain_part(scan, start, (5, 5, 3)) for scan, start in zip(lesions, starts, strict=True)]
    np.testing.assert_allclose(sample[0], np.concatenate(expected, axis=2), atol=1e-4)


def test_a_scan_thinner_than_the_crop_is_taken_whole_and_resized():
    lesions = [random_scan(1, 3, 9, 2)] * 4
    sample = scaled(Semantic((6, 6, 16), None), lesions, [(1, 4, 1)] * 4, STATE)
    assert sample.shape == (1, 6, 6, 16)
    whole = interpolate(lesions[0][None, :, :, 2:8], (6, 6, 4), mode="trilinear")[0].numpy()
    low, high = np.percentile(whole, [1, 99.9])
    np.testing.assert_allclose(sample[..., :4], np.clip((whole - low) / (high - low), 0, 1), atol=1e-4)


def test_three_lesions_are_refused():
    with pytest.raises(ValueError, match="needs 4 scans and centres, not 3 and 3"):
        Semantic((4, 4, 8), None).build([random_scan(1, 6, 6, 6)] * 3, [(1, 1, 1)] * 3, STATE)


# All kinds


def make_kinds() -> dict:
    size = (4, 4, 8)
    return {"spatial": Spatial(size, None), "contrast": Contrast(size, None, "abcd"), "semantic": Semantic(size, None)}


def test_every_kind_ends_as_the_same_sample():
    scan = random_scan(1, 9, 9, 9)
    items = [
        {"kind": "spatial", "image": [scan], "centre": []},
        {"kind": "contrast", "image": [scan] * 4, "centre": []},
        {"kind": "semantic", "image": [scan] * 4, "centre": [(4, 4, 4)] * 4},
    ]
    transform = Sequenced(make_kinds()).set_random_state(seed=0)
    for index, item in enumerate(items):
        sample = transform(item)
        assert set(sample) == {"image", "kind", "extents"}
        assert (sample["image"].shape, sample["image"].dtype) == ((1, 4, 4, 8), torch.float32)
        assert int(sample["kind"]) == index


def test_one_state_draws_every_kind_again():
    item = {"kind": "contrast", "image": [random_scan(1, 20, 20, 20)] * 4, "centre": []}
    first, second, other = (Sequenced(make_kinds()).set_random_state(seed=seed)(item)["image"] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_only_published_slabs_are_parts_of_a_spatial_sequences_picture_and_only_they_repeat():
    assert Spatial((4, 4, 16), None).part_names([]) == []
    assert Spatial((4, 4, 16), None, 2).part_names([])[1] == "slab 1: from s + 2"
    assert not any(kind.copied_patches((2, 2, 2)).any() for kind in make_kinds().values())


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
    batch = {
        "image": torch.rand(2, 1, 4, 4, 4), "extents": torch.tensor([[[0] * 3] * 4, [[4, 4, 4], *[[0] * 3] * 3]]),
        "prefix": torch.tensor([3, 0]), "kind": torch.tensor([0, 2]),
    }  # fmt: skip
    image, target, arguments, keywords = prepare_next_patch(batch, "cpu", False, dtype=torch.float64)
    assert image.dtype == torch.float64
    torch.testing.assert_close(image[0], batch["image"][0].double())
    torch.testing.assert_close(image[1], scale_by_percentiles(batch["image"][1]).double())
    assert target[0] is image
    assert torch.equal(target[1], batch["prefix"])
    assert torch.equal(target[2], batch["kind"])
    assert target[1].dtype == torch.int64  # lengths are no pixels: the images' type is not theirs
    assert arguments == (target[1],)
    assert keywords == {}


# Samples as stored


def test_samples_leave_the_loader_as_they_are_stored_and_a_batch_holds_them_all():
    narrow, wide = (np.full((1, 6, 6, 6), value, dtype) for value, dtype in ((200, np.uint8), (-900, np.int16)))
    transform = Sequenced(make_kinds())
    samples = [transform({"kind": "contrast", "image": [scan] * 4, "centre": []}) for scan in (narrow, wide)]
    assert [sample["image"].dtype for sample in samples] == [torch.uint8, torch.int16]
    batch = join_samples(samples)
    assert batch["image"].dtype == torch.int16
    assert batch["image"].unique().tolist() == [-900, 200]
    assert batch["extents"].tolist() == [[[4, 4, 2]] * 4] * 2
