"""The config that is derived from a data set: what follows from spacing, size, channels, modality and labels."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from digar.data.planning import (
    BATCH_SIZE,
    DILATION,
    FINEST_PATCH,
    VALIDATION_SHARE,
    choose_crop,
    choose_epochs,
    choose_patch,
    fingerprint,
    main,
    step_memory,
    target_spacing,
)
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


def derive(task: Path, output: Path, **options: float) -> dict:
    fingerprint(task, output, **options)
    return ConfigParser.load_config_file(str(output))


# What is derived


def test_contrasts_become_channels_scaled_each_by_its_own_percentiles(tmp_path):
    config = derive(write_task(tmp_path / "task"), tmp_path / "my.yaml")
    assert (config["in_channels"], config["num_classes"]) == (3, 3)
    assert config["spacing"] == [1.0, 1.0, 2.5]
    assert config["intensity"]["_target_"] == "digar.volumes.intensities.ScaleByPercentilesd"


def test_ct_gets_the_window_of_its_labelled_voxels(tmp_path):
    task = write_task(tmp_path / "task", modalities=("CT",))
    scale = derive(task, tmp_path / "my.yaml")["intensity"]
    assert scale["_target_"] == "ScaleIntensityRanged"
    assert scale["a_min"] == pytest.approx(188, abs=4)  # 200 in label 1, minus 2.6 deviations of 5
    assert scale["a_max"] == pytest.approx(307, abs=4)  # 300 in label 2, plus 1.5 deviations: it is 24 of 320 voxels


def test_axes_are_those_that_the_workflows_turn_images_to(tmp_path):
    turned = np.array([[0, 0, 2.5, 0], [1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])  # file axes run A, I, R
    task = write_task(tmp_path / "task", affine=turned)
    config = derive(task, tmp_path / "my.yaml")
    assert config["spacing"] == [2.5, 1.0, 1.0]
    assert config["training_range"]["extent_mm"] == [[20.0, 20.0, 24.0], [20.0, 20.0, 24.0]]


def test_the_crop_and_patch_build_a_network(tmp_path):
    config = derive(write_task(tmp_path / "task"), tmp_path / "my.yaml")
    network = SegmentationNetwork(
        config["roi_size"], config["patch_size"], 3, 3, size="tiny", attention="local+grid", dilation=2
    )
    assert network(torch.zeros(1, 3, *config["roi_size"])).shape[2:] == tuple(config["roi_size"])


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
    assert derive(task, tmp_path / "a.yaml")["cache_rate"] == 1.0
    assert derive(task, tmp_path / "b.yaml", cache=whole / 2)["cache_rate"] == 0.5


@pytest.mark.parametrize(
    ("num_cases", "training", "epochs"), [(1, 1, 1000), (5, 4, 1000), (20, 16, 380), (80, 64, 100), (1000, 800, 20)]
)
def test_few_cases_are_seen_more_often(num_cases, training, epochs):
    """3000 steps of two crops at least, 1000 epochs at most, 20 of which end with a validation, the last one too."""
    steps = epochs * ((training + 1) // 2)
    assert choose_epochs(num_cases) == (epochs, epochs // 20, f"{training} training cases: {steps} steps")


def test_what_the_fingerprint_counts_on_is_what_training_does():
    train = json.loads((ROOT / "configs/train.json").read_text())
    settings = [train[name] for name in ("batch_size", "dilation", "patch_size", "validation_share")]
    assert settings == [BATCH_SIZE, DILATION, FINEST_PATCH, VALIDATION_SHARE]


def test_one_labelled_case_trains_without_validation(tmp_path):
    config = derive(write_task(tmp_path / "task", num_cases=1), tmp_path / "my.yaml")
    assert (config["validation_share"], config["max_epochs"], config["val_interval"]) == (0, 1000, 50)


# What is written and said


def test_the_config_is_yaml_in_which_every_setting_has_its_reason(tmp_path):
    main(["--dataset_dir", str(write_task(tmp_path / "task")), "--output", str(tmp_path / "my.yaml")])
    text = (tmp_path / "my.yaml").read_text()
    assert "# T1, T2, FLAIR\nin_channels: 3\n" in text
    assert "# background, oedema, core\nnum_classes: 3\n" in text
    assert text.startswith("# Boxes, derived by")
    assert isinstance(yaml.safe_load(text)["training_range"]["intensity_percentiles"][2][1][0], float)


def test_a_class_that_never_occurs_and_empty_labels_are_told(tmp_path):
    task = write_task(tmp_path / "task", labels=("background", "oedema", "core", "cyst"))
    empty = nib.Nifti1Image(np.zeros((20, 24, 8), np.uint8), AFFINE)
    nib.save(empty, task / "labelsTr/case_1.nii.gz")
    lines = fingerprint(task, tmp_path / "my.yaml")
    assert "WARNING: label cyst occurs in no case: it cannot be learned" in lines
    assert "WARNING: 1 of 3 cases hold no label at all" in lines
    assert "# WARNING: label cyst" in (tmp_path / "my.yaml").read_text()


def test_a_config_that_exists_is_not_overwritten(tmp_path):
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(FileExistsError, match="perhaps edited"):
        fingerprint(write_task(tmp_path / "task"), tmp_path / "my.yaml")
    assert (tmp_path / "my.yaml").read_text() == "mine"


def test_another_number_of_channels_is_refused_with_the_file(tmp_path):
    task = write_task(tmp_path / "task")
    odd = nib.Nifti1Image(np.random.default_rng(0).random((20, 24, 8, 2), np.float32), AFFINE)
    nib.save(odd, task / "imagesTr/case_2.nii.gz")
    with pytest.raises(ValueError, match=r"case_2.nii.gz has 2 channels, .*case_0.nii.gz has 3"):
        fingerprint(task, tmp_path / "my.yaml")


def test_modalities_that_are_not_the_channels_are_refused(tmp_path):
    task = write_task(tmp_path / "task")
    description = json.loads((task / "dataset.json").read_text())
    description["modality"] = {"0": "T1"}
    (task / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"names 1 modalities \(T1\), the images have 3 channels"):
        fingerprint(task, tmp_path / "my.yaml")


@pytest.mark.parametrize("labels", [{}, {"0": "background"}, {"1": "organ", "2": "lesion"}])
def test_labels_without_a_background_or_a_name_are_refused(labels, tmp_path):
    task = write_task(tmp_path / "task")
    description = json.loads((task / "dataset.json").read_text())
    description["labels"] = labels
    (task / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="must name its labels 0, 1"):
        fingerprint(task, tmp_path / "my.yaml")


# With it


@pytest.mark.parametrize("modalities", [("T1", "T2", "FLAIR"), ("CT",)], ids=["three channels", "CT"])
def test_train_evaluate_and_infer_take_the_config(modalities, tmp_path):
    """The volumes are smaller than the crop, and one of three labels is empty."""
    task = write_task(tmp_path / "task", modalities=modalities)
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 8), np.uint8), AFFINE), task / "labelsTr/case_1.nii.gz")
    fingerprint(task, tmp_path / "my.yaml")
    small = tmp_path / "small.json"
    small.write_text(json.dumps({"network_size": {"hidden_size": 24, "num_layers": 2, "num_heads": 2}}))
    weights = {"weights_file": str(tmp_path / "model.pt"), "output_dir": str(tmp_path / "out")}

    def start(configs: list[str], kind: str, run_id: str, folder: Path, **options: object) -> None:
        files = [*configs, str(tmp_path / "my.yaml")]
        run(files, str(small), kind, run_id, dataset_dir=str(folder), **weights, **options)

    start(["train.json"], "training", "training", task, max_epochs=1, num_workers=0)
    start(["train.json", "evaluate.json"], "evaluation", "run", task, part="all")
    start(["inference.json"], "inference", "run", task / "imagesTr")
    with (tmp_path / "out/cases.csv").open(newline="") as stream:
        rows = {(row["case"], row["label"]): row for row in csv.DictReader(stream)}
    assert float(rows["case_0", "oedema"]["true_volume_ml"]) == pytest.approx((320 - 24) * 2.5 / 1000)
    assert rows["case_1", "oedema"]["empty"] in ("both", "truth")
    assert rows["case_1", "oedema"]["hd95_mm"] == ""
    mask = nib.load(tmp_path / "out/case_0_mask.nii.gz")
    assert mask.shape == (20, 24, 8)
    np.testing.assert_allclose(mask.affine, AFFINE)
