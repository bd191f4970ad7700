"""Layouts: each is recognised, read whole, and told apart; what is none of them is refused with the nearest."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.data.layouts import LAYOUTS, read_data


def volume(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), path)
    return str(path)


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def msd(folder: Path) -> Path:
    for kind in ("imagesTr", "labelsTr"):
        for name in "ab":
            volume(folder / kind / f"{name}.nii.gz")
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ba"]
    labels = {"0": "background", "10": "ten", "2": "two"}
    write_json(folder / "dataset.json", {"training": training, "labels": labels, "modality": {"1": "T2", "0": "T1"}})
    return folder


def nnunet(folder: Path) -> Path:
    for name in ("a", "b.2", "c"):
        for channel in range(2):
            volume(folder / f"imagesTr/{name}_{channel:04d}.nii.gz")
        volume(folder / f"labelsTr/{name}.nii.gz")
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}, "numTraining": 3}
    write_json(folder / "dataset.json", content | {"file_ending": ".nii.gz"})
    return folder


def auto3dseg(folder: Path) -> Path:
    for name in "abc":
        volume(folder / f"images/{name}.nii.gz")
        volume(folder / f"truth/{name}.nii.gz")
    training = [
        {"image": f"images/{n}.nii.gz", "label": f"truth/{n}.nii.gz", "fold": f}
        for n, f in zip("ab", (0, 1), strict=True)
    ]
    return write_json(folder / "list.json", {"training": training, "testing": [{"image": "images/c.nii.gz"}]})


def table(folder: Path) -> Path:
    for name in "abc":
        volume(folder / f"{name}.nii.gz")
        volume(folder / f"{name}_truth.nii.gz")
    rows = ["image,label,patient,part", "a.nii.gz,a_truth.nii.gz,p1,training", "b.nii.gz,b_truth.nii.gz,p2,validation"]
    (folder / "cases.csv").write_text("\n".join([*rows, "c.nii.gz,,p1,training"]))
    return folder / "cases.csv"


def pairs(folder: Path) -> Path:
    for place in ("one/a", "b"):
        volume(folder / f"images/{place}.nii.gz")
        volume(folder / f"labels/{place}_seg.nii")
    volume(folder / "images/c.nii.gz")
    return folder


def bids(folder: Path) -> Path:
    write_json(folder / "dataset_description.json", {"Name": "x"})
    for name in ("sub-01/anat/sub-01_T1w", "sub-02/ses-1/anat/sub-02_ses-1_T2w", "sub-02/func/sub-02_bold"):
        volume(folder / f"{name}.nii.gz")
    volume(folder / "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    volume(folder / "derivatives/prep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz")
    return folder


def scans(folder: Path) -> Path:
    for name in ("a", "deep/down/b"):
        volume(folder / f"{name}.nii.gz")
    return folder


WRITERS = {
    "MSD task": msd,
    "nnU-Net raw data set": nnunet,
    "Auto3DSeg datalist": auto3dseg,
    "table of cases": table,
    "folders of images and labels": pairs,
    "BIDS data set": bids,
    "folder of scans": scans,
}


def test_every_layout_is_written_here() -> None:
    assert list(WRITERS) == [layout.name for layout in LAYOUTS]


@pytest.mark.parametrize("name", WRITERS)
def test_a_layout_is_recognised_and_all_its_files_are_there(name: str, tmp_path: Path) -> None:
    data = read_data(WRITERS[name](tmp_path / "data"))
    assert data.layout == name
    cases = [*data.labelled, *data.unlabelled]
    paths = [p for case in cases for p in ([case["image"]] if isinstance(case["image"], str) else case["image"])]
    paths += [case["label"] for case in data.labelled]
    assert len(paths) == len(set(paths))
    assert all(Path(path).is_file() for path in paths)
    assert data.describe().startswith(name)


def test_a_task_keeps_its_order_and_gives_labels_and_channels_by_their_numbers(tmp_path: Path) -> None:
    data = read_data(msd(tmp_path))
    assert [Path(case["image"]).name for case in data.labelled] == ["b.nii.gz", "a.nii.gz"]
    assert data.labels == {2: "two", 10: "ten"}
    assert list(data.labels) == [2, 10]
    assert data.channels == ["T1", "T2"]


def test_nnunets_channels_are_one_image_and_its_splits_are_the_folds(tmp_path: Path) -> None:
    folder = nnunet(tmp_path / "nnUNet_raw/Dataset001_X")
    splits = [{"train": ["a", "b.2"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b.2"]}]
    write_json(tmp_path / "nnUNet_preprocessed/Dataset001_X/splits_final.json", splits)
    data = read_data(folder)
    assert [[Path(p).name for p in case["image"]] for case in data.labelled][1] == [
        "b.2_0000.nii.gz",
        "b.2_0001.nii.gz",
    ]
    assert data.channels == ["T1", "T2"]
    assert data.labels == {1: "tumour"}
    assert {Path(case["label"]).name: case["fold"] for case in data.labelled} == {
        "c.nii.gz": 0, "a.nii.gz": 1, "b.2.nii.gz": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "whole": [1, 2]}, "label whole is a region of the values"),
        ({"background": 0, "a": 1, "ignore": 2}, "the label 'ignore' .* is not supported"),
        ({"background": 0, "a": 1, "b": 1}, "labels a and b share the value 1"),
        ({"background": 0, "a": 1.5}, "label a has the value 1.5; a whole number"),
        ({"0": "background", "x": "y"}, "label x has the value 'y'; a whole number"),
        (["a"], "must be an object"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused_by_name(labels: object, words: str, tmp_path: Path) -> None:
    folder = nnunet(tmp_path)
    content = json.loads((folder / "dataset.json").read_text())
    write_json(folder / "dataset.json", content | {"labels": labels})
    with pytest.raises(ValueError, match=words):
        read_data(folder)


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    folder = nnunet(tmp_path)
    (folder / "imagesTr/a_0001.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"case a lacks a_0001.nii.gz"):
        read_data(folder)


def test_a_split_that_names_an_unknown_case_is_refused(tmp_path: Path) -> None:
    folder = nnunet(tmp_path)
    write_json(folder / "splits_final.json", [{"train": [], "val": ["z"]}])
    with pytest.raises(ValueError, match="fold 0 names a case that is not there: z"):
        read_data(folder)


def test_auto3dsegs_folds_and_test_images_are_kept_apart(tmp_path: Path) -> None:
    data = read_data(auto3dseg(tmp_path))
    assert [(Path(case["label"]).name, case["fold"]) for case in data.labelled] == [("a.nii.gz", 0), ("b.nii.gz", 1)]
    assert [Path(case["image"]).name for case in data.unlabelled] == ["c.nii.gz"]


def test_a_table_tells_patients_parts_and_channels(tmp_path: Path) -> None:
    data = read_data(table(tmp_path))
    assert [(case["patient"], case["part"]) for case in data.labelled] == [("p1", "training"), ("p2", "validation")]
    assert [case["patient"] for case in data.unlabelled] == ["p1"]
    (tmp_path / "two.csv").write_text("image_t1,image_t2,label\na.nii.gz,b.nii.gz,c.nii.gz\n")
    two = read_data(tmp_path / "two.csv")
    assert two.channels == ["t1", "t2"]
    assert two.labelled[0]["image"] == [str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")]


def test_a_json_list_is_a_table_too(tmp_path: Path) -> None:
    table(tmp_path)
    rows = [{"image": ["a.nii.gz", "b.nii.gz"], "label": "c.nii.gz", "patient": 7}]
    data = read_data(write_json(tmp_path / "cases.json", rows))
    assert data.layout == "table of cases"
    assert data.labelled[0]["patient"] == "7"


def test_pairs_match_by_name_in_their_sub_folder(tmp_path: Path) -> None:
    data = read_data(pairs(tmp_path))
    assert sorted(Path(case["label"]).name for case in data.labelled) == ["a_seg.nii", "b_seg.nii"]
    assert [Path(case["image"]).name for case in data.unlabelled] == ["c.nii.gz"]


@pytest.mark.parametrize(
    ("path", "words"), [("labels/z.nii.gz", "has no image of its name"), ("labels/b.nii.gz", "has two labels")]
)
def test_labels_without_an_image_of_their_own_are_refused(path: str, words: str, tmp_path: Path) -> None:
    folder = pairs(tmp_path)
    volume(folder / path)
    with pytest.raises(ValueError, match=words):
        read_data(folder)


def test_bids_gives_anatomy_by_subject_without_masks_and_the_derivatives_of_a_folder_of_theirs(tmp_path: Path) -> None:
    folder = bids(tmp_path)
    data = read_data(folder)
    assert [(case["patient"], Path(case["image"]).name) for case in data.unlabelled] == [
        ("sub-01", "sub-01_T1w.nii.gz"), ("sub-02", "sub-02_ses-1_T2w.nii.gz"),
    ]  # fmt: skip
    derived = read_data(folder / "derivatives/prep")
    assert [Path(case["image"]).name for case in derived.unlabelled] == ["sub-01_desc-preproc_T1w.nii.gz"]


@pytest.mark.parametrize("write", [msd, auto3dseg, table])
def test_a_listed_file_that_is_missing_is_named(write: Callable[[Path], Path], tmp_path: Path) -> None:
    place = write(tmp_path)
    gone = read_data(place).labelled[0]["label"]
    Path(gone).unlink()
    with pytest.raises(FileNotFoundError, match=f"lists files that are missing: {gone}"):
        read_data(place, labelled=True)
    assert read_data(place).labelled  # pretraining does not look for labels


def test_what_is_none_of_them_is_refused_with_the_nearest_and_what_is_missing(tmp_path: Path) -> None:
    folder = nnunet(tmp_path)
    content = json.loads((folder / "dataset.json").read_text())
    del content["file_ending"]
    write_json(folder / "dataset.json", content)
    with pytest.raises(ValueError, match="nearest is nnU-Net raw data set, but its dataset.json lacks file_ending"):
        read_data(folder, labelled=True)


def test_scans_alone_are_no_labelled_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has none of the known layouts"):
        read_data(scans(tmp_path), labelled=True)


def test_a_place_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent does not exist: name a folder"):
        read_data(tmp_path / "absent")
