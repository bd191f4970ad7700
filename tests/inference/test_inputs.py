"""Which files are cases, and that no two of them share a mask."""

import json
from pathlib import Path

import pytest
from digar.inference.inputs import find_cases


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def masks(*arguments: object, **options: object) -> dict[str, str]:
    return {case["name"]: case["mask"] for case in find_cases(*arguments, **options)}


def test_sub_folders_are_mirrored_and_other_files_left_out(tmp_path):
    touch(*(tmp_path / n for n in ("a.nii", "w/b.nii.gz", "w/x/c.mha", "w/x/d.nrrd", "w/notes.txt", "w/._b.nii.gz")))
    assert masks(tmp_path, tmp_path / "out") == {
        "a.nii": "a_mask.nii.gz",
        "w/b.nii.gz": "w/b_mask.nii.gz",
        "w/x/c.mha": "w/x/c_mask.nii.gz",
        "w/x/d.nrrd": "w/x/d_mask.nii.gz",
    }


def test_inputs_of_one_name_keep_their_ending_in_the_mask(tmp_path):
    touch(*(tmp_path / n for n in ("a.nii", "a.nii.gz", "A.mha", "b.nii")))
    found = masks(tmp_path, tmp_path / "out")
    assert found == {
        "A.mha": "A.mha_mask.nii.gz",
        "a.nii": "a.nii_mask.nii.gz",
        "a.nii.gz": "a.nii.gz_mask.nii.gz",
        "b.nii": "b_mask.nii.gz",
    }


@pytest.mark.parametrize("names", [("a.nii", "a.nii.gz", "a.nii.nii"), ("a.NII", "a.nii", "A.nii")])
def test_no_two_inputs_ever_share_a_mask(names, tmp_path):
    touch(*(tmp_path / n for n in names))
    found = masks(tmp_path, tmp_path / "out")
    assert len({mask.casefold() for mask in found.values()}) == len(names)


def test_a_folder_of_dicom_files_is_one_case(tmp_path):
    for name in ("s1/0001", "s1/0002.dcm", "s1/DICOMDIR", "s2/x.dcm"):
        touch(tmp_path / name)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    touch(tmp_path / "s1/readme.txt")
    assert masks(tmp_path, tmp_path / "out") == {"s1": "s1_mask.nii.gz", "s2": "s2_mask.nii.gz"}
    assert masks(tmp_path / "s1", tmp_path / "out") == {"s1": "s1_mask.nii.gz"}


def test_channels_are_grouped_by_their_numbers_where_the_network_takes_several(tmp_path):
    touch(*(tmp_path / n for n in ("p_0000.nii.gz", "p_0001.nii.gz", "q_0001.nii.gz", "q_0000.nii.gz")))
    cases = find_cases(tmp_path, tmp_path / "out", in_channels=2)
    assert [(c["name"], c["mask"]) for c in cases] == [("p.nii.gz", "p_mask.nii.gz"), ("q.nii.gz", "q_mask.nii.gz")]
    assert [Path(path).name for path in cases[1]["image"]] == ["q_0000.nii.gz", "q_0001.nii.gz"]
    assert len(find_cases(tmp_path, tmp_path / "out", in_channels=1)) == 4


def test_one_file_is_a_case(tmp_path):
    touch(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert masks(tmp_path / "a.nii.gz", tmp_path / "out") == {"a.nii.gz": "a_mask.nii.gz"}


LISTS = {
    "list.txt": "x/a.nii\n\n# the second\nx/y/b.mha\n",
    "list.csv": "image,age\nx/a.nii,40\nx/y/b.mha,50\n",
    "plain.csv": "x/a.nii,40\nx/y/b.mha,50\n",
    "second.csv": "age,image\n40,x/a.nii\n50,x/y/b.mha\n",
    "list.json": json.dumps(["x/a.nii", {"image": "x/y/b.mha"}]),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_names_its_cases_from_its_own_folder(name, tmp_path):
    touch(tmp_path / "x/a.nii", tmp_path / "x/y/b.mha", tmp_path / "x/c.nii")
    (tmp_path / name).write_text(LISTS[name])
    cases = find_cases(tmp_path / name, tmp_path / "out")
    assert {c["name"]: c["mask"] for c in cases} == {"a.nii": "a_mask.nii.gz", "y/b.mha": "y/b_mask.nii.gz"}
    assert Path(cases[0]["image"]) == tmp_path / "x/a.nii"


def test_a_json_list_may_name_channels(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([["p_0000.nii", "p_0001.nii"]]))
    (case,) = find_cases(tmp_path / "list.json", tmp_path / "out", in_channels=2)
    assert case["mask"] == "p_mask.nii.gz"
    assert len(case["image"]) == 2


@pytest.mark.parametrize("content", ["{", "[3]", "[[]]", '{"a": 1}'])
def test_a_list_that_names_no_files_is_refused_with_its_path(content, tmp_path):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ValueError, match="list.json is no list of volumes"):
        find_cases(tmp_path / "list.json", tmp_path / "out")


def test_the_output_folder_is_left_out_of_the_search(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "out/a_mask.nii.gz")
    assert list(masks(tmp_path, tmp_path / "out")) == ["a.nii"]
    with pytest.raises(ValueError, match="pass another --output_dir"):
        find_cases(tmp_path, tmp_path)


def test_an_empty_or_missing_folder_is_named(tmp_path):
    touch(tmp_path / "notes.md")
    with pytest.raises(FileNotFoundError, match=f"dataset_dir {tmp_path} holds no volume"):
        find_cases(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="absent does not exist: pass --dataset_dir"):
        find_cases(tmp_path / "absent", tmp_path / "out")
