"""The forms in which the bundle goes out: what is in them, and that they run where they are unpacked."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import digar
import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from release import ZOO_NAME, oldest_pins, write_bundle, write_hub_form, write_zoo_form

from tests.conftest import ROOT

VERSION = json.loads((ROOT / "configs/metadata.json").read_text())["version"]
MODULES = {
    "pytorch-ignite": "ignite",
    "pyyaml": "yaml",
    "itk-io": "itk",
    "pillow": "PIL",
}  # imported under another name
OPTIONAL = {  # modules that only these need
    "scripts/digar/cli/serve.py": "apps/digar/requirements-no-deps.txt",
    "scripts/digar/cli/hub.py": "requirements-hub.txt",
    "scripts/digar/inference/dicom_seg.py": "requirements-dicom.txt",
    "scripts/digar/networks/exported.py": "requirements-export.txt requirements-openvino.txt",
    "scripts/digar/networks/exporting.py": "requirements-export.txt",
    "scripts/digar/volumes/remote.py": "requirements-remote.txt",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("release"))


def test_the_zip_bears_the_version_and_holds_the_bundle_under_one_folder(archive: Path) -> None:
    assert archive.name == f"digar_v{VERSION}.zip"
    with zipfile.ZipFile(archive) as content:
        assert content.testzip() is None
        names = content.namelist()
    assert {name.split("/")[0] for name in names} == {"digar"}
    wanted = ("LICENSE", "README.md", "requirements.txt", "configs/metadata.json", "configs/inference.json",
              "docs/README.md", "docs/data_license.txt", "models/model.pt", "scripts/digar/__init__.py")  # fmt: skip
    assert [name for name in wanted if f"digar/{name}" not in names] == []


def test_the_zip_holds_no_tests_data_or_caches(archive: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
    unwanted = re.compile(
        r"/tests?/|__pycache__|\.git|\.venv|\.pytest|/runs/|/demo/|\.nii|\.dcm$|/\.ci/|/models/(?!((hippocampus/|cardiac/)?(model\.pt|task\.yaml)|cardiac/LICENSE\.txt)$)"
    )
    assert [name for name in names if unwanted.search(name)] == []


def test_the_same_files_give_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    assert write_bundle(tmp_path).read_bytes() == archive.read_bytes()


def test_the_zoos_form_has_the_files_that_its_verifier_reads_and_one_model(tmp_path: Path) -> None:
    bundle = write_zoo_form(tmp_path)
    assert bundle == tmp_path / "models" / ZOO_NAME
    wanted = ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/inference.json", "configs/logging.conf",
              "configs/multi_gpu_train.json", "configs/multi_gpu_evaluate.json", "models/model.pt")  # fmt: skip
    assert [name for name in wanted if not (bundle / name).is_file()] == []
    assert sorted(file.name for file in (bundle / "models").iterdir()) == ["hippocampus", "model.pt", "task.yaml"]
    for kind in ("", "_dist"):
        assert (tmp_path / "ci/unit_tests" / f"test_{ZOO_NAME}{kind}.py").is_file()
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    scores = {"mean_dice": 0.889, "anterior_dice": 0.898, "posterior_dice": 0.879, "mean_hd95_mm": 1.25}
    assert metadata["eval_metrics"] == scores
    headings = re.findall(r"^#+ (.*)$", (bundle / "docs/README.md").read_text(), re.MULTILINE)
    sections = ["Model Overview", "Data", "Training configuration", "Performance", "MONAI Bundle Commands"]
    assert [name for name in (*sections, "References", "License") if name not in headings] == []
    with pytest.raises(FileExistsError):
        write_zoo_form(tmp_path)


@pytest.mark.parametrize("kind", ["", pytest.param("_dist", marks=pytest.mark.slow)])
def test_the_zoos_form_passes_the_zoos_unit_test_where_its_ci_starts_it(kind: str, tmp_path: Path) -> None:
    write_zoo_form(tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "unittest", f"ci/unit_tests/test_{ZOO_NAME}{kind}.py"]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Ran 1 test" in result.stderr


@pytest.mark.slow
def test_the_zoos_form_passes_the_calls_of_the_zoos_verifier(tmp_path: Path) -> None:
    bundle = write_zoo_form(tmp_path)
    schema = str(shutil.copy(ROOT / "tests/metadata_schema.json", tmp_path))  # an existing file is not downloaded
    files = {"meta_file": str(bundle / "configs/metadata.json")}
    monai.bundle.verify_metadata(**files, filepath=schema)
    files |= {"config_file": str(bundle / "configs/inference.json"), "bundle_root": str(bundle)}
    monai.bundle.verify_net_in_out(net_id="network_def", **files)
    weights, exported = str(bundle / "models/model.pt"), str(tmp_path / "verify_model.ts")
    monai.bundle.ckpt_export(net_id="network_def", filepath=exported, ckpt_file=weights, **files)
    torch.jit.load(exported)


def test_of_several_pins_the_oldest_pythons_are_taken() -> None:
    text = 'numpy==2.4.6; python_version >= "3.11"\nnumpy==2.2.6; python_version < "3.11"\n# note\nfire==0.7.1  # why\n'
    assert oldest_pins(text) == {"numpy": "2.2.6", "fire": "0.7.1"}


def test_the_hubs_form_has_a_model_card_and_whole_links(tmp_path: Path) -> None:
    target = write_hub_form(tmp_path, "someone/digar")
    _, head, text = (target / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["license"] == "cc-by-sa-4.0"
    assert card["library_name"] == "monai"
    result = card["model-index"][0]["results"][0]
    assert result["metrics"] == [
        {"type": "dice", "name": "mean dice", "value": 0.889},
        {"type": "dice", "name": "anterior dice", "value": 0.898},
        {"type": "dice", "name": "posterior dice", "value": 0.879},
        {"type": "hd95", "name": "mean hd95 mm", "value": 1.25},
    ]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    assert [link for link in links if not link.startswith(("https://", "http://", "#"))] == []
    own = "https://huggingface.co/someone/digar/"
    inside = [link.removeprefix(own).split("/", 2)[2].partition("#")[0] for link in links if link.startswith(own)]
    assert [name for name in inside if not (target / name).is_file()] == []
    assert sorted(file.name for file in (target / "models").iterdir()) == ["hippocampus", "model.pt", "task.yaml"]


def test_the_hubs_library_reads_the_model_card(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(write_hub_form(tmp_path, "someone/digar") / "README.md")
    assert card.data.eval_results[0].metric_value == 0.889
    assert card.data.pipeline_tag == "image-segmentation"


@pytest.mark.parametrize("repository", ["digar", "a/b/c", "../digar", ""])
def test_another_name_than_owner_and_name_is_refused(repository: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not OWNER/NAME"):
        write_hub_form(tmp_path, repository)


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    with pytest.raises(RuntimeError, match="is not a git repository"):
        write_bundle(tmp_path / "out", root=tmp_path)


def required(name: str) -> set[str]:
    """Modules that a requirements file installs, by their names in code."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    packages = {re.split(r"[<>=!\[ ]", line)[0].lower() for line in lines if line}
    return {MODULES.get(package, package) for package in packages}


@pytest.mark.parametrize(
    "file", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda file: file.relative_to(ROOT).as_posix()
)
def test_a_module_imports_what_its_requirements_install(file: Path) -> None:
    tree = ast.parse(file.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    third_party = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"digar"}
    name = file.relative_to(ROOT).as_posix()
    files = ["requirements.txt", *OPTIONAL.get(name, "").split()]
    allowed = {module for requirements in files for module in required(requirements)}
    assert third_party - allowed == set()


@pytest.mark.slow
def test_the_unpacked_bundle_segments_a_folder(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path)
    (tmp_path / "images").mkdir()
    volume = np.random.default_rng(0).normal(100, 20, (35, 50, 35)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "images/crop.nii.gz")
    command = [
        sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
        "--dataset_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "masks"),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=tmp_path / "digar", env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert nib.load(tmp_path / "masks/crop_mask.nii.gz").shape == volume.shape


@pytest.mark.slow
def test_the_installed_package_has_the_command_the_configs_and_the_models(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", ROOT], check=True
    )
    (tmp_path / "images").mkdir()
    volume = np.random.default_rng(0).normal(100, 20, (35, 50, 35)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "images/crop.nii.gz")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, tmp_path / "site/bin/digar", "predict", "images", "-o", "masks"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert nib.load(tmp_path / "masks/crop_mask.nii.gz").shape == volume.shape


def test_the_package_the_metadata_and_the_changelog_name_one_version() -> None:
    assert digar.__version__ == VERSION
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
