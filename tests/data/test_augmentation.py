"""Augmentation that respects thick slices."""

import pytest
import torch
from digar.data.augmentation import in_plane_affine

RANGES = {"rotate_range": [0.5] * 3, "scale_range": [0.3] * 3, "translate_range": [3] * 3}


def slice_by_slice(patch_size: list[int]) -> torch.Tensor:
    """A volume whose slices are each of one value, under ten random transforms in turn; ``(10, X, Y, Z)``."""
    affine = in_plane_affine(patch_size, **RANGES, keys="image", prob=1.0, mode="bilinear", padding_mode="border")
    affine.set_random_state(0)
    volume = torch.arange(8.0).expand(1, 16, 16, 8)
    return torch.cat([affine({"image": volume})["image"] for _ in range(10)]).as_tensor()


@pytest.mark.parametrize("patch_size", [[8, 8, 2], [8, 8, 1]], ids=str)
def test_thick_slices_keep_their_order_and_are_never_mixed(patch_size: list[int]):
    torch.testing.assert_close(slice_by_slice(patch_size), torch.arange(8.0).expand(10, 16, 16, 8))


@pytest.mark.parametrize("patch_size", [[8, 8, 8], [8, 8, 4]], ids=str)
def test_voxels_of_about_one_length_are_turned_about_every_axis(patch_size: list[int]):
    slices = slice_by_slice(patch_size)
    assert (slices.std(dim=(1, 2)) > 0.1).any(dim=0).all()


def test_turns_scalings_and_shifts_in_plane_stay():
    affine = in_plane_affine([8, 8, 2], **RANGES, keys="image", prob=1.0, mode="bilinear", padding_mode="border")
    affine.set_random_state(0)
    x, y = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    volume = torch.stack([x, y])[..., None].expand(2, 16, 16, 8)
    turned = affine({"image": volume})["image"]
    for before, after in zip(volume, turned, strict=True):
        assert (before - after).abs().mean() > 1
    assert torch.equal(turned[..., 0], turned[..., 7])
