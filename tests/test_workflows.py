"""The workflows as users start them: each config with the small overlay, on phantom studies."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from digar.data.datalists import labelled_cases
from digar.data.phantom_studies import write_lesions, write_studies
from digar.data.phantoms import LABELS, write_phantoms
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.engines import IterationEvents
from PIL import Image

from tests.conftest import HANGING, ROOT

META, LOGGING = str(ROOT / "configs/metadata.json"), str(ROOT / "configs/logging.conf")


def workflow(names: list[str], overlay: str, kind: str, run_id: str = "run", **options: object) -> ConfigWorkflow:
    files = [str(ROOT / "configs" / name) for name in names] + [overlay]
    return ConfigWorkflow(
        config_file=files,
        meta_file=META,
        logging_file=LOGGING,
        workflow_type=kind,
        run_id=run_id,
        bundle_root=str(ROOT),
        **options,
    )


def run(*arguments: object, **options: object) -> ConfigWorkflow:
    flow = workflow(*arguments, **options)
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow


def root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def train(task: Path, overlay: str, out: Path, **options: object) -> ConfigWorkflow:
    return run(
        ["train.json"],
        overlay,
        "training",
        "training",
        dataset_dir=str(task),
        output_dir=str(out),
        weights_file=str(out / "model.pt"),
        **options,
    )


@pytest.fixture(scope="module")
def trained(task: Path, small_overlay: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(task, small_overlay, out)
    return out


@pytest.fixture(scope="module")
def pretrained(task: Path, small_overlay: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    options = {"dataset_dir": str(task), "output_dir": str(out)}
    run(["pretrain.yaml"], small_overlay, "training", "pretraining", **options)
    return out


@pytest.mark.parametrize("kind", ["training", "evaluation", "inference"])
def test_all_required_properties_are_there(
    kind: str, task: Path, small_overlay: str, trained: Path, tmp_path: Path
) -> None:
    names = {
        "training": ["train.json"],
        "evaluation": ["train.json", "evaluate.json"],
        "inference": ["inference.json"],
    }[kind]
    folder = task / "imagesTs" if kind == "inference" else task
    flow = workflow(
        names,
        small_overlay,
        kind,
        dataset_dir=str(folder),
        weights_file=str(trained / "model.pt"),
        output_dir=str(tmp_path),  # beginning a training moves what stands there
    )
    flow.initialize()
    assert flow.check_properties() == []
    flow.finalize()


def test_training_leaves_weights_state_curves_and_pictures(trained: Path) -> None:
    weights = torch.load(trained / "model.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
    (state,) = (trained / "states").iterdir()
    assert set(torch.load(state, weights_only=True)) == {
        "network", "optimizer", "scheduler", "trainer", "best_weights", "samples_per_step", "decisive",
    }  # fmt: skip
    assert list((trained / "tensorboard").glob("events*"))
    with Image.open(trained / "pictures/validation_epoch_0001.png") as picture:
        assert picture.width > 300


def test_training_again_keeps_the_former_weights(task: Path, small_overlay: str, tmp_path: Path) -> None:
    train(task, small_overlay, tmp_path)
    former = (tmp_path / "model.pt").read_bytes()
    train(task, small_overlay, tmp_path, seed=5)
    kept = list((tmp_path / "former").glob("model_*.pt"))
    assert [file.read_bytes() for file in kept] == [former]
    assert (tmp_path / "model.pt").read_bytes() != former


def test_the_same_seed_trains_the_same_weights(task: Path, small_overlay: str, trained: Path, tmp_path: Path) -> None:
    train(task, small_overlay, tmp_path, num_workers=1)
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, tmp_path))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=1e-6, msg=name)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program runs after it."""


@pytest.mark.parametrize("config", ["train.json", "pretrain.yaml"])
def test_a_run_killed_within_an_epoch_and_resumed_ends_where_an_unbroken_one_does(
    config: str, task: Path, small_overlay: str, tmp_path: Path
) -> None:
    def make(folder: str, **options: object) -> ConfigWorkflow:
        if config == "train.json":
            options["network_def#dropout"] = 0.2
        flow = workflow(
            [config], small_overlay, "training", "run", max_epochs=2, batch_size=1, save_minutes=0, val_interval=2,
            dataset_dir=str(task), output_dir=str(tmp_path / folder), weights_file=str(tmp_path / folder / "model.pt"),
            **options,
        )  # fmt: skip
        flow.initialize()
        return flow

    def die(engine: Engine) -> None:
        if engine.state.iteration == 7:
            raise Killed

    unbroken = make("whole")
    unbroken.run()
    killed = make("parts")
    killed.trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, die)
    with pytest.raises(Killed):
        killed.run()
    resumed = make("parts", resume="auto")
    steps: list[int] = []
    resumed.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.state.iteration))
    resumed.run()
    assert steps == [7, 8]
    assert resumed.trainer.state.iteration == unbroken.trainer.state.iteration == 8
    for name, tensor in unbroken.network_def.state_dict().items():
        assert torch.equal(tensor, resumed.network_def.state_dict()[name]), name


def test_resuming_with_another_length_is_refused(task: Path, small_overlay: str, trained: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(task, small_overlay, trained, max_epochs=9, resume=True)
    assert "resume with --max_epochs 1 instead of 9" in str(root_cause(caught.value))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fold": 1}, "training cases (4 then, 4 now; without"),
        ({"spacing": [9.0, 9.0, 9.0]}, "spacing ([8.0, 8.0, 8.0] then, [9.0, 9.0, 9.0] now)"),
        ({"seed": 3}, "samples.seed (0 then, 3 now)"),
        ({"train#augment#noise#std": 0.3}, "std (0.05 then, 0.3 now)"),
    ],
)
def test_resuming_another_training_is_refused_by_what_differs(
    options: dict, named: str, task: Path, small_overlay: str, trained: Path
) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(task, small_overlay, trained, resume=True, **options)
    message = str(root_cause(caught.value))
    assert "belongs to another training; these differ: " in message
    assert named in message


def test_resuming_on_other_images_of_the_same_names_is_refused(
    task: Path, small_overlay: str, trained: Path, tmp_path: Path
) -> None:
    write_phantoms(tmp_path / "task", num_training=5, num_test=0, seed=9)
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path / "task", small_overlay, trained, resume=True)
    assert "these differ: training cases (4 then, 4 now; without" in str(root_cause(caught.value))


def test_data_that_moved_as_a_whole_are_the_same(task: Path, small_overlay: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(task, tmp_path / "moved")
    shutil.copytree(trained, tmp_path / "out")
    train(tmp_path / "moved", small_overlay, tmp_path / "out", resume=True, num_workers=1)
    assert (tmp_path / "out/model.pt").read_bytes() == (trained / "model.pt").read_bytes()


def test_resuming_with_other_batches_is_refused(task: Path, small_overlay: str, trained: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(task, small_overlay, trained, batch_size=1, resume=True)
    assert "this one has 1: resume with --batch_size 2 for 1 process" in str(root_cause(caught.value))


def test_without_validation_cases_the_last_weights_are_written(task: Path, small_overlay: str, tmp_path: Path) -> None:
    train(task, small_overlay, tmp_path, validation_share=0)
    assert (tmp_path / "model.pt").is_file()


@pytest.mark.parametrize("run_id", ["run", ""], ids=["run", "what 3D Slicer sends"])
def test_a_training_on_given_cases_runs_once(run_id: str, task: Path, small_overlay: str, tmp_path: Path) -> None:
    """As MONAI Label starts it: lists of cases and no task folder; an empty run_id is the whole config."""
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"former")
    monai.bundle.run(
        run_id=run_id,
        meta_file=META,
        config_file=[str(ROOT / "configs/train.json"), small_overlay],
        bundle_root=str(ROOT),
        output_dir=str(tmp_path),
        weights_file=str(weights),
        **{
            "train#dataset#data": labelled_cases(task)[:3],
            "validate#dataset#data": [],
            "train#trainer#max_epochs": 2,
        },
    )
    assert [file.read_bytes() for file in (tmp_path / "former").iterdir()] == [b"former"]
    state = torch.load(tmp_path / "states" / "step_0000004.pt", weights_only=True)["trainer"]
    assert (state["epoch_length"], state["max_epochs"]) == (2, 2)
    assert torch.load(weights, weights_only=True)


def test_the_learning_rate_ends_with_the_trainer(task: Path, small_overlay: str, tmp_path: Path) -> None:
    options = {"dataset_dir": str(task), "output_dir": str(tmp_path), "train#trainer#max_epochs": 7}
    flow = workflow(["train.json"], small_overlay, "training", "training", **options)
    flow.initialize()
    assert flow.parser.get_parsed_content("total_steps") == 7 * 2
    flow.finalize()


def test_pretraining_writes_weights_that_training_starts_from(
    task: Path, small_overlay: str, pretrained: Path, tmp_path: Path
) -> None:
    assert list((pretrained / "pictures").glob("prediction_epoch_0001.png"))
    flow = workflow(
        ["train.json"], small_overlay, "training", "training",
        dataset_dir=str(task), output_dir=str(tmp_path), pretrained=str(pretrained / "pretrained.pt"),
    )  # fmt: skip
    flow.initialize()
    started = flow.network_def.backbone.state_dict()
    source = torch.load(pretrained / "pretrained.pt", weights_only=True)
    compared = 0
    for name, tensor in started.items():
        if not name.endswith("gate.logit"):
            torch.testing.assert_close(tensor.cpu(), source[f"backbone.{name}"])
            compared += 1
    assert compared > 10
    flow.finalize()


def test_pretraining_with_published_slabs_runs(task: Path, small_overlay: str, tmp_path: Path) -> None:
    options = {"dataset_dir": str(task / "imagesTs"), "output_dir": str(tmp_path), "slab_offset": 2}
    run(["pretrain.yaml"], small_overlay, "training", "pretraining", validation_share=0.5, **options)
    assert (tmp_path / "pretrained.pt").is_file()


def test_pretraining_mixes_all_kinds_in_volume_order_and_logs_each(
    task: Path, small_overlay: str, tmp_path: Path
) -> None:
    write_studies(tmp_path / "studies", 5)
    missing = min((tmp_path / "studies").rglob("*-t1c.nii.gz"))
    missing.unlink()
    table = write_lesions(tmp_path / "lesions", 6)
    flow = run(
        ["pretrain.yaml"], small_overlay, "training", "pretraining",
        dataset_dir=str(task), studies_dir=str(tmp_path / "studies"), lesion_table=str(table),
        output_dir=str(tmp_path), sample_size=[8, 8, 16], patch_size=2, token_order="volume", slab_offset=2,
        validation_share=0.4, samples_per_epoch=12,
    )  # fmt: skip
    names = {f"{loss}/{kind}" for loss in ("train_loss", "val_loss") for kind in ("spatial", "contrast", "semantic")}
    metrics = {**flow.trainer.state.metrics, **flow.evaluator.state.metrics}
    assert names <= set(metrics)
    assert set(metrics) >= {"train_loss_not_copied", "val_loss_not_copied", "val_loss"}
    rows = (tmp_path / "unreadable.csv").read_text().splitlines()
    assert rows == ["path,reason", f"{missing.parent},it has 0 files of t1c instead of one"]
    assert (tmp_path / "pretrained.pt").is_file()


def test_a_scan_that_cannot_be_read_is_reported_and_pretraining_goes_on(
    task: Path, small_overlay: str, tmp_path: Path
) -> None:
    shutil.copytree(task / "imagesTr", tmp_path / "scans")
    (tmp_path / "scans/broken.nii.gz").write_bytes(b"no image")
    options = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path), "max_unreadable_share": 0.2}
    run(["pretrain.yaml"], small_overlay, "training", "pretraining", **options)
    _, row = (tmp_path / "unreadable.csv").read_text().splitlines()
    assert row.startswith(f"{tmp_path / 'scans/broken.nii.gz'},cannot be read")
    options["max_unreadable_share"] = 0.1
    with pytest.raises(RuntimeError) as caught:
        run(["pretrain.yaml"], small_overlay, "training", "pretraining", **options)
    assert "1 of 6 scans cannot be used" in str(root_cause(caught.value))


def test_evaluation_writes_scores_by_name_and_the_worst_cases(
    task: Path, small_overlay: str, trained: Path, tmp_path: Path
) -> None:
    options = {"dataset_dir": str(task), "weights_file": str(trained / "model.pt"), "output_dir": str(tmp_path)}
    flow = run(["train.json", "evaluate.json"], small_overlay, "evaluation", part="all", **options)
    with (tmp_path / "cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["case"] for row in rows}) == 5
    assert [row["label"] for row in rows[:7]] == [*list(LABELS)[1:], "mean"]
    dice = [float(row["dice"]) for row in rows if row["label"] == "mean"]
    assert flow.evaluator.state.metrics["mean_dice"] == pytest.approx(np.mean(dice), abs=1e-5)
    assert (tmp_path / "summary.csv").is_file()
    assert (tmp_path / "worst.png").is_file()


def test_inference_writes_masks_in_the_grid_of_each_image(
    task: Path, small_overlay: str, trained: Path, tmp_path: Path
) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    (images / "ward").mkdir(parents=True)
    files = sorted((task / "imagesTs").glob("*.nii.gz"))
    shutil.copy(files[0], images)
    shutil.copy(files[1], images / "ward")
    before = {file: file.read_bytes() for file in images.rglob("*.nii.gz")}
    options = {"dataset_dir": str(images), "weights_file": str(trained / "model.pt"), "output_dir": str(masks)}
    run(["inference.json"], small_overlay, "inference", **options)
    for file, content in before.items():
        relative = file.relative_to(images)
        image = nib.load(file)
        mask = nib.load(masks / relative.parent / relative.name.replace(".nii.gz", "_mask.nii.gz"))
        assert mask.shape == image.shape
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
        assert file.read_bytes() == content
    assert not list(masks.rglob("*.tmp*"))


@pytest.mark.parametrize(
    "names", [["inference.json"], ["train.json", "evaluate.json"]], ids=["inference", "evaluation"]
)
def test_without_weights_nothing_runs(names: list[str], task: Path, small_overlay: str, tmp_path: Path) -> None:
    missing = tmp_path / "model.pt"
    options = {"dataset_dir": str(task), "weights_file": str(missing), "output_dir": str(tmp_path / "out")}
    with pytest.raises(RuntimeError) as caught:
        run(names, small_overlay, "inference", **options)
    assert str(missing) in str(root_cause(caught.value))
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_weights_of_another_network_are_refused(task: Path, small_overlay: str, trained: Path, tmp_path: Path) -> None:
    options = {"weights_file": str(trained / "model.pt"), "output_dir": str(tmp_path), "num_classes": 3}
    with pytest.raises(RuntimeError) as caught:
        run(["inference.json"], small_overlay, "inference", dataset_dir=str(task / "imagesTs"), **options)
    assert "trained for another task than this run has" in str(root_cause(caught.value))


def test_a_wrong_number_of_classes_is_refused_before_training(task: Path, small_overlay: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(task, small_overlay, tmp_path, num_classes=3)
    assert "pass --num_classes 7" in str(root_cause(caught.value))
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.slow
def test_a_mistyped_option_is_refused_on_the_command_line(small_overlay: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json",
        "--dataset_dri", str(tmp_path),
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1].endswith("did you mean --dataset_dir?")


def run_in_two_processes(*arguments: str) -> None:
    """The bundle's command under torchrun; it must end with 0. Processes that wait for each other say where."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
    try:
        _, said = process.communicate(timeout=HANGING)
    except subprocess.TimeoutExpired:
        subprocess.run(["pkill", "-ABRT", "-P", str(process.pid)], check=False)  # the stack of each goes to stderr
        _, said = process.communicate()
    assert process.returncode == 0, said[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["train.json", "pretrain.yaml"])
def test_two_processes_train_on_one_machine(config: str, task: Path, small_overlay: str, tmp_path: Path) -> None:
    run_in_two_processes(
        "pretraining" if config == "pretrain.yaml" else "training",
        "--config_file", f"['configs/{config}','configs/multi_gpu_train.json','{small_overlay}']",
        "--dataset_dir", str(task), "--output_dir", str(tmp_path), "--weights_file", str(tmp_path / "model.pt"),
        "--validation_share", "0.4",
    )  # fmt: skip
    assert (tmp_path / "model.pt").is_file()
    assert not (tmp_path / "former").exists()
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in weights)


@pytest.mark.slow
def test_two_processes_evaluate_into_one_table(task: Path, small_overlay: str, trained: Path, tmp_path: Path) -> None:
    run_in_two_processes(
        "--config_file",
        f"['configs/train.json','configs/evaluate.json','configs/multi_gpu_train.json','{small_overlay}']",
        "--dataset_dir", str(task), "--output_dir", str(tmp_path), "--weights_file", str(trained / "model.pt"),
        "--part", "all",
    )  # fmt: skip
    with (tmp_path / "cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows if row["label"] == "mean"] == [f"phantom_{n:05d}" for n in range(5)]
