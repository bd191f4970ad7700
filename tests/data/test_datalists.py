"""Data lists: what is found, how it is split, and errors that name the file and what to do."""

import gzip
import json
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from digar.data.datalists import (
    check_cases,
    check_labels,
    image_files,
    label_names,
    label_subset,
    labelled_cases,
    labelled_split,
    scans,
    split_cases,
)
from digar.data.phantoms import LABELS as PHANTOMS
from digar.data.splits import part_of
from digar.volumes.checks import CheckedLoadImaged

NAMES = ("delta", "alpha", "echo", "bravo", "charlie", "hotel", "golf", "foxtrot")  # not in alphabetical order
CASES = [{"image": f"{number}.nii.gz"} for number in range(20)]
TRAINED = {1: "anterior", 2: "posterior"}
PHANTOM_LABELS = {value: name for name, value in PHANTOMS.items() if value}
READERS = pytest.mark.parametrize("read", [labelled_cases, scans, image_files])


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def entry(name: str) -> dict[str, str]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def write_description(folder: Path, **description: object) -> Path:
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A task whose listed files exist, but are empty."""
    for name in NAMES:
        touch(*(tmp_path / path for path in entry(name).values()))
    return write_description(tmp_path, training=[entry(name) for name in NAMES])


# Finding


def test_a_tasks_cases_come_in_the_order_of_its_description(listed):
    cases = labelled_cases(listed)
    assert [Path(case["image"]) for case in cases] == [listed / f"imagesTr/{name}.nii.gz" for name in NAMES]
    assert [Path(case["label"]) for case in cases] == [listed / f"labelsTr/{name}.nii.gz" for name in NAMES]


def test_images_of_nested_folders_are_found_and_other_files_left_out(tmp_path):
    images = [tmp_path / "a.nii", tmp_path / "ward/b.nii.gz", tmp_path / "ward/old/c.nii.gz"]
    touch(*images, tmp_path / "ward/report.txt", tmp_path / "ward/volume.nii.gz.part")
    assert image_files(tmp_path) == images
    assert [case["image"] for case in scans(tmp_path)] == [str(file) for file in images]


def test_other_formats_and_dicom_folders_are_found_too(tmp_path):
    files = [tmp_path / "a.mha", tmp_path / "b.NRRD", tmp_path / "c.nii"]
    touch(*files, tmp_path / "series/notes.txt", tmp_path / "DICOMDIR")
    for number in range(3):
        (tmp_path / f"series/{number}").write_bytes(bytes(128) + b"DICM")
    assert image_files(tmp_path) == [*files, tmp_path / "series"]


def test_files_that_macos_leaves_beside_images_are_ignored(tmp_path):
    touch(tmp_path / "x.nii.gz", tmp_path / "._x.nii.gz", tmp_path / "ward/._y.nii")
    assert image_files(tmp_path) == [tmp_path / "x.nii.gz"]


def test_a_folder_with_an_images_name_is_searched_and_is_no_image(tmp_path):
    touch(tmp_path / "flair.nii/flair.nii")  # as some published archives unpack
    assert image_files(tmp_path) == [tmp_path / "flair.nii/flair.nii"]


def test_the_scans_of_a_task_are_its_training_images_without_a_look_at_labels(tmp_path):
    touch(tmp_path / "imagesTr/b.nii.gz", tmp_path / "imagesTr/a.nii.gz", tmp_path / "imagesTr/unlisted.nii.gz")
    write_description(tmp_path, training=["./imagesTr/b.nii.gz", entry("a")])
    assert [Path(case["image"]).name for case in scans(tmp_path)] == ["a.nii.gz", "b.nii.gz"]  # labelled ones first


def test_one_seed_holds_out_the_same_cases_in_pretraining_and_fine_tuning(listed):
    for part in ("training", "validation"):
        pretraining = split_cases(scans(listed), 0.3, seed=4, part=part)
        fine_tuning = split_cases(labelled_cases(listed), 0.3, seed=4, part=part)
        assert [case["image"] for case in pretraining] == [case["image"] for case in fine_tuning]


def test_cases_that_only_their_folders_tell_apart_have_names_of_their_own(tmp_path):
    paths = [f"case{number}/{kind}.nii.gz" for number in (1, 2) for kind in ("image", "label")]
    touch(*(tmp_path / path for path in paths))
    entries = [{"image": f"case{n}/image.nii.gz", "label": f"case{n}/label.nii.gz"} for n in (1, 2)]
    write_description(tmp_path, training=entries)
    assert [case["name"] for case in labelled_cases(tmp_path)] == ["case1/image", "case2/image"]


# Errors in what is found


@READERS
def test_a_missing_folder_is_named(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/absent"):
        read(tmp_path / "absent")


@pytest.mark.parametrize("read", [labelled_cases, scans])
def test_a_volume_in_place_of_the_folder_is_refused(read, tmp_path):
    touch(tmp_path / "scan.nii.gz")
    with pytest.raises(ValueError, match=f"{tmp_path}/scan.nii.gz has none of the known layouts"):
        read(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("read", [labelled_cases, scans])
def test_a_broken_description_is_named_with_the_place_of_its_error(read, tmp_path):
    (tmp_path / "dataset.json").write_text('{\n"training": [,]\n}')
    with pytest.raises(ValueError, match=f"{tmp_path}/dataset.json is not valid JSON: .*line 2"):
        read(tmp_path)


@pytest.mark.parametrize("read", [labelled_cases, scans])
@pytest.mark.parametrize(
    ("description", "words"),
    [({}, "its dataset.json has no list 'training'"), ({"training": []}, "lists no case under 'training'")],
    ids=["no-list", "empty-list"],
)
def test_a_task_without_training_cases_is_refused(description, words, read, tmp_path):
    with pytest.raises(ValueError, match=words):
        read(write_description(tmp_path, **description))


@pytest.mark.parametrize("without", ["./imagesTr/b.nii.gz", {"image": "./imagesTr/b.nii.gz"}], ids=["path", "no-label"])
def test_an_image_listed_without_a_label_is_named(without, tmp_path):
    touch(*(tmp_path / path for name in "ab" for path in entry(name).values()))
    with pytest.raises(ValueError, match=f"{tmp_path}/dataset.json lists images without a label: .*b.nii.gz") as caught:
        labelled_cases(write_description(tmp_path, training=[entry("a"), without]))
    assert "a.nii.gz" not in str(caught.value)


def test_all_listed_files_that_are_missing_are_named(listed):
    missing = [listed / "imagesTr/delta.nii.gz", listed / "labelsTr/golf.nii.gz"]
    for file in missing:
        file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{listed} lists files that are missing") as caught:
        labelled_cases(listed)
    assert all(str(file) in str(caught.value) for file in missing)
    assert "alpha" not in str(caught.value)


def test_a_scan_that_a_task_lists_and_lacks_is_named(listed):
    (listed / "imagesTr/delta.nii.gz").unlink()
    (listed / "labelsTr/golf.nii.gz").unlink()  # not looked for
    with pytest.raises(FileNotFoundError, match=f"{listed} lists files.*/imagesTr/delta.nii.gz$"):
        scans(listed)


@pytest.mark.parametrize("read", [scans, image_files])
def test_a_folder_without_images_is_named_with_the_endings_searched(read, tmp_path):
    touch(tmp_path / "._x.nii.gz", tmp_path / "report.txt")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} contains no (image|volume) \(.*DICOM series\)"):
        read(tmp_path)


# The split


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.9])
def test_the_parts_are_disjoint_and_complete_and_keep_the_order(share):
    parts = [split_cases(CASES, share, 3, part) for part in ("training", "validation")]
    assert len(parts[1]) == round(20 * share)
    assert sorted(parts[0] + parts[1], key=CASES.index) == CASES
    for part in parts:
        assert part == sorted(part, key=CASES.index)


def test_a_seed_gives_one_split_and_another_seed_another():
    splits = [[case["image"] for case in split_cases(CASES, 0.3, seed, "validation")] for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2] != splits[3]


def test_a_small_share_holds_out_at_least_one_case():
    assert len(split_cases(CASES[:3], 0.01, 0, "validation")) == 1


def test_part_all_gives_every_case_even_a_single_one():
    assert split_cases(CASES, 0.2, 0, "all") == CASES
    assert split_cases(CASES[:1], 0.2, 0, "all") == CASES[:1]


@pytest.mark.parametrize(("number", "share"), [(1, 0.2), (10, 0.99), (0, 0.2), (0, 0.0)])
@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_split_that_leaves_nothing_to_train_on_is_refused_with_its_numbers(part, number, share):
    with pytest.raises(
        ValueError, match=f"{number} patients and validation_share {share} leave none.*--validation_share 0"
    ):
        split_cases(CASES[:number], share, 0, part)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
@pytest.mark.parametrize("part", ["training", "all"])
def test_a_validation_share_out_of_range_is_refused(part, share):
    with pytest.raises(ValueError, match=f"validation_share {share} must be at least 0 and below 1"):
        split_cases(CASES, share, 0, part)


@pytest.mark.parametrize(("number", "share"), [(20, 0.2), (195, 0.2), (7, 0.25), (11, 1 / 3)])
def test_over_the_folds_every_case_is_held_out_once(number, share):
    cases = [{"image": str(n)} for n in range(number)]
    folds = [split_cases(cases, share, 5, "validation", fold) for fold in range(round(1 / share))]
    assert sorted((case for fold in folds for case in fold), key=cases.index) == cases
    for fold, held_out in enumerate(folds):
        training = split_cases(cases, share, 5, "training", fold)
        assert sorted(training + held_out, key=cases.index) == cases


@pytest.mark.parametrize(("share", "fold"), [(0.2, 5), (0.3, 3), (0.2, -1), (0.0, 1)])
def test_a_fold_that_does_not_exist_is_refused(share, fold):
    with pytest.raises(ValueError, match=f"fold {fold}: with validation_share {share}"):
        split_cases(CASES, share, 0, "training", fold)


def test_an_unknown_part_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="part 'tests' must be training, validation, test or all"):
        split_cases(CASES, 0.2, 0, "tests")
    with pytest.raises(ValueError, match="part 'test': the data come without such a part"):
        split_cases(CASES, 0.2, 0, "test")


# Few labels


def test_smaller_shares_of_the_labels_are_parts_of_larger_ones():
    subsets = [{case["image"] for case in label_subset(CASES, ratio, 7)} for ratio in (0.05, 0.1, 0.3, 0.5, 1.0)]
    assert [len(subset) for subset in subsets] == [1, 2, 6, 10, 20]
    assert all(small < large for small, large in zip(subsets, subsets[1:], strict=False))


def test_another_draw_of_labels_keeps_the_same_cases_held_out(task):
    splits = [
        labelled_split(task, PHANTOM_LABELS, 0.4, 0, label_ratio=0.4, label_seed=label_seed) for label_seed in range(4)
    ]
    drawn = [case["image"] for split in splits for case in split["training"]]
    held_out = [case["image"] for case in splits[0]["validation"]]
    assert len(set(drawn)) > 1
    assert not set(drawn) & set(held_out)
    assert all(split["validation"] == splits[0]["validation"] for split in splits)
    assert [len(cases) for cases in splits[0].values()] == [1, 2, 5]


def test_an_unknown_part_is_refused_with_the_known_ones():
    split: dict = {"training": CASES, "validation": [], "all": CASES}
    assert part_of(split, "all") == CASES
    with pytest.raises(ValueError, match="part 'val' must be one of training, validation, all"):
        part_of(split, "val")


def test_a_label_subset_depends_on_its_seed_alone_and_keeps_the_order():
    subset = label_subset(CASES, 0.3, 7)
    assert subset == label_subset(CASES, 0.3, 7) == sorted(subset, key=CASES.index)
    assert subset != label_subset(CASES, 0.3, 8)


def test_the_smallest_label_ratio_leaves_one_case():
    assert len(label_subset(CASES, 0.001, 0)) == 1


@pytest.mark.parametrize("ratio", [0, -0.5, 1.01, float("nan")])
def test_a_label_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=f"label_ratio {ratio} must be above 0 and at most 1"):
        label_subset(CASES, ratio, 0)


# The check before a run

LABELS = {"0": "background", "1": "anterior", "2": "posterior"}


def labelled_data(folder: Path, **description: object) -> Path:
    """A task of one case whose files are empty."""
    touch(*(folder / path for path in entry("a").values()))
    return write_description(folder, training=[entry("a")], **description)


@pytest.mark.parametrize("description", [{"labels": LABELS}, {"labels": {}}, {}], ids=["fits", "empty", "none"])
def test_labels_that_fit_or_are_not_named_are_accepted(description, tmp_path):
    assert check_labels(labelled_data(tmp_path, **description), TRAINED) is None


@pytest.mark.parametrize("labels", [{1: "anterior"}, {1: "a", 2: "b", 3: "c"}])
def test_another_number_of_labels_is_refused_with_what_to_do(labels, tmp_path):
    labelled_data(tmp_path, labels=LABELS)
    message = (
        f"has the labels 1 anterior, 2 posterior, num_classes is {len(labels) + 1}: "
        f".*digar plan {tmp_path}.*pass --num_classes 3"
    )
    with pytest.raises(ValueError, match=message):
        check_labels(tmp_path, labels)


def test_swapped_names_are_refused(tmp_path):
    labelled_data(tmp_path, labels=LABELS)
    for labels in ({1: "posterior", 2: "anterior"}, {1: "Posterior", 2: "other"}):
        with pytest.raises(ValueError, match="has the labels 1 anterior, 2 posterior, the network 1 [Pp]osterior"):
            check_labels(tmp_path, labels)


def test_other_names_are_refused_where_nobody_chose_the_task_and_else_warned_of(tmp_path, caplog):
    labelled_data(tmp_path, labels=LABELS)
    labels = {1: "liver", 2: "tumour"}
    with pytest.raises(ValueError, match=r"the network 1 liver, 2 tumour: write a task for these data \(digar plan"):
        check_labels(tmp_path, labels, chosen=False)
    assert caplog.text == ""
    check_labels(tmp_path, labels)
    assert "1 anterior, 2 posterior, the task calls them 1 liver, 2 tumour: its names are taken" in caplog.text


def test_one_name_written_in_another_way_is_warned_of_and_labels_without_names_fit_any(tmp_path, caplog):
    labelled_data(tmp_path, labels=LABELS)
    check_labels(tmp_path, {1: "Anterior", 2: "back"}, chosen=False)
    assert "the task calls them 1 Anterior, 2 back" in caplog.text
    caplog.clear()
    check_labels(tmp_path, {1: "label 1", 2: "label 2"}, chosen=False)
    assert caplog.text == ""
    assert label_names(tmp_path, {1: "label 1", 2: "label 2"}) == ["anterior", "posterior"]


def test_a_network_without_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="names no labels: write a task"):
        check_labels(labelled_data(tmp_path, labels=LABELS), {})


def test_labels_go_by_their_number_not_by_their_order(tmp_path):
    names = {str(value): f"organ {value}" for value in range(13)}
    labelled_data(tmp_path, labels=dict(sorted(names.items())))  # "0", "1", "10", "11", "12", "2", ...
    labels = {value: f"organ {value}" for value in range(1, 13)}
    assert check_labels(tmp_path, labels) is None
    assert label_names(tmp_path, labels) == list(labels.values())


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return str(path)


def random_labels(shape: tuple[int, ...] = (6, 7, 8)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)


@pytest.fixture
def case(tmp_path: Path) -> dict[str, str]:
    """A case that is in order, for three classes."""
    image = write_volume(tmp_path / "image.nii.gz", np.arange(336, dtype=np.float32).reshape(6, 7, 8))
    return {"image": image, "label": write_volume(tmp_path / "label.nii.gz", random_labels())}


LOAD = CheckedLoadImaged(["image", "label"], num_classes=3)


def problem(case: dict[str, str]) -> str:
    with pytest.raises(ValueError, match="1 of 1 cases cannot be used:\n") as caught:
        check_cases([case], LOAD)
    return str(caught.value).splitlines()[1]


def test_cases_in_order_pass_the_check(case):
    assert [facts.labels for facts in check_cases([case, case], LOAD)] == [[1, 2], [1, 2]]


def test_whole_numbers_stored_as_floats_are_fine(case):
    write_volume(Path(case["label"]), random_labels().astype(np.float32))
    assert len(check_cases([case], LOAD)) == 1


def test_an_image_of_several_channels_is_fine(case):
    write_volume(Path(case["image"]), np.random.default_rng(0).random((6, 7, 8, 2)).astype(np.float32))
    assert len(check_cases([case], LOAD)) == 1


@pytest.mark.parametrize("broken", ["image", "label"])
def test_a_file_that_is_no_nifti_is_named(broken, case):
    Path(case[broken]).write_bytes(b"not a volume")
    assert problem(case).startswith(f"{case[broken]}: cannot be read")


@pytest.mark.parametrize("name", ["label.nii", "label.nii.gz"])
def test_a_truncated_label_is_named(name, case, tmp_path):
    label = tmp_path / name
    write_volume(label, random_labels())
    label.write_bytes(label.read_bytes()[:-60])
    assert problem({"image": case["image"], "label": str(label)}).startswith(f"{label}: cannot be read")


def test_a_label_damaged_inside_its_compressed_data_is_named(case):
    label = Path(case["label"])
    volume = nib.Nifti1Image(random_labels(), np.eye(4)).to_bytes()
    whole = gzip.compress(volume)
    middle = len(whole) // 2
    label.write_bytes(whole[:middle] + b"\xff" * 40 + whole[middle + 40 :])
    assert problem(case).startswith(f"{label}: cannot be read")


def test_a_missing_file_is_named(case):
    Path(case["label"]).unlink()
    assert problem(case) == f"{case['label']}: there is no such file"


def test_what_is_odd_about_an_image_is_logged(case, caplog):
    values = np.arange(336, dtype=np.float32).reshape(6, 7, 8)
    values[0, 0, :2] = np.nan
    write_volume(Path(case["image"]), values)
    check_cases([case], LOAD)
    assert f"{case['image']}: 2 NaN or infinite voxels were replaced by the smallest value" in caplog.text


def test_all_bad_cases_are_named_in_one_error(case, tmp_path):
    high = {"image": case["image"], "label": write_volume(tmp_path / "high.nii.gz", random_labels() + 5)}
    small = {"image": case["image"], "label": write_volume(tmp_path / "small.nii.gz", random_labels((2, 2, 2)))}
    with pytest.raises(ValueError, match="2 of 3 cases cannot be used:\n") as caught:
        check_cases([high, case, small], LOAD)
    assert str(caught.value).splitlines()[1:] == [problem(high), problem(small)]


def test_a_label_of_another_format_is_read(case):
    nrrd = Path(case["label"]).with_name("label.nrrd")
    image = itk.image_from_array(np.ascontiguousarray(np.asarray(nib.load(case["label"]).dataobj).T))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ nib.load(case["label"]).affine  # ITK counts towards left and posterior
    image.SetDirection(itk.matrix_from_array(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)))
    image.SetSpacing(np.linalg.norm(affine[:3, :3], axis=0))
    image.SetOrigin(affine[:3, 3])
    itk.imwrite(image, str(nrrd))
    assert check_cases([{**case, "label": str(nrrd)}], LOAD)[0].labels == [1, 2]


def test_no_case_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no labelled case"):
        check_cases([], LOAD)
