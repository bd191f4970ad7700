"""Lesion tables: what is read, what is left out or refused, and labels as lesions."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.data.lesions import label_components, lesion_cases, write_lesion_table


def table(folder: Path, *lines: str) -> Path:
    file = folder / "lesions.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_rows_with_a_box_give_its_centre_and_type_minus_1_is_left_out(tmp_path):
    file = table(
        tmp_path,
        "file,patient,type,x1,y1,z1,x2,y2,z2,note",
        "images/a.nii.gz,P1,3,10,20,30,14,21,30,big",
        "images/b.nii.gz,P2,-1,1,1,1,2,2,2,",
    )
    (case,) = lesion_cases(file)
    assert case == {
        "kind": "semantic", "image": str(tmp_path / "images/a.nii.gz"), "patient": "P1", "type": "3",
        "centre": [12, 20.5, 30],
    }  # fmt: skip


def test_rows_with_a_centre_give_it(tmp_path):
    absolute = tmp_path / "elsewhere/a.nii.gz"
    (case,) = lesion_cases(table(tmp_path, "patient,file,type,x,y,z", f"P1,{absolute},1,1,2,3.5"))
    assert (case["centre"], case["image"]) == ([1, 2, 3.5], str(absolute))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["patient,file,x,y,z", "P,a,1,2,3"], "has the columns patient, file, x, y, z; it lacks type"),
        (["patient,file,type,x,y", "P,a,1,2,3"], "has neither the columns x, y, z nor x1"),
        (["patient,file,type,x,y,z", "P,a,1,2,3,4", "P,a,1,2,three,4"], "lesions.csv, line 3: .*three"),
        (["patient,file,type,x,y,z", "P,a,1,2,3"], "lesions.csv, line 2"),
        (["patient,file,type,x,y,z", "P,a,1,2,3,nan"], "line 2: a position is not finite"),
        (["patient,file,type,x,y,z", "P,,1,2,3,4"], "line 2: patient, file or type is empty"),
        (["patient,file,type,x,y,z", "P,a,-1,2,3,4"], "contains no lesion of a known type"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_column_or_line(lines, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        lesion_cases(table(tmp_path, *lines))


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="lesion_table .*absent.csv is not a file"):
        lesion_cases(tmp_path / "absent.csv")


def write_task(folder: Path) -> Path:
    """Two cases: label 1 as two blocks and a speck, label 2 as one block touching over a corner; then label 2 alone."""
    labels = [np.zeros((20, 16, 12), np.uint8) for _ in range(2)]
    labels[0][2:6, 3:7, 1:5] = 1
    labels[0][12:16, 3:8, 1:5] = 1
    labels[0][18, 14, 10] = 1
    labels[0][2:6, 10:13, 1:5] = 2
    labels[0][6:9, 13:15, 5:7] = 2
    labels[1][4:8, 4:8, 4:8] = 2
    for name, label in zip("ab", labels, strict=True):
        for room in ("imagesTr", "labelsTr"):
            (folder / room).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(label, np.diag([1.0, 1, 2, 1])), folder / room / f"{name}.nii.gz")
    entries = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ab"]
    (folder / "dataset.json").write_text(json.dumps({"training": entries}))
    return folder


def test_components_of_each_label_are_lesions_and_specks_are_not(tmp_path):
    found = label_components(write_task(tmp_path) / "labelsTr/a.nii.gz")
    assert found == [(1, [3.5, 4.5, 2.5]), (1, [13.5, 5, 2.5]), (2, [5, 12, 3.5])]


def test_a_tasks_labels_become_a_table_that_is_read_back(tmp_path):
    task = write_task(tmp_path / "task")
    assert write_lesion_table(task, tmp_path / "tables/lesions.csv") == 4
    cases = lesion_cases(tmp_path / "tables/lesions.csv")
    assert [(case["patient"], case["type"]) for case in cases] == [("a", "1"), ("a", "1"), ("a", "2"), ("b", "2")]
    assert cases[3]["centre"] == [5.5, 5.5, 5.5]
    assert Path(cases[3]["image"]).resolve() == (task / "imagesTr/b.nii.gz").resolve()


def test_images_of_one_patient_are_one_patients_lesions(tmp_path):
    task = write_task(tmp_path / "task")
    for room in ("imagesTr", "labelsTr"):
        for name, phase in (("a", "p.1_ed"), ("b", "p.1_es")):
            (task / room / f"{name}.nii.gz").rename(task / room / f"{phase}.nii.gz")
    (task / "dataset.json").write_text(
        (task / "dataset.json").read_text().replace("/a.", "/p.1_ed.").replace("/b.", "/p.1_es.")
    )
    write_lesion_table(task, tmp_path / "lesions.csv")
    assert {case["patient"] for case in lesion_cases(tmp_path / "lesions.csv")} == {"p.1"}


def test_a_task_without_any_component_is_refused(tmp_path):
    task = write_task(tmp_path)
    for file in (task / "labelsTr").iterdir():
        nib.save(nib.Nifti1Image(np.zeros((20, 16, 12), np.uint8), np.eye(4)), file)
    with pytest.raises(ValueError, match="no label holds a component"):
        write_lesion_table(task, tmp_path / "lesions.csv")
