"""Masks compared with true labels: Dice as counted by hand, and errors that name both files."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.evaluation import comparison as report
from digar.evaluation.comparison import compare, load_pair
from digar.volumes.pictures import Planes
from PIL import Image


def volume(*labels: tuple[int, int]) -> np.ndarray:
    """64 voxels, the first ``count`` of them with ``label``, then the next pair's."""
    flat = np.zeros(64, np.uint8)
    start = 0
    for label, count in labels:
        flat[start : start + count] = label
        start += count
    return flat.reshape(4, 4, 4)


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def write_case(folder: Path, name: str, truth: np.ndarray, mask: np.ndarray) -> None:
    write(folder / f"labels/{name}.nii.gz", truth)
    write(folder / f"masks/{name}_mask.nii.gz", mask)
    write(folder / f"images/{name}.nii.gz", np.random.default_rng(0).random((4, 4, 4)).astype(np.float32))


def compare_folder(folder: Path) -> float:
    return compare(folder / "masks", folder / "labels", folder / "out", folder / "images")


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> list:
    """Keep the rows of the page instead of drawing it."""
    drawn: list[Planes] = []
    monkeypatch.setattr(report, "picture_page", lambda path, rows, title, labels: drawn.extend(rows))
    return drawn


# A pair of files


@pytest.mark.parametrize(
    ("values", "affine"),
    [(np.zeros((4, 4, 5), np.uint8), np.eye(4)), (volume(), np.diag([1, 1, 2, 1])), (volume(), np.diag([-1, 1, 1, 1]))],
    ids=["shape", "spacing", "orientation"],
)
def test_a_mask_in_another_grid_is_refused_with_both_names(values, affine, tmp_path):
    label = write(tmp_path / "a.nii.gz", volume())
    mask = write(tmp_path / "a_mask.nii.gz", values, affine)
    with pytest.raises(ValueError, match=f"{mask}: .*its label {label}"):
        load_pair(mask, label)


def test_what_is_no_label_is_refused(tmp_path):
    label = write(tmp_path / "a.nii.gz", volume((1, 4)))
    mask = write(tmp_path / "a_mask.nii.gz", volume((1, 4)).astype(np.float32) / 2)
    with pytest.raises(ValueError, match="a_mask.nii.gz: holds the values 0.5, labels are whole numbers"):
        load_pair(mask, label)


@pytest.mark.parametrize("stale", ["labels/a.nii.gz", "masks/a_mask.nii.gz"])
def test_lengths_come_from_the_affine_whatever_pixdim_says(stale, tmp_path, no_page):
    write_case(tmp_path, "a", truth=volume((1, 4)), mask=volume((1, 2)))
    image = nib.load(tmp_path / stale)
    values = np.asanyarray(image.dataobj)
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = 2
    nib.save(nib.Nifti1Image(values, None, image.header), tmp_path / stale)
    assert nib.load(tmp_path / stale).header.get_zooms() == (2, 2, 2)
    compare_folder(tmp_path)
    row, _ = csv.DictReader((tmp_path / "out/cases.csv").read_text().splitlines())
    assert (float(row["volume_ml"]), float(row["true_volume_ml"])) == (0.002, 0.004)
    assert float(row["hd95_mm"]) <= 3


# Whole folders


def test_the_last_line_printed_is_the_mean_dice(tmp_path, capsys):
    write_case(tmp_path, "a", truth=volume((1, 4), (2, 4)), mask=volume((1, 4), (2, 4)))
    write_case(tmp_path, "b", truth=volume((1, 6), (2, 6)), mask=volume((1, 2), (0, 4), (2, 6)))
    folders = [tmp_path / name for name in ("masks", "labels", "out", "images")]
    compare(*folders, names={1: "head", 2: "tail"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "mean Dice 0.875"
    assert [line.split()[:3] for line in printed if "dice" in line.split()] == [
        ["head", "dice", "0.750"],  # 1 and 2 * 2 / (2 + 6)
        ["tail", "dice", "1.000"],
        ["mean", "dice", "0.875"],
    ]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["cases.csv", "summary.csv", "worst.png"]
    with Image.open(tmp_path / "out/worst.png") as picture:
        assert picture.format == "PNG"


def test_the_mean_dice_is_returned_and_the_worst_come_first(tmp_path, no_page):
    for name, voxels in zip("abcdef", (4, 3, 2, 4, 1, 4), strict=True):
        write_case(tmp_path, name, volume((1, 4)), volume((1, voxels)))
    scores = [2 * n / (4 + n) for n in (4, 3, 2, 4, 1, 4)]
    assert compare_folder(tmp_path) == pytest.approx(np.mean(scores))
    assert [row.title for row in no_page] == [
        "e: mean Dice 0.400", "c: mean Dice 0.667", "b: mean Dice 0.857", "a: mean Dice 1.000",
    ]  # fmt: skip


def test_a_label_that_is_found_where_there_is_none_counts_as_0(tmp_path, no_page):
    write_case(tmp_path, "a", truth=volume((1, 4)), mask=volume((1, 4)))
    write_case(tmp_path, "b", truth=volume((1, 4)), mask=volume((1, 4), (2, 4)))
    assert compare_folder(tmp_path) == pytest.approx((1 + 0.5) / 2)


def test_a_case_without_any_label_is_left_out(tmp_path, no_page):
    write_case(tmp_path, "a", truth=volume(), mask=volume())
    write_case(tmp_path, "b", truth=volume((1, 4)), mask=volume((1, 4)))
    assert compare_folder(tmp_path) == pytest.approx(1.0)
    assert [row.title for row in no_page] == ["b: mean Dice 1.000"]


def test_masks_with_another_postfix_are_found(tmp_path, no_page):
    write_case(tmp_path, "a", truth=volume((1, 4)), mask=volume((1, 4)))
    (tmp_path / "masks/a_mask.nii.gz").rename(tmp_path / "masks/a.nii.gz")
    folders = [tmp_path / name for name in ("masks", "labels", "out")]
    assert compare(*folders, postfix="") == 1.0


def test_a_subset_is_scored_and_the_rest_is_told(tmp_path, no_page, caplog):
    for name in "ab":
        write_case(tmp_path, name, truth=volume((1, 4)), mask=volume((1, 4)))
    (tmp_path / "masks/b_mask.nii.gz").unlink()
    assert compare_folder(tmp_path) == 1.0
    assert "1 of 2 labels have no mask and are left out" in caplog.text


def test_masks_of_another_run_are_refused_with_the_name_that_is_wanted(tmp_path):
    write_case(tmp_path, "a", truth=volume((1, 4)), mask=volume((1, 4)))
    (tmp_path / "masks/a_mask.nii.gz").rename(tmp_path / "masks/other.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"none of the 1 labels .* must be named a_mask.nii.gz"):
        compare_folder(tmp_path)


def test_distances_are_in_mm_of_the_affine_whatever_a_stale_voxel_size_says(tmp_path, no_page):
    write_case(tmp_path, "a", truth=volume((1, 16)), mask=volume((1, 32)))
    for file in tmp_path.rglob("a*.nii.gz"):
        image = nib.load(file)
        stale = nib.Nifti1Image(np.asanyarray(image.dataobj), None)
        stale.set_sform(np.diag([1, 1, 1, 1]), 2)
        stale.set_qform(None, 0)
        stale.header["pixdim"][1:4] = 2
        nib.save(stale, file)
    compare_folder(tmp_path)
    with (tmp_path / "out/cases.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    assert float(row["true_volume_ml"]) == pytest.approx(16 / 1000)


def test_files_that_macos_leaves_beside_labels_are_ignored(tmp_path, no_page):
    write_case(tmp_path, "a", truth=volume((1, 4)), mask=volume((1, 4)))
    (tmp_path / "labels/._a.nii.gz").write_bytes(b"\0" * 200)
    assert compare_folder(tmp_path) == 1.0


def test_a_folder_without_labels_is_named(tmp_path):
    (tmp_path / "labels").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/labels contains no image"):
        compare_folder(tmp_path)


def test_empty_labels_and_empty_masks_are_nothing_to_score(tmp_path):
    write_case(tmp_path, "a", truth=volume(), mask=volume())
    with pytest.raises(ValueError, match="there is nothing to score"):
        compare_folder(tmp_path)
