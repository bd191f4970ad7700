"""The task that is derived from data: what follows from spacing, size, channels, modality and labels."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from digar.data.phantoms import write_phantoms
from digar.data.planning import (
    BATCH_SIZE,
    PRETRAINING_BATCH_SIZE,
    choose_crop,
    choose_epochs,
    choose_patch,
    plan,
    step_memory,
    target_spacing,
)
from digar.data.task import Task, read_task
from digar.networks import SegmentationNetwork
from monai.bundle import ConfigParser

from tests.test_workflows import run

ROOT = Path(__file__).resolve().parents[2]
AFFINE = np.diag([1.0, 1.0, 2.5, 1.0])


def write_task(
    folder: Path,
    modalities: tuple[str, ...] = ("T1", "T2", "FLAIR"),
    labels: tuple[str, ...] = ("background", "oedema", "core"),
    shape: tuple[int, int, int] = (20, 24, 8),
    num_cases: int = 3,
    affine: np.ndarray = AFFINE,
) -> Path:
    """A task of co-registered contrasts as four-axis files: a bright box is label 1, its middle label 2."""
    rng = np.random.default_rng(0)
    entries = []
    for index in range(num_cases):
        label = np.zeros(shape, np.uint8)
        label[4:12, 6:16, 2:6] = 1
        label[6:9, 8:12, 3:5] = 2
        channels = [100.0 * (1 + c) * (1.0 + label) + rng.normal(0, 5, shape) for c in range(len(modalities))]
        image = np.stack(channels, axis=-1) if len(modalities) > 1 else channels[0]
        entry = {}
        for kind, volume in (("image", image.astype(np.float32)), ("label", label)):
            entry[kind] = f"./{kind}sTr/case_{index}.nii.gz"
            (folder / f"{kind}sTr").mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(volume, affine), folder / entry[kind])
        entries.append(entry)
    description = {
        "name": "Boxes",
        "modality": {str(i): name for i, name in enumerate(modalities)},
        "labels": {str(i): name for i, name in enumerate(labels)},
        "training": entries,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def derive(data: Path, output: Path, **options: object) -> Task:
    plan(data, output, **options)
    return read_task(output)


def describe_as(task: Path, **description: object) -> Path:
    """Change what a task's ``dataset.json`` says."""
    file = task / "dataset.json"
    content = {**json.loads(file.read_text()), **description}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return task


# What is derived


def test_contrasts_become_channels_scaled_each_by_its_own_percentiles(tmp_path):
    task = derive(write_task(tmp_path / "task"), tmp_path / "task.yaml")
    assert task.channels == ("T1", "T2", "FLAIR")
    assert task.labels == {1: "oedema", 2: "core"}
    assert task.spacing == (1.0, 1.0, 2.5)
    assert task.intensity == "percentiles"


def test_ct_gets_the_window_of_its_labelled_voxels(tmp_path):
    low, high = derive(write_task(tmp_path / "task", modalities=("CT",)), tmp_path / "task.yaml").intensity
    assert low == pytest.approx(188, abs=4)  # 200 in label 1, minus 2.6 deviations of 5
    assert high == pytest.approx(307, abs=4)  # 300 in label 2, plus 1.5 deviations: it is 24 of 320 voxels


def test_axes_are_those_that_the_workflows_turn_images_to(tmp_path):
    turned = np.array([[0, 0, 2.5, 0], [1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])  # file axes run A, I, R
    assert derive(write_task(tmp_path / "task", affine=turned), tmp_path / "task.yaml").spacing == (2.5, 1.0, 1.0)


def test_the_crop_and_patch_build_a_network(tmp_path):
    task = derive(write_task(tmp_path / "task"), tmp_path / "task.yaml")
    network = SegmentationNetwork(task.crop, task.patch, 3, 3, size="tiny", attention="local+grid", dilation=2)
    assert network(torch.zeros(1, 3, *task.crop)).shape[2:] == task.crop


def test_a_given_spacing_is_taken(tmp_path):
    task = write_task(tmp_path / "task")
    assert derive(task, tmp_path / "a.yaml", spacing=[1.5]).spacing == (1.5, 1.5, 1.5)
    assert derive(task, tmp_path / "b.yaml", spacing=[1, 2, 3]).spacing == (1, 2, 3)
    with pytest.raises(ValueError, match="must be one or three numbers above 0"):
        plan(task, tmp_path / "c.yaml", spacing=[1, 2])


def test_a_thick_axis_is_not_resampled_to_its_thickest(tmp_path):
    spacings = np.array([[0.8, 0.8, z] for z in (3.0, 4.0, 5.0, 5.0, 6.0)])
    assert target_spacing(spacings)[0] == [0.8, 0.8, pytest.approx(3.4)]
    assert target_spacing(spacings / [1, 1, 2.5])[0] == [0.8, 0.8, pytest.approx(2.0)]  # not thick: the median


@pytest.mark.parametrize(
    ("spacing", "patch"),
    [([1, 1, 1], [8, 8, 8]), ([1, 1, 2.2], [8, 8, 4]), ([0.6, 0.6, 3.6], [8, 8, 1]), ([5, 0.8, 0.8], [1, 8, 8])],
)
def test_a_patch_is_about_as_long_on_every_axis(spacing, patch):
    assert choose_patch(spacing)[0] == patch


@pytest.mark.parametrize("patch", [[4, 4, 4], [4, 4, 2], [8, 8, 1]])
def test_a_crop_of_large_scans_fits_the_memory_and_the_network(patch):
    sizes = np.array([[500, 400, 100], [512, 512, 120]])
    crop, reason = choose_crop(sizes, [0.8, 0.8, 2.5], patch, memory=4.0)
    assert all(n % (2 * p) == 0 for n, p in zip(crop, patch, strict=True))
    assert 3 < step_memory(crop, patch) <= 4
    assert "of a median image" in reason


def test_a_crop_of_small_images_covers_the_largest():
    crop, reason = choose_crop(np.array([[31, 40, 26], [43, 58, 47]]), [1, 1, 1], [4, 4, 4], memory=4.0)
    assert crop == [48, 64, 48]
    assert "the largest image fits" in reason


def test_too_little_memory_is_refused():
    with pytest.raises(ValueError, match="pass a larger --memory"):
        choose_crop(np.array([[100, 100, 100]]), [1, 1, 1], [4, 4, 4], memory=1e-5)


def test_scans_that_exceed_the_cache_are_cached_in_part(tmp_path):
    task = write_task(tmp_path / "task")
    whole = 3 * 20 * 24 * 8 * 4 * 4 / 2**30
    assert derive(task, tmp_path / "a.yaml").training.cache_rate == 1.0
    assert derive(task, tmp_path / "b.yaml", cache=whole / 2).training.cache_rate == 0.5


@pytest.mark.parametrize(
    ("num_cases", "epochs", "steps"),
    [(1, 1000, 1000), (5, 1000, 2000), (20, 380, 3040), (80, 100, 3200), (1000, 20, 8000)],
)
def test_few_cases_are_seen_more_often(num_cases, epochs, steps):
    """3000 steps of two crops at least, 1000 epochs at most."""
    assert choose_epochs(num_cases, 2, 0.2 if num_cases > 1 else 0.0) == (epochs, steps)


def test_what_planning_counts_on_is_what_the_trainings_do():
    configs = [ConfigParser.load_config_file(str(ROOT / "configs" / name)) for name in ("train.json", "pretrain.yaml")]
    assert [config["batch_size"] for config in configs] == [BATCH_SIZE, PRETRAINING_BATCH_SIZE]


def test_one_labelled_case_trains_without_validation(tmp_path):
    training = derive(write_task(tmp_path / "task", num_cases=1), tmp_path / "task.yaml").training
    assert (training.validation_share, training.epochs) == (0, 1000)


# Labels


def test_labels_go_by_their_number_whatever_their_order(tmp_path):
    names = {"0": "background", "2": "core", "1": "oedema"}
    task = describe_as(write_task(tmp_path / "task"), labels=names)
    assert list(derive(task, tmp_path / "task.yaml").labels.items()) == [(1, "oedema"), (2, "core")]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"1": "organ", "2": "lesion"}, {1: "organ", 2: "lesion"}),
        ({"0": "background"}, {1: "label 1", 2: "label 2"}),
        ({}, {1: "label 1", 2: "label 2"}),
        (None, {1: "label 1", 2: "label 2"}),
        ({"1": "organ", "2": "lesion", "4": "rim"}, {1: "organ", 2: "lesion", 4: "rim"}),
    ],
    ids=["no background", "background alone", "none", "no labels", "a gap"],
)
def test_a_task_that_names_its_labels_in_part_works(labels, found, tmp_path):
    task = describe_as(write_task(tmp_path / "task"), labels=labels)
    assert derive(task, tmp_path / "task.yaml").labels == found


def test_a_value_that_the_data_do_not_name_is_refused_with_its_file(tmp_path):
    task = describe_as(write_task(tmp_path / "task"), labels={"0": "background", "1": "oedema"})
    message = r"case_0.nii.gz holds the value 2, which the data do not name \(they name 1 oedema\): correct the label"
    with pytest.raises(ValueError, match=message):
        plan(task, tmp_path / "task.yaml")


def test_a_class_that_never_occurs_and_empty_labels_are_told(tmp_path):
    task = write_task(tmp_path / "task", labels=("background", "oedema", "core", "cyst"))
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 8), np.uint8), AFFINE), task / "labelsTr/case_1.nii.gz")
    lines = plan(task, tmp_path / "task.yaml").lines
    assert "WARNING: label 3 (cyst) occurs in no case: it cannot be learned" in lines
    assert "WARNING: 1 of 3 cases contain no label at all" in lines
    assert "# WARNING: label 3 (cyst)" in (tmp_path / "task.yaml").read_text()


def test_labels_of_background_alone_are_told_or_refused(tmp_path):
    task = write_task(tmp_path / "task")
    for index in range(3):
        nib.save(nib.Nifti1Image(np.zeros((20, 24, 8), np.uint8), AFFINE), task / f"labelsTr/case_{index}.nii.gz")
    lines = plan(task, tmp_path / "task.yaml").lines
    assert "WARNING: all labels contain only background: nothing can be learned from them" in lines
    with pytest.raises(ValueError, match="all labels of .* contain only background: there is nothing to learn"):
        plan(describe_as(task, labels={}), tmp_path / "other.yaml")


# Scans without labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 scans in a plain folder."""
    task = tmp_path_factory.mktemp("scans") / "task"
    write_phantoms(task, num_training=1, num_test=15, seed=1)
    return task / "imagesTs"


def test_a_folder_of_few_scans_gets_a_task_with_enough_steps(folder, tmp_path):
    task, steps, lines = plan(folder, tmp_path / "task.yaml")
    assert task == read_task(tmp_path / "task.yaml")
    assert (task.labels, steps) == ({}, 3000)
    assert task.training.pretraining_epochs * 3 == 3000  # 12 scans in batches of 4
    assert "none: this task is for pretraining" in (tmp_path / "task.yaml").read_text()


def test_a_task_without_labels_is_planned_for_pretraining(tmp_path):
    task = write_task(tmp_path / "task")
    images = [entry["image"] for entry in json.loads((task / "dataset.json").read_text())["training"]]
    lines = plan(describe_as(task, training=images), tmp_path / "task.yaml").lines
    assert any("digar pretrain" in line for line in lines)
    assert not any("digar train" in line for line in lines)
    assert read_task(tmp_path / "task.yaml").labels == {}


def test_scans_that_cannot_be_used_are_named(tmp_path):
    data = tmp_path / "scans"
    data.mkdir()
    (data / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no scan can be used:\n.*broken.nii.gz"):
        plan(data, tmp_path / "task.yaml")
    for name, shape in (("a", (8, 9, 10)), ("b", (8, 9, 10)), ("c", (8, 9, 10, 2))):
        nib.save(nib.Nifti1Image(np.random.default_rng(0).random(shape, np.float32), np.eye(4)), data / f"{name}.nii")
    lines = plan(data, tmp_path / "task.yaml").lines
    assert any("WARNING: cannot be used: " in line and "broken.nii.gz" in line for line in lines)
    assert "WARNING: 1 scans have another number of channels than 1: they are left out" in lines


# What is written and said


def test_every_key_of_the_task_has_its_reason(tmp_path):
    lines = plan(write_task(tmp_path / "task"), tmp_path / "task.yaml").lines
    text = (tmp_path / "task.yaml").read_text()
    assert text.startswith("# Written by planning")
    for key in ("channels", "labels", "spacing", "crop", "patch", "network", "intensity", "training"):
        assert f"\n{key}:" in text
        assert text[: text.index(f"\n{key}:")].rsplit("\n", 1)[-1].startswith("# ")
        assert any(line.startswith(f"{key}: ") for line in lines)


def test_a_task_that_exists_is_not_overwritten(tmp_path):
    (tmp_path / "task.yaml").write_text("mine")
    with pytest.raises(FileExistsError, match="perhaps edited"):
        plan(write_task(tmp_path / "task"), tmp_path / "task.yaml")
    assert (tmp_path / "task.yaml").read_text() == "mine"


def test_another_number_of_channels_is_refused_with_the_file(tmp_path):
    task = write_task(tmp_path / "task")
    odd = nib.Nifti1Image(np.random.default_rng(0).random((20, 24, 8, 2), np.float32), AFFINE)
    nib.save(odd, task / "imagesTr/case_2.nii.gz")
    with pytest.raises(ValueError, match=r"case_2.nii.gz has 2 channels, .*case_0.nii.gz has 3"):
        plan(task, tmp_path / "task.yaml")


def test_modalities_that_are_not_the_channels_are_refused(tmp_path):
    task = describe_as(write_task(tmp_path / "task"), modality={"0": "T1"})
    with pytest.raises(ValueError, match=r"names 1 channels \(T1\), the images have 3: correct one"):
        plan(task, tmp_path / "task.yaml")


# With it


@pytest.mark.parametrize("modalities", [("T1", "T2", "FLAIR"), ("CT",)], ids=["three channels", "CT"])
def test_train_evaluate_and_infer_take_the_task(modalities, tmp_path, monkeypatch):
    """The volumes are smaller than the crop, one of three labels is empty, and no name runs as code."""
    code = "$__import__('os').system('touch ran')"
    monkeypatch.chdir(tmp_path)
    data = write_task(tmp_path / "task", modalities=modalities, labels=("background", code, "@network"))
    describe_as(data, name=code)
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 8), np.uint8), AFFINE), data / "labelsTr/case_1.nii.gz")
    plan(data, tmp_path / "task.yaml")
    small = tmp_path / "small.json"
    small.write_text(json.dumps({"network_size": {"hidden_size": 24, "num_layers": 2, "num_heads": 2}}))

    def start(configs: list[str], kind: str, run_id: str, folder: Path, **options: object) -> None:
        run(configs, str(small), kind, run_id, dataset_dir=str(folder), **options)

    model, scores, masks = (str(tmp_path / name) for name in ("model", "scores", "masks"))
    options = {"task": str(tmp_path / "task.yaml"), "max_epochs": 2, "num_workers": 0, "output_dir": model}
    start(["train.json"], "training", "training", data, **options)
    written = read_task(tmp_path / "model/task.yaml")
    assert written.labels == {1: code, 2: "@network"}
    assert written.trained_with.images == 2
    assert written.trained_with.extent_mm == ((20, 20, 24), (20, 20, 24))
    start(["train.json", "evaluate.json"], "evaluation", "run", data, part="all", weights_file=model, output_dir=scores)
    start(["inference.json"], "inference", "run", data / "imagesTr", weights_file=model, output_dir=masks)
    with (tmp_path / "scores/cases.csv").open(newline="") as stream:
        rows = {(row["case"], row["label"]): row for row in csv.DictReader(stream)}
    (name,) = {label for case, label in rows if "system" in label}
    assert float(rows["case_0", name]["true_volume_ml"]) == pytest.approx((320 - 24) * 2.5 / 1000)
    assert rows["case_1", name]["empty"] in ("both", "truth")
    assert rows["case_1", name]["hd95_mm"] == ""
    assert json.loads((tmp_path / "masks/labels.json").read_text()) == {
        "0": "background",
        "1": code,
        "2": "@network",
    }
    mask = nib.load(tmp_path / "masks/case_0_mask.nii.gz")
    assert mask.shape == (20, 24, 8)
    np.testing.assert_allclose(mask.affine, AFFINE)
    assert not list(tmp_path.rglob("ran"))
