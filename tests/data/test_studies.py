"""Studies of four contrasts: complete ones are found, others are named."""

import logging
from pathlib import Path

import pytest
from digar.data.studies import incomplete_studies, study_cases

MODALITIES = ("t1n", "t1c", "t2w", "t2f")


def touch_study(folder: Path, names: tuple[str, ...] = MODALITIES, separator: str = "-") -> list[str]:
    files = [folder / f"{folder.name}{separator}{name}.nii.gz" for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return [str(file) for file in files]


@pytest.mark.parametrize("separator", ["-", "_"])
def test_a_study_is_a_folder_with_a_file_per_modality_in_their_order(separator, tmp_path):
    files = touch_study(tmp_path / "train/BraTS-GLI-00000-000", separator=separator)
    (tmp_path / "train/BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz").touch()
    (case,) = study_cases(tmp_path, MODALITIES)
    assert case == {"kind": "contrast", "image": files, "patient": "BraTS-GLI-00000"}


def test_timepoints_of_one_patient_are_known_as_such_and_other_names_are_patients(tmp_path):
    for name in ("BraTS-GLI-00005-000", "BraTS-GLI-00005-101", "BraTS2021_00005", "case-7"):
        touch_study(tmp_path / name)
    patients = [case["patient"] for case in study_cases(tmp_path, MODALITIES)]
    assert patients == ["BraTS-GLI-00005", "BraTS-GLI-00005", "BraTS2021_00005", "case-7"]


def test_other_endings_can_be_given(tmp_path):
    endings = ("flair", "t1", "t1ce", "t2")
    files = touch_study(tmp_path / "BraTS2021_00000", endings, "_")
    assert study_cases(tmp_path, endings)[0]["image"] == files


def test_a_study_without_a_modality_is_left_out_with_a_word(tmp_path, caplog):
    touch_study(tmp_path / "whole")
    touch_study(tmp_path / "part", ("t1n", "t2w", "t2f"))
    touch_study(tmp_path / "double")
    (tmp_path / "double/other-t2f.nii.gz").touch()
    with caplog.at_level(logging.WARNING):
        cases = study_cases(tmp_path, MODALITIES)
    assert [case["patient"] for case in cases] == ["whole"]
    messages = "\n".join(record.getMessage() for record in caplog.records)
    assert f"study {tmp_path / 'part'} is left out: it has 0 files of t1c" in messages
    assert f"study {tmp_path / 'double'} is left out: it has 2 files of t2f" in messages
    assert dict(incomplete_studies(tmp_path, MODALITIES)) == {
        str(tmp_path / "part"): "it has 0 files of t1c instead of one",
        str(tmp_path / "double"): "it has 2 files of t2f instead of one",
    }
    assert incomplete_studies(None, MODALITIES) == []


def test_a_folder_without_a_complete_study_is_refused(tmp_path):
    touch_study(tmp_path / "part", ("t1n", "t2w", "t2f"))
    with pytest.raises(
        ValueError, match=r"contains no folder with a file each for t1n, t1c, t2w, t2f \(1 incomplete\)"
    ):
        study_cases(tmp_path, MODALITIES)
