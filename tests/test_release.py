"""The zip of the bundle: what is in it, and that it runs where it is unpacked."""

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
import nibabel as nib
import numpy as np
import pytest
from release import write_bundle

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
    "scripts/digar/inference/dicom_seg.py": "requirements-dicom.txt",
    "scripts/digar/networks/exported.py": "requirements-export.txt",
    "scripts/digar/networks/exporting.py": "requirements-export.txt",
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
        r"/tests?/|__pycache__|\.git|\.venv|\.pytest|/runs/|/demo/|\.nii|\.dcm$|/\.ci/|/models/(?!(hippocampus/)?(model\.pt|task\.yaml)$)"
    )
    assert [name for name in names if unwanted.search(name)] == []


def test_the_same_files_give_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    assert write_bundle(tmp_path).read_bytes() == archive.read_bytes()


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    with pytest.raises(RuntimeError, match="is no git repository"):
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
    allowed = required("requirements.txt") | (required(OPTIONAL[name]) if name in OPTIONAL else set())
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
