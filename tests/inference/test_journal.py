"""A file counts as finished only if its input, the weights, the settings and its mask are as they were."""

import hashlib
import os
from pathlib import Path

import pytest
from digar.inference.journal import DONE, FAILED, Journal, Outcome, input_state, settings_hash
from digar.volumes.files import file_hash

CASE = {"name": "a.nii", "mask": "a_mask.nii.gz"}


@pytest.fixture
def case(tmp_path: Path) -> dict:
    """A finished case whose outcome is in the journal of ``tmp_path``."""
    (tmp_path / "a.nii").write_bytes(b"image")
    (tmp_path / "a_mask.nii.gz").write_bytes(b"mask")
    case = {**CASE, "image": str(tmp_path / "a.nii")}
    outcome = Outcome("a.nii", DONE, mask="a_mask.nii.gz", run="run", mask_hash=file_hash(tmp_path / "a_mask.nii.gz"))
    outcome.state = input_state(case["image"])
    Journal(tmp_path, 0, "run").add(outcome)
    return case


def is_finished(folder: Path, case: dict, run: str = "run") -> bool:
    journal = Journal(folder, 0, run)
    return journal.finished(case, journal.read()) is not None


def test_an_unchanged_case_is_finished(case, tmp_path):
    assert is_finished(tmp_path, case)


def test_other_weights_or_settings_begin_anew(case, tmp_path):
    assert not is_finished(tmp_path, case, "another run")
    assert settings_hash({"a": 1, "b": [2]}) == settings_hash({"b": [2], "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})


@pytest.mark.parametrize("change", ["content", "time", "mask", "no mask", "no image", "another mask"])
def test_a_changed_case_begins_anew(change, case, tmp_path):
    image, mask = tmp_path / "a.nii", tmp_path / "a_mask.nii.gz"
    if change == "content":
        image.write_bytes(b"another image")
    elif change == "time":
        os.utime(image, (1, 1))
    elif change == "mask":
        mask.write_bytes(b"half")
    elif change == "no mask":
        mask.unlink()
    elif change == "no image":
        image.unlink()
    else:
        case = {**case, "mask": "a.nii_mask.nii.gz"}
    assert not is_finished(tmp_path, case)


def test_a_failed_case_is_tried_again(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"image")
    Journal(tmp_path, 0, "run").add(Outcome("a.nii", FAILED, "broken", run="run"))
    assert not is_finished(tmp_path, {**CASE, "image": str(tmp_path / "a.nii")})


def test_a_line_that_a_kill_cut_short_is_left_out_and_those_around_it_are_read(case, tmp_path):
    file = tmp_path / "journal.jsonl"
    line = file.read_text().strip()
    file.write_text(line + "\n" + line[: len(line) // 2])
    journal = Journal(tmp_path, 0, "run")
    journal.add(Outcome("b.nii", FAILED, run="run"))
    assert set(journal.read()) == {"a.nii", "b.nii"}


def test_the_journals_of_all_processes_are_read_and_the_latest_outcome_holds(tmp_path):
    Journal(tmp_path, 1, "run").add(Outcome("a", DONE, run="run", ended=5.0))
    Journal(tmp_path, 0, "run").add(Outcome("a", FAILED, run="run", ended=3.0))
    Journal(tmp_path, 0, "run").add(Outcome("b", DONE, run="run", ended=4.0))
    assert {o.name: o.status for o in Journal(tmp_path, 0, "run").read().values()} == {"a": DONE, "b": DONE}


def test_what_a_full_disk_refused_is_written_with_the_next(tmp_path, monkeypatch):
    journal = Journal(tmp_path, 0, "run")
    file, journal.file = journal.file, tmp_path / "absent/journal.jsonl"
    with pytest.raises(FileNotFoundError):
        journal.add(Outcome("a", DONE))
    journal.file = file
    journal.add(Outcome("b", DONE))
    assert set(journal.read()) == {"a", "b"}


def test_a_files_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_the_state_of_a_dicom_series_is_that_of_its_files(tmp_path):
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).write_bytes(b"12345")
    before = input_state(str(tmp_path))
    assert before[0][0] == 10
    (tmp_path / "2.dcm").write_bytes(b"123456")
    assert input_state(str(tmp_path)) != before
