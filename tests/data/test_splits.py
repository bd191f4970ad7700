"""Splits are by patient, whoever the data say that is; what they come with goes before what is drawn."""

import itertools
from pathlib import Path

import pytest
from digar.data.splits import by_patient, describe_patients, label_subset, split_cases

PHASES = [{"image": f"acdc_{number:03d}_{phase}.nii.gz"} for number in range(10) for phase in ("ed", "es")]


def patients(*names: str) -> list[str]:
    return [case["patient"] for case in by_patient([{"image": f"{name}.nii.gz"} for name in names])]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["acdc_001_ed", "acdc_001_es"], ["acdc_001", "acdc_001"]),
        (["hippocampus_001", "hippocampus_003"], ["hippocampus_001", "hippocampus_003"]),
        (["patient01_frame01", "patient01_frame12"], ["patient01", "patient01"]),
        (["lesion.1.left", "lesion.1.right", "lesion.2.left"], ["lesion.1", "lesion.1", "lesion.2"]),
        (["acdc_001_ed_gt_a", "acdc_001_es"], ["acdc_001", "acdc_001"]),
        (["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_T1w"], ["sub-01", "sub-01", "sub-02"]),
        (["BraTS-GLI-00005-000", "BraTS-GLI-00005-100-t1n"], ["BraTS-GLI-00005", "BraTS-GLI-00005"]),
        (["p1/ed", "p1/es", "p2/ed", "p2/es"], ["p1", "p1", "p2", "p2"]),
        (["case_2021_0001", "case_2021_0002"], ["case_2021_0001", "case_2021_0002"]),
        (["1.2.840.1", "1.2.840.2"], ["1.2.840.1", "1.2.840.2"]),
        (["case1/t1", "case1/t2", "case2/t1", "case2/t2", "case3/t1"], ["case1", "case1", "case2", "case2", "case3"]),
        (["one/001", "one/002", "two/001", "two/002"], ["one/001", "one/002", "two/001", "two/002"]),
    ],
)
def test_patients_are_read_off_the_names(names: list[str], expected: list[str]) -> None:
    assert patients(*names) == expected


def test_what_the_data_say_goes_before_the_name() -> None:
    (case,) = by_patient([{"image": "acdc_001_ed.nii.gz", "patient": "x"}])
    assert case["patient"] == "x"


def test_a_pattern_names_the_patient() -> None:
    cases = [{"image": "/data/site1/AB12_x.nii.gz"}, {"image": "/data/site1/AB12_y.nii.gz"}]
    assert [case["patient"] for case in by_patient(cases, r"/([A-Z]{2}\d+)_")] == ["AB12", "AB12"]


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "is not a regular expression"), (r"\d{9}", "does not match a.nii")]
)
def test_a_pattern_that_names_nobody_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        by_patient([{"image": "a.nii"}], pattern)


def test_an_image_listed_twice_is_refused_also_by_another_path(tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"link/a.nii is listed twice \(also as .*/a.nii\)"):
        by_patient([{"image": str(tmp_path / "a.nii")}, {"image": str(tmp_path / "link/a.nii")}])


@pytest.mark.parametrize(("seed", "fold"), list(itertools.product([0, 1], range(5))))
def test_no_patient_is_divided(seed: int, fold: int) -> None:
    cases = by_patient(PHASES)
    parts = [split_cases(cases, 0.2, seed, part, fold) for part in ("training", "validation")]
    own = [{case["patient"] for case in part} for part in parts]
    assert not own[0] & own[1]
    assert [len(part) for part in parts] == [16, 4]


def test_patients_of_one_case_are_split_as_cases_always_were() -> None:
    cases = by_patient([{"image": f"hippocampus_{number:03d}.nii.gz"} for number in range(20)])
    assert [case["image"] for case in split_cases(cases, 0.2, 0, "validation")] == [
        f"hippocampus_{number:03d}.nii.gz" for number in (10, 14, 16, 18)
    ]


def test_labels_are_drawn_by_patient() -> None:
    kept = label_subset(by_patient(PHASES), 0.3, 0)
    assert len(kept) == 6
    assert len({case["patient"] for case in kept}) == 3


def test_folds_of_the_data_are_held_out() -> None:
    cases = [{"image": f"{n}.nii", "fold": n % 3} for n in range(6)]
    assert [case["image"] for case in split_cases(cases, 0.2, 7, "validation", 1)] == ["1.nii", "4.nii"]
    assert len(split_cases(cases, 0.2, 7, "training", 1)) == 4
    assert split_cases(cases, 0.0, 7, "validation", 1) == []
    with pytest.raises(ValueError, match="the data come with the folds 0, 1, 2"):
        split_cases(cases, 0.2, 7, "validation", 3)


def test_parts_of_the_data_are_the_split() -> None:
    cases = [{"image": f"{part}.nii", "part": part} for part in ("training", "validation", "test")]
    for case in cases:
        assert split_cases(cases, 0.5, 3, case["part"]) == [case]


def test_a_split_of_the_data_that_divides_a_patient_is_refused() -> None:
    cases = by_patient(
        [{"image": f"a_1_{eye}.nii", "part": part} for eye, part in zip("lr", ("training", "test"), strict=True)]
    )
    with pytest.raises(ValueError, match="patient a_1 is in the training and in the test part"):
        split_cases(cases, 0.2, 0, "training")


def test_what_was_decided_is_told() -> None:
    assert describe_patients(by_patient(PHASES)) == (
        "20 cases of 10 patients (acdc_000: acdc_000_ed, acdc_000_es); a patient is never divided"
    )
    assert describe_patients(by_patient([{"image": "a_1.nii"}])) == "1 cases of 1 patients"
