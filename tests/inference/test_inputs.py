"""Which files are cases, and that no two of them share a mask."""

import json
import os
import unicodedata
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


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("l.json", "{", "l.json is not valid JSON"),
        ("l.json", '["a.nii", 3]', "l.json, entry 2: it names no file"),
        ("l.json", "[[]]", "l.json, entry 1: it names no file"),
        ("l.json", '[{"label": "a.nii"}]', "l.json, entry 1: it names no file"),
        ("l.json", '{"images": []}', r"l.json must hold a list \[...\], it holds an object"),
        ("l.json", '{"training": []}', "l.json lists no case under 'training'"),
        ("l.csv", "id,image\n1,b.nii.gz\n2\n", "l.csv, line 3: 1 fields where the header has 2"),
        ("l.csv", "id,image\n1,b.nii.gz\n2,\n", "l.csv, line 3: it names no file"),
        ("l.csv", "image\nx, y.nii\n", "l.csv, line 2: 2 fields where the header has 1"),
        ("l.txt", "a.nii\nM\udcfcller.nii\n", "l.txt, line 2: this is no UTF-8 text"),
    ],
)
def test_a_list_that_names_no_files_is_refused_with_its_line_and_in_the_last_error(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(os.fsencode(content))
    with pytest.raises(ValueError, match=reason) as caught:
        find_cases(tmp_path / name, tmp_path / "out")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", LISTS)
def test_lists_are_read_whatever_program_wrote_them(name, encoding, tmp_path):
    touch(tmp_path / "x/a.nii", tmp_path / "x/y/b.mha")
    name_of_list = tmp_path / name.upper()
    name_of_list.write_bytes(LISTS[name].replace("\n", "\r\n").encode(encoding))
    assert list(masks(name_of_list, tmp_path / "out")) == ["a.nii", "y/b.mha"]


def test_a_list_that_leads_out_of_its_folder_never_leads_out_of_the_output(tmp_path):
    touch(tmp_path / "data/scans/a.nii.gz", tmp_path / "other/b.nii.gz")
    (tmp_path / "data/list.txt").write_text("scans/a.nii.gz\n../other/b.nii.gz\n../data/../../../../c.nii\n")
    cases = find_cases(tmp_path / "data/list.txt", tmp_path / "out")
    assert all(".." not in case["mask"].split("/") and ".." not in case["name"].split("/") for case in cases)
    assert len({case["mask"] for case in cases}) == 3
    assert [Path(case["image"]).is_file() for case in cases if "c.nii" not in case["name"]] == [True, True]
    (tmp_path / "data/list.txt").write_text("scans/a.nii.gz\n../other/b.nii.gz\n")
    assert masks(tmp_path / "data/list.txt", tmp_path / "out") == {
        "data/scans/a.nii.gz": "data/scans/a_mask.nii.gz",
        "other/b.nii.gz": "other/b_mask.nii.gz",
    }
    (tmp_path / "data/list.txt").write_text("../other/b.nii.gz\n")
    assert masks(tmp_path / "data/list.txt", tmp_path / "out") == {"b.nii.gz": "b_mask.nii.gz"}


def test_what_a_list_names_twice_is_taken_once(tmp_path, caplog):
    touch(tmp_path / "x/a.nii", tmp_path / "x/b.nii")
    (tmp_path / "list.txt").write_text(f"x/a.nii\nx/b.nii\n./x/a.nii\nx/../x/a.nii\n{tmp_path}/x/a.nii\n")
    assert list(masks(tmp_path / "list.txt", tmp_path / "out")) == ["a.nii", "b.nii"]
    assert caplog.text.count("more than once: it is taken once") == 3


@pytest.mark.parametrize("postfix", ["mask", "prediction"])
def test_the_names_of_masks_fit_a_file_system(postfix, tmp_path):
    names = ["x" * 248 + ".nii.gz", "x" * 247 + "y.nii.gz", "ü" * 124 + ".nii", "short.nii"]
    touch(*(tmp_path / "in" / name for name in names))
    found = masks(tmp_path / "in", tmp_path / "out", postfix=postfix)
    assert found["short.nii"] == f"short_{postfix}.nii.gz"
    assert len(set(found.values())) == len(names)
    for mask in found.values():
        assert mask.endswith(f"_{postfix}.nii.gz")
        touch(tmp_path / "out" / mask, tmp_path / "out" / mask.replace(".nii.gz", "_probabilities_0000.npy"))
    assert masks(tmp_path / "in", tmp_path / "out", postfix=postfix) == found


def test_names_that_are_no_text_reach_the_mask(tmp_path):
    (tmp_path / "in").mkdir()
    os.close(os.open(os.fsencode(tmp_path) + b"/in/M\xfc.nii.gz", os.O_CREAT))
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    assert os.fsencode(case["mask"]) == b"M\xfc_mask.nii.gz"


def test_one_accent_written_in_two_ways_gives_two_masks(tmp_path):
    touch(tmp_path / "\u00fc.nii", tmp_path / "u\u0308.nii")
    found = masks(tmp_path, tmp_path / "out")
    assert len({unicodedata.normalize("NFC", mask) for mask in found.values()}) == 2


def test_commas_spaces_and_quotes_in_paths_are_letters(tmp_path):
    folder = tmp_path / 'a, b\'s "c" $d @e %f'
    touch(folder / "x, y.nii.gz")
    assert masks(folder, tmp_path / "out") == {"x, y.nii.gz": "x, y_mask.nii.gz"}
    for name, content in (("l.csv", 'image\n"x, y.nii.gz"\n'), ("l.txt", "x, y.nii.gz\n")):
        (folder / name).write_text(content)
        assert masks(folder / name, tmp_path / "out") == {"x, y.nii.gz": "x, y_mask.nii.gz"}


def test_channels_and_a_file_of_their_name_are_two_cases(tmp_path):
    touch(*(tmp_path / n for n in ("p_0000.nii.gz", "p_0001.nii.gz", "p.nii.gz")))
    found = masks(tmp_path, tmp_path / "out", in_channels=2)
    assert len(found) == len(set(found.values())) == 2


def test_the_output_folder_is_left_out_of_the_search(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "out/a_mask.nii.gz")
    assert list(masks(tmp_path, tmp_path / "out")) == ["a.nii"]
    with pytest.raises(ValueError, match="pass another --output_dir"):
        find_cases(tmp_path, tmp_path)


def test_an_empty_or_missing_folder_is_named(tmp_path):
    touch(tmp_path / "notes.md")
    with pytest.raises(FileNotFoundError, match=f"dataset_dir {tmp_path} contains no volume"):
        find_cases(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="absent does not exist: name a folder"):
        find_cases(tmp_path / "absent", tmp_path / "out")


def test_of_a_data_set_in_a_known_layout_the_images_are_taken_never_the_labels(tmp_path: Path) -> None:
    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz"):
        (tmp_path / "nnunet" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nnunet" / name).touch()
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "nnunet/dataset.json").write_text(json.dumps(described))
    cases = find_cases(tmp_path / "nnunet", tmp_path / "out")
    assert [case["name"] for case in cases] == ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz"]


def test_of_a_bids_data_set_the_anatomy_is_taken_without_its_masks(tmp_path: Path) -> None:
    for name in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_mask.nii.gz", "sub-01/func/sub-01_bold.nii.gz"):
        (tmp_path / "bids" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bids" / name).touch()
    assert [case["name"] for case in find_cases(tmp_path / "bids", tmp_path / "out")] == [
        "sub-01/anat/sub-01_T1w.nii.gz"
    ]


def test_an_auto3dseg_datalist_gives_its_images(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.nii.gz").touch()
    content = {"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}], "testing": [{"image": "c.nii.gz"}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    assert [case["name"] for case in find_cases(tmp_path / "list.json", tmp_path / "out")] == ["a.nii.gz", "c.nii.gz"]
