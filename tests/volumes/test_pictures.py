"""Pictures: planes through the label in true proportions, directions that are right, labels by name and colour."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.volumes.pictures import COLOURS, EDGES, draw_planes, picture_page, take_planes
from matplotlib.figure import Figure
from PIL import Image

IMAGE = np.arange(4 * 5 * 6, dtype=float).reshape(4, 5, 6)
RAS = np.diag([1.0, 2.0, 3.0, 1.0])
CODES = [
    "".join(code) for letters in itertools.permutations(["RL", "AP", "SI"]) for code in itertools.product(*letters)
]


def mask_at(*voxel: int) -> np.ndarray:
    mask = np.zeros(IMAGE.shape, np.uint8)
    mask[voxel] = 2
    return mask


def test_planes_go_through_the_first_mask_front_or_right_on_the_left():
    planes = take_planes("a", IMAGE, [mask_at(1, 2, 3), mask_at(0, 0, 0)], RAS)
    assert [image.shape for image in planes.images] == [(6, 5), (6, 4), (5, 4)]
    np.testing.assert_array_equal(planes.images[0], IMAGE[1, ::-1, ::-1].T)
    np.testing.assert_array_equal(planes.images[2], IMAGE[::-1, ::-1, 3].T)
    assert planes.spacing == (1, 2, 3)
    assert all((mask == 2).sum() == 1 for mask in planes.masks[0])
    assert not any(mask.any() for mask in planes.masks[1])


def test_planes_go_through_the_second_mask_where_the_first_is_empty():
    planes = take_planes("a", IMAGE, [np.zeros(IMAGE.shape), mask_at(3, 4, 5)])
    np.testing.assert_array_equal(planes.images[1], IMAGE[::-1, 4, ::-1].T)


@pytest.mark.parametrize("code", CODES)
def test_however_a_file_stores_its_axes_the_picture_is_the_same(code: str):
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(RAS), nib.orientations.axcodes2ornt(code))
    mask = mask_at(1, 2, 3)
    affine = RAS @ nib.orientations.inv_ornt_aff(turn, IMAGE.shape)
    stored = [nib.orientations.apply_orientation(array, turn) for array in (IMAGE, mask)]
    shown, expected = take_planes("a", stored[0], [stored[1]], affine), take_planes("a", IMAGE, [mask], RAS)
    assert shown.spacing == expected.spacing
    for one, other in zip(shown.images + shown.masks[0], expected.images + expected.masks[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_directions_are_marked_where_the_image_says_so_and_a_bar_tells_the_scale():
    axes = Figure().subplots(1, 3)
    draw_planes(axes, take_planes("a", np.zeros((40, 40, 40)), (), RAS))
    for ax, edges in zip(axes, EDGES, strict=True):
        written = [text.get_text() for text in ax.texts]
        assert written[:4] == list(edges)
        assert written[4].endswith(" mm")
        length = float(written[4].removesuffix(" mm"))
        begin, end = ax.lines[0].get_xdata()
        across = RAS[1, 1] if edges[0] == "A" else RAS[0, 0]
        assert (end - begin) * across == pytest.approx(length)


def test_without_a_place_in_the_world_no_direction_is_claimed():
    axes = Figure().subplots(1, 3)
    draw_planes(axes, take_planes("a", IMAGE))
    assert not any(ax.texts for ax in axes)


def test_a_page_names_every_label_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr("digar.volumes.pictures.save_figure", lambda figure, path: drawn.append(figure))
    mask = mask_at(1, 2, 3)
    mask[2, 2, 3] = 7
    picture_page(tmp_path / "page.png", [take_planes("case a", IMAGE, [mask, mask], RAS)], "two", {2: "ventricle"})
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.texts] == ["ventricle", "label 7", "truth", "prediction"]


def test_a_page_is_a_png_with_the_labels_colours(tmp_path: Path):
    image, mask = np.zeros((30, 30, 30)), np.zeros((30, 30, 30), np.uint8)
    mask[5:25, 5:25, 5:25] = 1
    picture_page(tmp_path / "new/page.png", [take_planes("case a", image, [mask], np.eye(4))] * 2, "two rows")
    with Image.open(tmp_path / "new/page.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3) / 255
    assert (np.abs(pixels - COLOURS[0]).max(axis=1) < 0.1).sum() > 100


def test_colours_do_not_drown_in_grey_and_lie_apart():
    colours = np.array(COLOURS)
    assert (colours.max(axis=1) - colours.min(axis=1) > 0.25).all()
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 9 * np.eye(len(colours))
    assert apart.min() > 0.25


def test_planes_do_not_keep_the_volume_alive():
    planes = take_planes("a", IMAGE, [mask_at(1, 1, 1)])
    assert all(array.base is None for array in [*planes.images, *planes.masks[0]])


def test_a_constant_volume_has_a_window():
    low, high = take_planes("a", np.ones((3, 3, 3)), []).window
    assert high > low
