"""Folders are searched in one way: nothing is left out without a word, nothing is found twice."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from digar.volumes.search import case_name, case_names, find_volumes

from tests.dicom_files import write_series


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def found(folder: Path, *leave_out: Path) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in find_volumes(folder, leave_out)]


def test_volumes_of_every_ending_are_found_whatever_its_case_in_the_order_of_their_folders(tmp_path):
    names = ["a-b/x.nii", "a/b.Nii", "a/b.NII.Gz", "a/c.MHA", "z.mhd", "z.nrrd"]
    touch(*(tmp_path / name for name in names), tmp_path / "a/notes.txt", tmp_path / "nii", tmp_path / "x.nii.gz.part")
    assert found(tmp_path) == sorted(names, key=lambda name: name.split("/"))


def test_hidden_files_and_folders_are_left_out(tmp_path):
    touch(*(tmp_path / name for name in ("a.nii", "._a.nii", ".trash/b.nii", "c/.d/e.nii")))
    assert found(tmp_path) == ["a.nii"]


def test_a_folder_of_dicom_files_is_one_volume_beside_those_in_it(tmp_path):
    for name in ("s/2", "s/1", "t/x.IMA", "DICOMDIR"):
        touch(tmp_path / name)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    touch(tmp_path / "s/a.nii", tmp_path / "s/0.txt")
    assert found(tmp_path) == ["s", "s/a.nii", "t"]


def test_series_that_share_a_folder_are_named_by_their_uids_and_one_in_two_folders_is_one(tmp_path):
    values = np.zeros((3, 3, 4), np.int16)
    for uid in ("1.2.3", "1.2.4"):
        write_series(tmp_path / "study", values, np.eye(4), uid, name=uid + "-{}")
    files = write_series(tmp_path / "patient/a", values, np.eye(4))
    (tmp_path / "patient/b").mkdir()
    files[0].rename(tmp_path / "patient/b/x")
    assert found(tmp_path) == ["patient", "study/1.2.3", "study/1.2.4"]


def test_a_folder_with_a_volumes_name_is_searched(tmp_path):
    touch(tmp_path / "flair.nii/flair.nii")
    assert found(tmp_path) == ["flair.nii/flair.nii"]


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    touch(tmp_path / "in/p1/a.nii", tmp_path / "store/p2/b.nii")
    (tmp_path / "in/p2").symlink_to("../store/p2")
    (tmp_path / "in/p1/up").symlink_to("..")
    (tmp_path / "store/p2/round").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in/self").symlink_to("self")
    assert found(tmp_path / "in") == ["p1/a.nii", "p2/b.nii"]


def test_a_folder_that_a_link_leads_to_as_well_is_searched_once_under_its_own_name(tmp_path, caplog):
    touch(tmp_path / "z/a.nii")
    (tmp_path / "first").symlink_to("z")
    with caplog.at_level(logging.INFO):
        assert found(tmp_path) == ["z/a.nii"]
    assert f"{tmp_path}/first leads to {tmp_path}/z, which is searched once" in caplog.text
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        (tmp_path / "in" / name).symlink_to("../z")
    assert found(tmp_path / "in") == ["one/a.nii"]


def test_links_to_files_are_files_and_broken_ones_keep_their_name(tmp_path):
    touch(tmp_path / "store/x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nii").symlink_to("../store/x")
    (tmp_path / "in/b.nii").symlink_to("../store/absent")
    os.mkfifo(tmp_path / "in/c.nii")  # would be waited for for ever
    os.mkfifo(tmp_path / "in/d")
    assert found(tmp_path / "in") == ["a.nii", "b.nii"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may open every folder")
def test_a_folder_that_may_not_be_opened_is_among_the_results(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "closed/b.nii")
    (tmp_path / "closed").chmod(0)
    try:
        assert found(tmp_path) == ["a.nii", "closed"]
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_a_folder_that_vanishes_or_cannot_be_read_is_among_the_results(tmp_path, monkeypatch, caplog):
    touch(tmp_path / "a.nii", tmp_path / "closed/b.nii")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert found(tmp_path) == ["a.nii", "closed"]
    assert f"{tmp_path}/closed cannot be searched: Permission denied" in caplog.text


@pytest.mark.parametrize("line", [{"run": "abc"}, {"name": "a.nii", "status": "done"}])
def test_masks_in_the_output_folder_of_another_run_are_no_images(line, tmp_path, caplog):
    touch(tmp_path / "a.nii", tmp_path / "masks/ward/a_mask.nii.gz", tmp_path / "other/b.nii")
    (tmp_path / "masks/journal.jsonl").write_text("\n" + json.dumps(line) + "\n")
    (tmp_path / "other/journal.jsonl").write_text('{"diary": "of the user"}\n')
    with caplog.at_level(logging.INFO):
        assert found(tmp_path) == ["a.nii", "other/b.nii"]
    assert f"{tmp_path}/masks is the output folder of a run" in caplog.text
    assert found(tmp_path / "masks") == ["ward/a_mask.nii.gz"]


def test_folders_can_be_left_out_also_where_a_link_leads_to_them(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "out/a_mask.nii.gz")
    (tmp_path / "link").symlink_to("out")
    assert found(tmp_path, tmp_path / "out") == ["a.nii"]


def test_names_that_are_no_text_are_found(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"M\xfc", b"x\xfc.nii.gz")
    os.mkdir(os.path.dirname(path))
    os.close(os.open(path, os.O_CREAT))
    assert [os.fsencode(name) for name in find_volumes(tmp_path)] == [path]


# Names


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b.nii.gz", "b"), ("b.1.2.NII.GZ", "b.1.2"), ("a/series", "series"), ("x.Mha", "x"), ("a.b/c.d", "c.d")],
)
def test_a_case_is_called_by_its_file_without_the_ending(path, name):
    assert case_name(path) == name


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.nii", "y/b.1.nii.gz"], ["a", "b.1"]),
        (["x/case1/image.nii.gz", "x/case2/image.nii.gz"], ["case1/image", "case2/image"]),
        (["x/a.nii", "x/a.nii.gz", "x/b.nii"], ["a.nii", "a.nii.gz", "b.nii"]),
        (["x/a.nii", "x/../x/a.nii"], ["a", "a"]),
        (["only/image.nii"], ["image"]),
        ([], []),
    ],
)
def test_cases_have_different_names_as_short_as_they_can_be(paths, names):
    assert case_names(paths) == names
