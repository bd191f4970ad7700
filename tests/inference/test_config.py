"""``configs/inference.json`` as a command, as a library, in several processes, and as MONAI Label takes it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from digar.data.task import TrainedWith, write_task
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import Compose, Invertd, LoadImaged, SaveImaged

from tests.conftest import ROOT
from tests.inference.standins import blob, mask_of, write_volume

CONFIG = str(ROOT / "configs/inference.json")


@pytest.fixture(scope="module")
def weights(small_overlay: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights of the small network, said to be trained with mirrored images."""
    torch.manual_seed(0)
    parser = ConfigParser(ConfigParser.load_config_files([CONFIG, small_overlay]))
    parser["bundle_root"], parser["task"] = str(ROOT), str(ROOT / "models")
    network = parser.get_parsed_content("network_def")
    torch.nn.init.normal_(network.head.out.conv.conv.bias)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    task = dataclasses.replace(parser.get_parsed_content("run_task"), trained_with=TrainedWith(1, flips=[0, 1, 2]))
    write_task(task, path.with_name("task.yaml"))
    return str(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three volumes in odd orientations, 8 mm voxels as the small network's."""
    affine = np.array([[0, -8.0, 0, 9], [0, 0, 7.0, 1], [6.0, 0, 0, 3], [0, 0, 0, 1]])
    for number in range(3):
        write_volume(tmp_path / f"in/ward/{number}.nii.gz", blob((30, 20, 24), number), affine)
    return tmp_path / "in"


def workflow(images: Path, out: Path, weights: str, overlay: str, **options: object) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[CONFIG, overlay], workflow_type="inference", logging_file=False, bundle_root=str(ROOT),
        meta_file=str(ROOT / "configs/metadata.json"), dataset_dir=str(images), output_dir=str(out),
        weights_file=weights, **options,
    )  # fmt: skip


def run(*arguments: object, **options: object) -> ConfigWorkflow:
    flow = workflow(*arguments, **options)
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    return flow


def test_as_a_library_a_run_with_a_bad_image_returns(images, weights, small_overlay, tmp_path):
    (images / "bad.nii").write_text("no image")
    flow = run(images, tmp_path / "out", weights, small_overlay)
    assert flow.evaluator.failed == 1
    assert [(o.name, o.status) for o in flow.evaluator.outcomes] == [
        ("bad.nii", "failed"), *((f"ward/{n}.nii.gz", "done") for n in range(3)),
    ]  # fmt: skip


def test_every_option_of_the_masks_reaches_them(images, weights, small_overlay, tmp_path):
    plain = run(images, tmp_path / "plain", weights, small_overlay)
    options = {
        "label_mapping": {"1": 40}, "largest_component": True, "mirroring": [0], "overlap": 0.5, "thumbnails": False,
        "probabilities": True, "foreground": 0.05,
    }  # fmt: skip
    other = run(images, tmp_path / "other", weights, small_overlay, **options)
    assert other.evaluator.settings["mirroring"] == [0]
    assert 40 in other.evaluator.labels
    assert 1 not in np.unique(mask_of(tmp_path / "other/ward/0_mask.nii.gz"))
    assert (tmp_path / "other/ward/0_mask_probabilities.npy").is_file()
    assert all(outcome.thumbnail for outcome in plain.evaluator.outcomes)
    assert not any(outcome.thumbnail for outcome in other.evaluator.outcomes)
    assert "jpeg" not in (tmp_path / "other/report.html").read_text()


def as_monai_label(image: Path, weights: str, overlay: str) -> tuple[torch.Tensor, dict]:
    """The mask and the data at the end, by the steps of MONAI Label's stock app: each transform by itself."""
    config = ConfigParser(ConfigParser.load_config_files([CONFIG, overlay]))
    config.update({"bundle_root": str(ROOT), "device": "cpu", "weights_file": weights})

    def steps(name: str) -> list:
        composed = config.get_parsed_content(name, instantiate=True)
        assert isinstance(composed, Compose)
        return list(composed.transforms)

    data = {"image": str(image), "image_path": str(image), "device": "cpu", "model": "digar", "logging": "INFO"}
    pre, post = steps("preprocessing"), steps("postprocessing")
    for transform in pre:
        if isinstance(transform, LoadImaged):
            transform._loader.image_only = False
    for transform in pre:
        data = transform(data)
    network = config.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(weights, weights_only=True))
    inferer = config.get_parsed_content("inferer", instantiate=True)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None].to("cpu"), network.eval())[0]
    assert any(isinstance(transform, Invertd) for transform in post)
    for transform in post:
        if not isinstance(transform, SaveImaged):
            data = transform(data)
    return data["pred"], data


def test_monai_labels_stock_app_gets_the_mask_of_the_folder_run(images, weights, small_overlay, tmp_path):
    run(images, tmp_path / "out", weights, small_overlay)
    assert len(np.unique(mask_of(tmp_path / "out/ward/0_mask.nii.gz"))) > 1
    for number in range(3):
        image = images / f"ward/{number}.nii.gz"
        mask, data = as_monai_label(image, weights, small_overlay)
        np.testing.assert_array_equal(mask[0].numpy(), mask_of(tmp_path / f"out/ward/{number}_mask.nii.gz"))
        assert mask.dtype == torch.uint8
        np.testing.assert_allclose(data["image_meta_dict"]["affine"], nib.load(image).affine)
        assert tuple(data["image_meta_dict"]["spatial_shape"]) == tuple(mask.shape[1:])


def command(images: Path, out: Path, weights: str, overlay: str, *options: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [
        sys.executable, *launcher, "-m", "monai.bundle", "run", "--config_file", f"['{CONFIG}','{overlay}']",
        "--dataset_dir", str(images), "--output_dir", str(out), "--weights_file", weights, *options,
    ]  # fmt: skip


def start(words: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_commands_exit_code_tells_all_done_some_failed_or_could_not_run(images, weights, small_overlay, tmp_path):
    out = tmp_path / "out"
    done = start(command(images, out, weights, small_overlay))
    assert done.returncode == 0, done.stderr[-3000:]
    (images / "bad.nii").write_text("no image")
    assert start(command(images, out, weights, small_overlay)).returncode == 3
    refused = start(command(tmp_path / "absent", out, weights, small_overlay))
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].endswith("pass --dataset_dir with a folder, file or list")


@pytest.mark.slow
def test_two_processes_share_a_folder_without_doing_an_image_twice(images, weights, small_overlay, tmp_path):
    for number in range(3, 7):
        write_volume(images / f"{number}.nii", blob((16, 17, 18), number))
    (images / "bad.nii").write_text("no image")
    together, alone = tmp_path / "together", tmp_path / "alone"
    result = start(command(images, together, weights, small_overlay, processes=2))
    assert result.returncode == 1  # torchrun's own, for 3
    report = json.loads((together / "report.json").read_text())
    assert (report["run"]["done"], report["run"]["failed"], report["run"]["processes"]) == (7, 1, 2)
    lines = [
        json.loads(line)["name"]
        for file in together.glob("journal*.jsonl")
        for line in file.read_text().splitlines()
        if line
    ]
    assert len(list(together.glob("journal*.jsonl"))) == 2
    assert len(lines) == len(set(lines)) == 8
    run(images, alone, weights, small_overlay)
    for mask in alone.rglob("*_mask.nii.gz"):
        np.testing.assert_array_equal(mask_of(mask), mask_of(together / mask.relative_to(alone)))
