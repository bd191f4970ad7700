"""Masks of a former run hold only if nothing that decides them has changed; files of others are never touched."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.inference.journal import DONE, FAILED, Outcome, file_state, input_state
from digar.inference.record import RunRecord
from digar.inference.report import REPORTS
from digar.volumes.files import file_hash

from tests.conftest import ROOT

SETTINGS = {"overlap": 0.5}


@pytest.fixture
def case(tmp_path: Path) -> dict:
    """A case whose image is there."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nii").write_bytes(b"image")
    return {"name": "a.nii", "image": str(tmp_path / "in/a.nii"), "mask": "a_mask.nii.gz"}


def make_record(tmp_path: Path, **options: object) -> RunRecord:
    (tmp_path / "model.pt").write_bytes(b"weights")
    labels = options.pop("labels", {1: "organ"})
    return RunRecord(tmp_path / "out", tmp_path / "model.pt", ROOT / "configs/metadata.json", labels, **options)


def write_mask(path: Path, voxels: int = 3) -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask.flat[:voxels] = 1
    nib.save(nib.Nifti1Image(mask, np.diag([10.0, 10, 10, 1])), path)


def finish(record: RunRecord, case: dict, voxels: int = 3) -> None:
    """As the pipeline does it."""
    mask = record.output_dir / case["mask"]
    mask.parent.mkdir(parents=True, exist_ok=True)
    write_mask(mask, voxels)
    record.add(
        Outcome(
            case["name"], DONE, mask=case["mask"], run=record.run, mask_hash=file_hash(mask), ended=time.time(),
            image=[case["image"]], state=input_state(case["image"]), volumes_ml={"organ": float(voxels)},
        )
    )  # fmt: skip


def once(tmp_path: Path, cases: Sequence[dict], settings: dict = SETTINGS, **options: object) -> list[int]:
    """A run in which what is pending is done; what was pending."""
    record = make_record(tmp_path, **options)
    with record.open(cases, settings, {}):
        pending = record.pending(cases)
        for index in pending:
            finish(record, cases[index])
    return pending


def report(tmp_path: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((tmp_path / "out/report.json").read_text())["files"]}


def test_an_unchanged_case_is_finished(case, tmp_path):
    assert once(tmp_path, [case]) == [0]
    assert once(tmp_path, [case]) == []


@pytest.mark.parametrize("change", ["settings", "weights", "labels", "version"])
def test_other_settings_weights_labels_or_versions_begin_anew(change, case, tmp_path, monkeypatch):
    once(tmp_path, [case])
    record = make_record(tmp_path, labels={2: "organ"} if change == "labels" else {1: "organ"})
    if change == "weights":
        (tmp_path / "model.pt").write_bytes(b"others")
    if change == "version":
        record.metadata_file = tmp_path / "metadata.json"
        record.metadata_file.write_text('{"name": "DiGAR", "version": "99"}')
    with record.open([case], {"overlap": 0.25} if change == "settings" else SETTINGS, {}):
        assert record.pending([case]) == [0]


@pytest.mark.parametrize("change", ["content", "time", "no mask", "no image", "another mask"])
def test_a_changed_case_begins_anew(change, case, tmp_path):
    once(tmp_path, [case])
    image = Path(case["image"])
    if change == "content":
        image.write_bytes(b"another image")
    elif change == "time":
        os.utime(image, (1, 1))
    elif change == "no mask":
        (tmp_path / "out/a_mask.nii.gz").unlink()
    elif change == "no image":
        image.unlink()
    else:
        case = {**case, "mask": "a.nii_mask.nii.gz"}
    record = make_record(tmp_path)
    with record.open([case], SETTINGS, {}):
        assert record.pending([case]) == [0]


def test_a_failed_case_is_tried_again(case, tmp_path):
    record = make_record(tmp_path)
    with record.open([case], SETTINGS, {}):
        record.add(Outcome("a.nii", FAILED, "broken", run=record.run, ended=1.0))
    assert once(tmp_path, [case]) == [0]


# Files of others


def test_a_mask_that_was_changed_by_hand_is_kept_and_reported_with_its_volumes(case, tmp_path):
    once(tmp_path, [case])
    mask = tmp_path / "out/a_mask.nii.gz"
    write_mask(mask, voxels=7)
    corrected = mask.read_bytes()
    for settings in (SETTINGS, SETTINGS, {"overlap": 0.25}, {"overlap": 0.25}):
        assert once(tmp_path, [case], settings) == []
        assert mask.read_bytes() == corrected
        row = report(tmp_path)["a.nii"]
        assert row["status"] == DONE
        assert row["volumes_ml"] == {"organ": 7.0}
        assert row["warnings"][0].startswith(
            "its mask was changed by hand, and is kept: move it away to have a new one"
        )
        assert row["warnings"][0].endswith("It was made with other weights or settings") == (settings != SETTINGS)
    assert len((tmp_path / "out/journal.jsonl").read_text().split('"kept": true')) == 3  # once for each setting
    mask.unlink()
    assert once(tmp_path, [case]) == [0]


def test_a_mask_that_was_changed_by_hand_is_kept_where_its_image_changed_too_and_the_case_fails(case, tmp_path):
    once(tmp_path, [case])
    mask = tmp_path / "out/a_mask.nii.gz"
    write_mask(mask, voxels=7)
    corrected = mask.read_bytes()
    Path(case["image"]).write_bytes(b"another image")
    assert once(tmp_path, [case]) == []
    assert mask.read_bytes() == corrected
    assert report(tmp_path)["a.nii"]["status"] == FAILED
    assert "was changed by hand, and its image was changed since: move it away" in report(tmp_path)["a.nii"]["reason"]


@pytest.mark.parametrize("content", [b"precious", b""])
def test_a_mask_of_others_is_never_overwritten_or_deleted(content, case, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a_mask.nii.gz").write_bytes(content)
    record = make_record(tmp_path)
    with record.open([case], SETTINGS, {}):
        assert record.pending([case]) == []
        assert record.failed == 1
        record.remove_former(case)
    assert (tmp_path / "out/a_mask.nii.gz").read_bytes() == content
    reason = report(tmp_path)["a.nii"]["reason"]
    assert reason == (
        "the mask a_mask.nii.gz is there, but was not written by this program: move it away, or pass another "
        "--output_dir"
    )


def test_a_link_in_a_masks_place_is_not_written_through(case, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a_mask.nii.gz").symlink_to(tmp_path / "absent")
    assert once(tmp_path, [case]) == []
    assert (tmp_path / "out/a_mask.nii.gz").is_symlink()


def test_the_mask_of_another_image_with_the_same_name_is_not_replaced(case, tmp_path):
    once(tmp_path, [case])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.nii").write_bytes(b"of another patient")
    other = {**case, "image": str(tmp_path / "other/a.nii")}
    before = (tmp_path / "out/a_mask.nii.gz").read_bytes()
    assert once(tmp_path, [other]) == []
    assert (tmp_path / "out/a_mask.nii.gz").read_bytes() == before
    assert f"is that of another image, {case['image']}: move it away" in report(tmp_path)["a.nii"]["reason"]


def test_a_mask_whose_image_has_moved_as_it_was_still_holds(case, tmp_path):
    once(tmp_path, [case])
    (tmp_path / "in").rename(tmp_path / "moved")
    assert once(tmp_path, [{**case, "image": str(tmp_path / "moved/a.nii")}]) == []
    assert report(tmp_path)["a.nii"]["status"] == DONE


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_of_others_is_not_overwritten(name, case, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("precious")
    with pytest.raises(FileExistsError, match=f"out holds {name}, which no run of this program wrote: move them away"):
        once(tmp_path, [case])
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]


def test_probabilities_of_a_former_mask_are_taken_away_and_those_of_others_stand_in_the_way(case, tmp_path):
    once(tmp_path, [case])
    file = tmp_path / "out/a_mask_probabilities.npy"
    file.write_bytes(b"of the former mask")
    record = make_record(tmp_path)
    with record.open([case], SETTINGS, {}):
        former = record.journal.outcome("a.nii")
        former.beside, former.ended = {file.name: file_state(file)}, time.time()
        record.add(former)
        record.journal.scan()
        record.make_way(case, [file.name])
        assert not file.exists()
        file.write_bytes(b"precious")
        with pytest.raises(ValueError, match="a_mask_probabilities.npy is there, but was not written by this program"):
            record.make_way(case, [file.name])
    assert file.read_bytes() == b"precious"


def test_probabilities_that_a_journal_names_elsewhere_are_left_alone(case, tmp_path):
    once(tmp_path, [case])
    (tmp_path / "precious.npy").write_bytes(b"x")
    record = make_record(tmp_path)
    with record.open([case], SETTINGS, {}):
        former = record.journal.outcome("a.nii")
        former.beside = {"../precious.npy": file_state(tmp_path / "precious.npy")}
        former.ended = time.time()
        record.add(former)
        record.journal.scan()
        record.remove_former(case)
    assert (tmp_path / "precious.npy").exists()


def test_a_mask_that_was_killed_between_its_line_and_its_name_is_made_again(case, tmp_path):
    once(tmp_path, [case])
    record = make_record(tmp_path)
    with record.open([case], {"overlap": 0.25}, {}):  # the new mask's line is written, the former mask still there
        record.add(Outcome("a.nii", DONE, mask=case["mask"], run=record.run, mask_hash="ab" * 32, ended=time.time()))
    assert once(tmp_path, [case], {"overlap": 0.25}) == [0]


def test_temporary_files_of_killed_runs_are_removed(case, tmp_path):
    case["mask"] = "ward/a_mask.nii.gz"
    left = tmp_path / "out/ward" / f".digar-{'0' * 32}.nii.gz"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    (left.parent / ".hidden").write_bytes(b"of the user")
    once(tmp_path, [case])
    assert sorted(file.name for file in left.parent.iterdir()) == [".hidden", "a_mask.nii.gz"]


# Several processes


def cases_of(tmp_path: Path, *names: str) -> list[dict]:
    cases = []
    for name in names:
        (tmp_path / f"{name}.nii").write_bytes(name.encode())
        cases.append({"name": f"{name}.nii", "image": str(tmp_path / f"{name}.nii"), "mask": f"{name}_mask.nii.gz"})
    return cases


def test_any_number_of_processes_stopped_and_started_again_end_in_one_whole_report(tmp_path):
    cases = cases_of(tmp_path, "a", "b", "c", "d", "e")
    assert once(tmp_path, cases, rank=1, num_processes=3) == [1, 4]
    run = json.loads((tmp_path / "out/report.json").read_text())["run"]
    assert [run[key] for key in ("images", "done", "not_run")] == [5, 2, 3]
    assert once(tmp_path, cases, rank=1, num_processes=2) == [3]
    assert once(tmp_path, cases, rank=0, num_processes=2) == [0, 2]
    run = json.loads((tmp_path / "out/report.json").read_text())["run"]
    assert [run[key] for key in ("images", "done", "failed", "not_run")] == [5, 5, 0, 0]
    with pytest.raises(ValueError, match="rank 2: with num_processes 2 it must be from 0 to 1"):
        make_record(tmp_path, rank=2, num_processes=2)


def test_two_disjoint_lists_and_one_output_give_one_report(tmp_path):
    once(tmp_path, cases_of(tmp_path, "a", "b"))
    once(tmp_path, cases_of(tmp_path, "c"))
    rows = list(csv.DictReader((tmp_path / "out/report.csv").open()))
    assert [(row["file"], row["status"]) for row in rows] == [(f"{name}.nii", "done") for name in "abc"]
    (tmp_path / "out/a_mask.nii.gz").unlink()
    once(tmp_path, cases_of(tmp_path, "c"))
    run = json.loads((tmp_path / "out/report.json").read_text())["run"]
    assert [run[key] for key in ("images", "done", "not_run")] == [3, 2, 1]


OTHER = """
import sys, time
sys.path[:0] = [sys.argv[1]]
from digar.inference.sharing import SharedFolder
folder = SharedFolder(sys.argv[2], sys.argv[3])
print(folder.journal_number, folder.claim("a_mask.nii.gz"), flush=True)
sys.stdin.readline()
folder.release("a_mask.nii.gz")
print("let go", flush=True)
sys.stdin.readline()
"""


def other_process(tmp_path: Path, run: str) -> subprocess.Popen:
    words = [sys.executable, "-c", OTHER, str(ROOT / "scripts"), str(tmp_path / "out"), run]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_run_with_other_settings_is_refused_while_another_works_there(case, tmp_path):
    once(tmp_path, [case])
    with other_process(tmp_path, "another run") as process:
        assert process.stdout.readline() == "0 True\n"
        reason = f"out is in use by a run with other weights or settings .process {process.pid} on"
        with pytest.raises(RuntimeError, match=reason):
            once(tmp_path, [case])
        process.kill()
    assert once(tmp_path, [case]) == []


def test_a_run_with_the_same_settings_shares_the_images_and_has_a_journal_of_its_own(case, tmp_path):
    record = make_record(tmp_path)
    with record.open([case], SETTINGS, {}):
        run = record.run
    with other_process(tmp_path, run) as process:
        assert process.stdout.readline() == "0 True\n"
        record = make_record(tmp_path)
        with record.open([case], SETTINGS, {}):
            assert record.folder.journal_number == 1
            assert not record.claim(case)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "let go\n"
            assert record.claim(case)
            assert record.meanwhile(case) is None
        process.kill()
