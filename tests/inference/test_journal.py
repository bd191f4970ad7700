"""The journal: what is in it counts, whoever wrote it and wherever it was cut short; what is none is refused."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from digar.inference.journal import DONE, FAILED, Journal, Outcome, file_state, input_state

FACTS = {"started": "2024-01-01T00:00:00"}


def noted(folder: Path, *outcomes: Outcome, number: int = 0) -> Journal:
    journal = Journal(folder, number)
    for outcome in outcomes:
        journal.add(outcome)
    journal.close()
    return Journal(folder)


def statuses(journal: Journal) -> dict[str, str]:
    return {name: journal.outcome(name).status for name in journal.latest}


def test_an_outcome_is_read_as_it_was_written(tmp_path):
    outcome = Outcome(
        os.fsdecode(b"M\xfc.nii"), DONE, warnings=["odd"], mask="m", shape=[1, 2], spacing=[1.0], ended=5.0,
        volumes_ml={"a": 1.5, "b": [1.0, 2]}, seconds={"reading": 1}, image=["/a"], state=[[1, 2]], mask_hash="ab" * 32,
        beside={"p.npy": [3, 4]},
        series={"SeriesDescription": "T1"},
    )  # fmt: skip
    journal = noted(tmp_path, outcome)
    assert journal.outcome(outcome.name) == outcome
    assert journal.former("unknown") is None
    assert journal.wrote("ab" * 32)
    assert not journal.wrote("cd" * 32)
    assert not journal.wrote("")


def test_a_line_that_a_kill_cut_short_is_left_out_and_those_around_it_are_read(tmp_path):
    noted(tmp_path, Outcome("a.nii", DONE), Outcome("b.nii", DONE))
    file = tmp_path / "journal.jsonl"
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        assert set(noted(tmp_path, Outcome("c.nii", FAILED)).latest) - {"a.nii", "b.nii"} == {"c.nii"}
    file.write_bytes(content[:-1])
    assert set(noted(tmp_path, Outcome("c.nii", FAILED)).latest) == {"a.nii", "b.nii", "c.nii"}


def test_the_journals_of_all_processes_are_read_and_the_latest_outcome_holds(tmp_path):
    noted(tmp_path, Outcome("a", FAILED, ended=3.0), Outcome("b", DONE, ended=4.0))
    assert statuses(noted(tmp_path, Outcome("a", DONE, ended=5.0), number=1)) == {"a": DONE, "b": DONE}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["journal.jsonl", "journal_1.jsonl"]


def test_what_others_write_meanwhile_is_taken_in_line_by_line(tmp_path):
    noted(tmp_path, Outcome("a", DONE))
    journal = Journal(tmp_path)
    line = json.dumps(asdict(Outcome("b", DONE)))
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write(line[:30])
        stream.flush()
        journal.scan()
        assert set(journal.latest) == {"a"}
        stream.write(line[30:] + "\n")
    noted(tmp_path, Outcome("c", DONE), number=1)
    journal.scan()
    assert set(journal.latest) == {"a", "b", "c"}
    assert journal.outcome("b").status == DONE


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3}, {"name": None}, {"status": ["done"]}, {"warnings": "odd"}, {"warnings": [3]}, {"shape": ["x"]},
        {"volumes_ml": []}, {"volumes_ml": {"a": "1"}}, {"seconds": {"reading": None}}, {"ended": "now"},
        {"mask_hash": 7}, {"state": 5}, {"kept": "no"}, {"beside": {"a": 1}}, {"series": {"a": 1}},
    ],
)  # fmt: skip
def test_a_line_with_a_field_of_another_kind_is_left_out(change, tmp_path):
    noted(tmp_path, Outcome("a", DONE))
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write(json.dumps({**asdict(Outcome("b", DONE)), **change}) + "\n")
        stream.write('[3]\n7\n"text"\nnull\n{"run": 3}\n{"list": "x", "names": 7}\n{"name": "c"}\n')
    assert set(Journal(tmp_path).latest) == {"a"}


def test_lines_of_versions_with_other_fields_are_read(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"name": "a", "status": "done", "mask_hash": "abcd", "colour": "red"}\n')
    journal = Journal(tmp_path)
    assert journal.outcome("a") == Outcome("a", DONE, mask_hash="abcd")


@pytest.mark.parametrize("content", ['{"diary": "of the user"}\n', "text\n", "{}\n"])
def test_a_file_in_a_journals_place_that_is_none_is_refused_and_left_as_it_is(content, tmp_path):
    (tmp_path / "journal.jsonl").write_text(content)
    with pytest.raises(FileExistsError, match="journal.jsonl is not a journal of this program: move it away"):
        Journal(tmp_path, 0)
    assert (tmp_path / "journal.jsonl").read_text() == content


def test_what_a_full_disk_refused_ends_the_run_and_what_comes_after_is_read(tmp_path, monkeypatch):
    journal = Journal(tmp_path, 0)
    journal.add(Outcome("a", DONE))
    write = os.write

    def full(file: int, line: bytes) -> int:
        write(file, line[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device: finished masks are kept, make room") as caught:
        journal.add(Outcome("b", DONE))
    assert caught.value.filename == str(tmp_path)
    monkeypatch.undo()
    journal.add(Outcome("c", DONE))
    journal.close()
    assert set(Journal(tmp_path).latest) == {"a", "c"}


def test_a_run_has_the_images_of_all_its_lists_and_outcomes(tmp_path):
    journal = Journal(tmp_path, 0)
    journal.begin("run", FACTS, {1: "organ"}, ["a", "b"])
    journal.begin("run", FACTS, {1: "organ"}, ["a", "b"])
    journal.begin("run", FACTS, {1: "organ"}, ["c"])
    journal.begin("another", FACTS, {}, ["x"])
    journal.add(Outcome("d", DONE, run="run"))
    journal.close()
    again = Journal(tmp_path)
    assert again.names("run") == ["a", "b", "c", "d"]
    assert again.names("another") == ["x"]
    assert again.runs["run"]["labels"] == {"1": "organ"}
    lists = [line for line in (tmp_path / "journal.jsonl").read_text().splitlines() if '"names"' in line]
    assert len(lists) == 3


def test_the_state_of_several_files_tells_of_each(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).write_bytes(b"12345")
    before = file_state(tmp_path / "1", tmp_path / "2")
    assert before[0] == 10
    (tmp_path / "2").write_bytes(b"123456")
    assert file_state(tmp_path / "1", tmp_path / "2") != before
    assert len(input_state([str(tmp_path / "1"), str(tmp_path / "2")])) == 2


def test_the_state_of_a_dicom_series_is_that_of_its_files(tmp_path):
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).write_bytes(b"12345")
    before = input_state(str(tmp_path))
    assert before[0][0] == 10
    (tmp_path / "2.dcm").write_bytes(b"123456")
    assert input_state(str(tmp_path)) != before
