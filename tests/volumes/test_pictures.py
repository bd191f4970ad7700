"""Planes of a volume: where the label is, as large as the volume's slices, copied from it."""

import numpy as np
from digar.volumes.pictures import take_planes

IMAGE = np.arange(4 * 5 * 6, dtype=float).reshape(4, 5, 6)


def mask_at(*voxel: int) -> np.ndarray:
    mask = np.zeros(IMAGE.shape, np.uint8)
    mask[voxel] = 2
    return mask


def test_planes_go_through_the_first_mask():
    planes = take_planes("a", IMAGE, [mask_at(1, 2, 3), mask_at(0, 0, 0)], (1, 2, 3))
    assert [image.shape for image in planes.images] == [(6, 5), (6, 4), (5, 4)]
    np.testing.assert_array_equal(planes.images[0], IMAGE[1].T[::-1])
    np.testing.assert_array_equal(planes.images[2], IMAGE[:, :, 3].T[::-1])
    assert all((mask == 2).sum() == 1 for mask in planes.masks[0])
    assert not any(mask.any() for mask in planes.masks[1])


def test_planes_go_through_the_second_mask_where_the_first_is_empty():
    planes = take_planes("a", IMAGE, [np.zeros(IMAGE.shape), mask_at(3, 4, 5)])
    np.testing.assert_array_equal(planes.images[1], IMAGE[:, 4].T[::-1])


def test_planes_do_not_keep_the_volume_alive():
    planes = take_planes("a", IMAGE, [mask_at(1, 1, 1)])
    assert all(array.base is None for array in [*planes.images, *planes.masks[0]])


def test_a_constant_volume_has_a_window():
    low, high = take_planes("a", np.ones((3, 3, 3)), []).window
    assert high > low
