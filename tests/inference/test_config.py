"""``configs/inference.json`` as a command, as a library, in several processes, and as MONAI Label takes it."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from digar.data.task import read_task, write_task
from digar.networks.description import settings_hash
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import Compose, Invertd, LoadImaged, SaveImaged

from tests.conftest import ROOT, random_model
from tests.dicom_files import write_series
from tests.inference.standins import blob, make_evaluator, mask_of, write_volume

CONFIG = str(ROOT / "configs/inference.json")


@pytest.fixture(scope="module")
def weights(small_overlay: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights of the small network."""
    return str(random_model(tmp_path_factory.mktemp("weights"), small_overlay))


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
    assert 40 in other.evaluator.record.labels
    assert 1 not in np.unique(mask_of(tmp_path / "other/ward/0_mask.nii.gz"))
    assert (tmp_path / "other/ward/0_mask_probabilities.npy").is_file()
    assert all(outcome.thumbnail for outcome in plain.evaluator.outcomes)
    assert not any(outcome.thumbnail for outcome in other.evaluator.outcomes)
    assert "jpeg" not in (tmp_path / "other/report.html").read_text()


def test_a_dicom_seg_of_every_series_is_one_option_away(weights, small_overlay, tmp_path):
    affine = np.diag([8.0, 7, 6, 1])
    write_series(tmp_path / "in/study/t1", blob((30, 20, 24)), affine)
    write_series(tmp_path / "in/study/t2", blob((30, 20, 24), 1), affine)
    write_volume(tmp_path / "in/plain.nii.gz", blob((30, 20, 24), 2), affine)
    flow = run(tmp_path / "in", tmp_path / "out", weights, small_overlay, dicom_seg=True)
    assert flow.evaluator.failed == 0
    assert [file.name for file in sorted(tmp_path.rglob("out/**/*.dcm"))] == ["t1_mask.dcm", "t2_mask.dcm"]
    assert pydicom.dcmread(tmp_path / "out/study/t1_mask.dcm").Modality == "SEG"
    measured = json.loads((tmp_path / "out/measurements.json").read_text())
    assert [image["series"].get("SeriesDescription") for image in measured["images"]] == [None, *["T1 phantom"] * 2]
    parser = ConfigParser(ConfigParser.load_config_files([CONFIG]))
    parser["bundle_root"] = str(ROOT)
    assert {value: code["modifier"][2] for value, code in parser.get_parsed_content("codes").items()} == {
        1: "Anterior",
        2: "Posterior",
    }


def test_dicom_seg_without_what_writes_it_says_what_to_install(monkeypatch, tmp_path):
    write_volume(tmp_path / "in/a.nii.gz")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install -r requirements-dicom.txt"):
        make_evaluator(tmp_path / "in", tmp_path / "out", dicom_seg=True)


OVERRIDES = {
    "intensity#rule": [0, 50],
    "attention": "none",
    "dilation": 4,
    "network_def#gate_init": 0.3,
    "network_def#dropout": 0.1,
    "overlap": 0.5,
    "inferer#overlap": 0.5,
    "mirroring": [0],
    "foreground": 0.05,
    "precision": "bfloat16",
    "spacing": [7.0, 7.0, 7.0],
    "nonfinite_share": 0.5,
    "volumes_4d": "each",
    "grid#spacing": [9.0, 8.0, 8.0],
    "load#nonfinite_share": 0.2,
    "largest_component": True,
    "label_mapping": {"1": 40},
    "postprocessing#transforms#2#mapping": {"2": 7},
    "probabilities": True,
    "ensemble": ["another"],
}


def resolved(images: Path, overlay: str, weights: str, **options: object) -> str:
    """The hash of what decides the masks, with these options."""
    torch.manual_seed(0)
    config = ConfigParser(ConfigParser.load_config_files([CONFIG, overlay]))
    config.update({"bundle_root": str(ROOT), "dataset_dir": str(images), "weights_file": weights, **options})
    return settings_hash(config.get_parsed_content("evaluator").settings)


def test_whatever_decides_the_masks_is_hashed_as_resolved(images, weights, small_overlay, tmp_path):
    def of(**options: object) -> str:
        return resolved(images, small_overlay, weights, **{"precision": "float32", **options})

    another = tmp_path / "another.pt"
    torch.save({n: t + 1 for n, t in torch.load(weights, weights_only=True).items()}, another)
    plain = of()
    assert of(thumbnails=False, fail_fast=True, output_dir="elsewhere", window_batch=7) == plain
    hashes = {name: of(**{name: [str(another)] if name == "ensemble" else value}) for name, value in OVERRIDES.items()}
    assert [name for name, found in hashes.items() if found == plain] == []
    assert hashes["overlap"] == hashes["inferer#overlap"]


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


def test_names_in_a_task_are_letters_to_monai_label_too(images, weights, small_overlay, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Path(shutil.copytree(Path(weights).parent, tmp_path / "model"))
    task = read_task(model / "task.yaml")
    names = {value: f"$__import__('os').system('touch ran{value}')" for value in task.labels}
    write_task(dataclasses.replace(task, labels=names, name=names[1], channels=[names[2]]), model / "task.yaml")
    mask, _ = as_monai_label(images / "ward/0.nii.gz", str(model / "model.pt"), small_overlay)
    assert mask.any()
    assert not list(tmp_path.rglob("ran*"))


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
    failed = start(command(images, out, weights, small_overlay))
    assert failed.returncode == 3
    assert "3 of 4 masks are there already" in failed.stdout  # settings are alike in another process
    assert re.search(r"3 done, \d with warnings, 1 failed, 0 not run", failed.stdout)
    refused = start(command(tmp_path / "absent", out, weights, small_overlay))
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].endswith("does not exist: name a folder, a file or a list of images")


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
    lines = [json.loads(line)["name"] for line in journal_lines(together) if line.startswith('{"name"')]
    assert len(list(together.glob("journal*.jsonl"))) == 2
    assert len(lines) == len(set(lines)) == 8
    run(images, alone, weights, small_overlay)
    for mask in alone.rglob("*_mask.nii.gz"):
        np.testing.assert_array_equal(mask_of(mask), mask_of(together / mask.relative_to(alone)))


@pytest.mark.slow
def test_two_commands_at_once_share_a_folder_and_other_settings_are_refused(images, weights, small_overlay, tmp_path):
    for number in range(3, 12):
        write_volume(images / f"{number}.nii", blob((30, 30, 30), number))
    out = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = command(images, out, weights, small_overlay)
    both = [
        subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    while not (out / "journal.jsonl").exists():
        time.sleep(0.05)
    refused = start([*words, "--overlap", "0.5"])
    logs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], logs
    assert all(re.search(r"12 done, \d+ with warnings, 0 failed, 0 not run", log) for log in logs)
    if refused.returncode:  # unless both had ended by then
        assert "in use by a run with other weights or settings" in refused.stderr
    done = [json.loads(line)["name"] for line in journal_lines(out) if '"status": "done"' in line]
    assert len(done) == len(set(done)) == 12 or refused.returncode == 0


def journal_lines(out: Path) -> list[str]:
    return [line for file in out.glob("journal*.jsonl") for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_command_that_gets_sigterm_leaves_with_143_and_says_so(images, weights, small_overlay, tmp_path):
    for number in range(3, 40):
        write_volume(images / f"{number}.nii", blob((40, 40, 40), number))
    process = subprocess.Popen(
        command(images, tmp_path / "out", weights, small_overlay), cwd=ROOT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while process.poll() is None and not list((tmp_path / "out").rglob("*_mask.nii.gz")):
        time.sleep(0.01)
    process.terminate()
    log = process.communicate()[0]
    assert process.returncode == 143, log
    assert "stopped by SIGTERM: finished masks are kept, the same command goes on" in log
    assert "Traceback" not in log
    assert json.loads((tmp_path / "out/report.json").read_text())["run"]["done"] >= 1


@pytest.mark.slow
def test_an_array_of_jobs_without_torchrun_ends_in_one_report(images, weights, small_overlay, tmp_path):
    out = tmp_path / "out"
    for rank in (2, 0, 1):
        words = command(images, out, weights, small_overlay, "--rank", str(rank), "--num_processes", "3")
        assert start(words).returncode == 0
    run_facts = json.loads((out / "report.json").read_text())["run"]
    assert (run_facts["images"], run_facts["done"], run_facts["not_run"]) == (3, 3, 0)


SCONTROL = """#!/bin/bash
echo "$@" >> requeued
"""


@pytest.mark.slow
def test_jobs_of_a_slurm_array_are_stopped_requeued_and_end_in_one_report(images, weights, small_overlay, tmp_path):
    for number in range(3, 40):
        write_volume(images / f"{number}.nii", blob((40, 40, 40), number))
    programs, out = tmp_path / "bin", tmp_path / "out"
    programs.mkdir()
    python = f'#!/bin/bash\nexec {sys.executable} -W ignore "$@"\n'
    for name, text in {"scontrol": SCONTROL.replace("requeued", str(tmp_path / "requeued")), "python": python}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def job(number: int) -> subprocess.Popen:
        environment = {
            **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(number),
            "SLURM_ARRAY_TASK_MAX": "1", "SLURM_ARRAY_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "1",
        }  # fmt: skip
        words = ["bash", str(ROOT / "scripts/predict_array.sh"), str(images), str(out), "--weights_file", weights]
        files = f"['{CONFIG}','{small_overlay}']"
        return subprocess.Popen([*words, "--config_file", files], cwd=ROOT, env=environment)

    first = job(0)
    while first.poll() is None and not list(out.rglob("*_mask.nii.gz")):
        time.sleep(0.01)
    first.terminate()
    assert first.wait() == 143
    assert (tmp_path / "requeued").read_text() == "requeue 77_0\n"
    both = [job(0), job(1)]
    assert [process.wait() for process in both] == [0, 0]
    facts = json.loads((out / "report.json").read_text())["run"]
    assert (facts["images"], facts["done"], facts["not_run"]) == (40, 40, 0)
