"""The reports of a folder: whole, from all journals, for spreadsheet programs and people, whatever the number."""

import csv
import json
import os
from pathlib import Path

import pytest
from digar.inference.journal import DONE, FAILED, Journal, Outcome
from digar.inference.report import REPORTS, merge_reports

LABELS = {1: "front", 2: "back"}
FACTS = {"started": "2024-01-01T00:00:00", "weights": "model.pt"}


def outcome(name: str = "a.nii", **fields: object) -> Outcome:
    return Outcome(
        **{"name": name, "status": DONE, "mask": "a_mask.nii.gz", "shape": [4, 5, 6], "run": "run", "ended": 1.0,
           "volumes_ml": {"front": 1.5, "back": 0.25}, "seconds": {"reading": 0.5, "network": 1.0, "writing": 9.0},
           **fields}
    )  # fmt: skip


def merged(folder: Path, *outcomes: Outcome, names: tuple[str, ...] = (), run: str = "run") -> str:
    journal = Journal(folder, 0)
    journal.begin(run, FACTS, LABELS, names)
    for one in outcomes:
        journal.add(one)
        if one.mask:
            (folder / one.mask).touch()
    journal.close()
    return merge_reports(folder)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_tables_hold_volumes_reasons_and_warnings(tmp_path):
    failed = Outcome("b.nii", FAILED, "is empty", ["odd", "very"], run="run")
    line = merged(tmp_path, outcome(warnings=["no voxel"]), failed, outcome("c.nii"), names=("a.nii", "d.nii"))
    assert line == "2 done, 1 with warnings, 1 failed, 1 not run"
    table = rows(tmp_path / "report.csv")
    assert list(table[0])[:8] == ["file", "status", "reason", "warnings", "mask", "shape", "spacing_mm", "seconds"]
    assert [(r["file"], r["status"], r["reason"], r["warnings"], r["front ml"], r["seconds"]) for r in table] == [
        ("a.nii", "done", "", "no voxel", "1.5", "1.5"),
        ("b.nii", "failed", "is empty", "odd; very", "", "0"),
        ("c.nii", "done", "", "", "1.5", "1.5"),
    ]
    assert rows(tmp_path / "volumes.csv") == [
        {"file": "a.nii", "front": "1.5", "back": "0.25", "volume": "", "warnings": "no voxel"},
        {"file": "c.nii", "front": "1.5", "back": "0.25", "volume": "", "warnings": ""},
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["labels"] == {"1": "front", "2": "back"}
    assert report["files"][1]["warnings"] == ["odd", "very"]
    assert "thumbnail" not in report["files"][0]
    counts = [report["run"][key] for key in ("images", "done", "with_warnings", "failed", "not_run")]
    assert counts == [4, 2, 1, 1, 1]
    assert json.loads((tmp_path / "labels.json").read_text()) == {"0": "background", "1": "front", "2": "back"}
    written = {file.name for file in tmp_path.iterdir()}
    assert written == {*REPORTS, "journal.jsonl", "a_mask.nii.gz"}


def test_each_volume_of_a_fourth_axis_has_a_row_of_volumes(tmp_path):
    merged(tmp_path, outcome(volumes_ml={"front": [1.5, 2.5], "back": [0.25, 0.0]}))
    assert rows(tmp_path / "volumes.csv") == [
        {"file": "a.nii", "front": "1.5", "back": "0.25", "volume": "0", "warnings": ""},
        {"file": "a.nii", "front": "2.5", "back": "0.0", "volume": "1", "warnings": ""},
    ]
    assert rows(tmp_path / "report.csv")[0]["front ml"] == "1.5; 2.5"
    assert "1.50; 2.50" in (tmp_path / "report.html").read_text()


def test_masks_of_other_settings_are_counted_and_left_out(tmp_path):
    merged(tmp_path, outcome("old.nii", run="former"), run="former")
    line = merged(tmp_path, outcome("new.nii"))
    assert line == "1 done, 0 with warnings, 0 failed, 0 not run; 1 masks of other weights or settings lie there too"
    assert [row["file"] for row in rows(tmp_path / "report.csv")] == ["new.nii"]


def test_a_mask_that_is_gone_is_not_run(tmp_path):
    merged(tmp_path, outcome())
    (tmp_path / "a_mask.nii.gz").unlink()
    assert merge_reports(tmp_path) == "0 done, 0 with warnings, 0 failed, 1 not run"


def test_names_of_any_kind_are_text_in_every_report(tmp_path):
    odd = [os.fsdecode(b"M\xfc.nii"), "=1+1.nii", "+x.nii", "@x.nii", "<b>.nii", "a\nb.nii", "肝.nii"]
    merged(
        tmp_path, *(outcome(name) for name in odd), outcome("x", status=FAILED, reason="=cmd", mask="", volumes_ml={})
    )
    names = {row["file"] for row in rows(tmp_path / "report.csv")}
    assert names == {r"M\xfc.nii", "'=1+1.nii", "'+x.nii", "'@x.nii", "<b>.nii", r"a\nb.nii", "肝.nii", "x"}
    assert next(row["reason"] for row in rows(tmp_path / "report.csv") if row["file"] == "x") == "'=cmd"
    assert {row["file"] for row in rows(tmp_path / "volumes.csv")} == names - {"x"}
    listed = {file["name"] for file in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["files"]}
    assert listed == {r"M\xfc.nii", r"a\nb.nii", *odd[1:5], "肝.nii", "x"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert r"M\xfc.nii" in page
    assert "<b>.nii" not in page


def test_a_folder_without_a_journal_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is not the output folder of a folder inference"):
        merge_reports(tmp_path)
