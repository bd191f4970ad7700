"""Volumes with a class: tables and archives, the split by class and patient, and what is refused."""

import numpy as np
import pytest
import torch
from digar.data.classified import LoadImageOrVoxelsd, check_classes, classified_cases, classified_split

from tests.helixes import CLASSES, write_archive, write_table

PARTS = ("training", "validation", "test")


def parts(cases: list[dict]) -> dict[str, list[str]]:
    return {part: [case["name"] for case in cases if case["part"] == part] for part in PARTS}


def edit(table, old: str, new: str) -> None:
    table.write_text(table.read_text().replace(old, new))


def test_a_table_gives_every_volume_its_class_and_a_split_with_every_class_in_both_parts(tmp_path):
    split = classified_split(write_table(tmp_path, 12, size=4), CLASSES, 0.2, seed=0)
    assert [case["label"] for case in split["all"][:4]] == [0, 0, 1, 1]
    assert [case["label"] for case in split["validation"]] == [0, 1]
    assert {part: len(cases) for part, cases in split.items()} == {
        "training": 10,
        "validation": 2,
        "test": 0,
        "all": 12,
    }
    fewer = classified_split(tmp_path / "table.csv", CLASSES, 0.2, seed=0, label_ratio=0.5)
    assert (len(fewer["training"]), fewer["validation"]) == (5, split["validation"])


def test_the_split_keeps_the_volumes_of_a_patient_together(tmp_path):
    cases = classified_cases(write_table(tmp_path, 16, ("patient",), size=4), CLASSES, 0.3, seed=0)
    split = parts(cases)
    assert split["validation"]
    for index in range(0, 16, 2):
        pair = {f"helix_{index:03d}", f"helix_{index + 1:03d}"}
        assert pair <= set(split["training"]) or pair <= set(split["validation"])


def test_a_table_may_bring_its_own_split(tmp_path):
    table = write_table(tmp_path, 4, ("part",), size=4)
    edit(table, "helix_003.nii.gz,right,training", "helix_003.nii.gz,right,test")
    assert parts(classified_cases(table, CLASSES, 0.5, seed=0)) == {
        "training": ["helix_000", "helix_001", "helix_002"], "validation": [], "test": ["helix_003"],
    }  # fmt: skip


def test_an_archive_brings_its_three_parts(tmp_path):
    cases = classified_cases(write_archive(tmp_path / "a.npz", (4, 2, 3), size=6), CLASSES, 0.2, seed=0)
    assert {part: len(names) for part, names in parts(cases).items()} == {"training": 4, "validation": 2, "test": 3}
    assert cases[-1]["name"] == "test_0002"
    volume = LoadImageOrVoxelsd("image")(cases[1])["image"]
    assert volume.shape == (1, 6, 6, 6)
    assert volume.dtype == torch.float32


def test_a_class_that_is_not_named_is_refused_with_its_line(tmp_path):
    table = write_table(tmp_path, 4, size=4)
    with pytest.raises(ValueError, match=r"table.csv, line 4: class 'right' is not one of left, middle"):
        classified_cases(table, ["left", "middle"], 0.2, seed=0)


def test_a_class_of_an_archive_that_is_not_named_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has the classes \[1\], only 1 are named"):
        classified_cases(write_archive(tmp_path / "a.npz", (2, 2, 2), size=6), ["nodule"], 0.2, seed=0)


def test_files_that_are_missing_are_named(tmp_path):
    table = write_table(tmp_path, 4, size=4)
    (tmp_path / "scans/helix_001.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists files that are missing: .*helix_001.nii.gz$"):
        classified_cases(table, CLASSES, 0.2, seed=0)


def test_a_table_without_a_column_class_is_refused(tmp_path):
    table = write_table(tmp_path, 4, size=4)
    edit(table, "file,class", "file,kind")
    with pytest.raises(ValueError, match="table.csv has the columns file, kind; it lacks class"):
        classified_cases(table, CLASSES, 0.2, seed=0)


def test_an_unknown_part_is_refused_with_its_line(tmp_path):
    table = write_table(tmp_path, 4, ("part",), size=4)
    edit(table, "helix_001.nii.gz,left,training", "helix_001.nii.gz,left,val")
    with pytest.raises(ValueError, match="line 3: part 'val' must be one of training, validation, test"):
        classified_cases(table, CLASSES, 0.2, seed=0)


def test_a_patient_of_two_classes_is_refused(tmp_path):
    table = write_table(tmp_path, 4, ("patient",), size=4)
    edit(table, "p1", "p0")
    with pytest.raises(ValueError, match="patient p0 has volumes of two classes"):
        classified_cases(table, CLASSES, 0.2, seed=0)


@pytest.mark.parametrize("name", ["missing.csv", "table.txt"])
def test_another_kind_of_file_is_refused(name, tmp_path):
    (tmp_path / "table.txt").write_text("file,class\n")
    with pytest.raises(FileNotFoundError, match="must be a table"):
        classified_cases(tmp_path / name, CLASSES, 0.2, seed=0)


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_a_damaged_archive_is_named(content, tmp_path):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="a.npz is no MedMNIST archive of volumes"):
        classified_cases(tmp_path / "a.npz", CLASSES, 0.2, seed=0)


def test_an_archive_of_pictures_is_refused(tmp_path):
    arrays = {f"{part}_{kind}": np.zeros((2, 28, 28)) for part in ("train", "val", "test") for kind in ("images",)}
    arrays |= {f"{part}_labels": np.zeros((2, 1)) for part in ("train", "val", "test")}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"shape \(2, 28, 28\).*\(N, X, Y, Z\) is needed"):
        classified_cases(tmp_path / "a.npz", CLASSES, 0.2, seed=0)


def test_a_class_that_does_not_occur_in_a_part_is_refused():
    both, one = [{"label": 0}, {"label": 1}], [{"label": 0}, {"label": 0}]
    check_classes(both, [], CLASSES)
    for part, cases in (("training", (one, both)), ("validation", (both, one))):
        with pytest.raises(ValueError, match=f"the 2 {part} cases contain no volume of class right"):
            check_classes(*cases, CLASSES)
