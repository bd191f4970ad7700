"""The bundle as others take it: a zip, a pull request to MONAI's model zoo, a repository on the Hugging Face hub.

Only what git tracks goes out; tests and caches stay here. Equal files give equal bytes. Nothing is sent anywhere.

    python scripts/release.py [FOLDER]                       digar_vX.Y.Z.zip
    python scripts/release.py [FOLDER] --zoo                 models/NAME and ci/unit_tests, as in the zoo's repository
    python scripts/release.py [FOLDER] --hub OWNER/NAME      a model repository, with the command that pushes it
"""

import argparse
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from digar.volumes.files import whole_file

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("tests/", ".ci/", ".github/", ".git", ".pre-commit-config.yaml", "pyproject.toml")  # beginnings of paths
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold
ZOO_NAME = "digar_hippocampus_mri_segmentation"  # the zoo's form: what, modality, task
ZOO_TESTS = (f"tests/test_{ZOO_NAME}.py", f"tests/test_{ZOO_NAME}_dist.py")
OWN_MODEL = ("models/model.pt", "models/task.yaml", "models/hippocampus/")  # one model a repository, under one licence
LINK = re.compile(r"(!?\[[^\]]*\]\()(?!https?://|#)([^)\s]+)\)")
PINS = "constraints.txt"


def bundle_files(root: Path) -> list[str]:
    """The tracked files that belong to the bundle, sorted, relative to its root.

    Raises:
        RuntimeError: the root is not a git repository, or a tracked file is missing from it.
    """
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listing.returncode:
        raise RuntimeError(f"{root} is not a git repository, so nothing tells what belongs to the bundle")
    names = sorted(name for name in listing.stdout.split("\0") if name and not name.startswith(LEFT_OUT))
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise RuntimeError(f"tracked files are missing: {', '.join(missing)}; restore them or remove them from git")
    return names


def write_bundle(folder: Path, root: Path = ROOT) -> Path:
    """Write the zip into a folder, under the version of ``configs/metadata.json``; links become the files they mean.

    Returns:
        The path of the zip.
    """
    target = folder / f"digar_v{_metadata(root)['version']}.zip"
    with whole_file(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in bundle_files(root):
            entry = zipfile.ZipInfo(f"digar/{name}", EPOCH)
            entry.external_attr = 0o644 << 16  # readable after unpacking
            archive.writestr(entry, (root / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def write_zoo_form(folder: Path, root: Path = ROOT) -> Path:
    """What a pull request to MONAI's model zoo adds: ``models/NAME`` and its unit tests in ``ci/unit_tests``.

    The zoo runs Python 3.10, so the metadata name the versions that install there. Its multi-process evaluation looks
    for ``multi_gpu_evaluate.json``, which is ``multi_gpu_train.json`` under another name.

    Returns:
        The path of ``models/NAME``.

    Raises:
        FileExistsError: the bundle is there already.
    """
    bundle = folder / "models" / ZOO_NAME
    _copy(_with_one_model(root), root, bundle)
    shutil.copy(bundle / "configs/multi_gpu_train.json", bundle / "configs/multi_gpu_evaluate.json")
    metadata = _metadata(root)
    pins = oldest_pins((root / PINS).read_text(encoding="utf-8"))
    metadata["numpy_version"] = pins["numpy"]
    metadata["required_packages_version"] = {name: pins[name] for name in metadata["required_packages_version"]}
    (bundle / "configs/metadata.json").write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")
    tests = folder / "ci" / "unit_tests"
    tests.mkdir(parents=True, exist_ok=True)
    for name in ZOO_TESTS:
        shutil.copy(root / name, tests)
    return bundle


def write_hub_form(folder: Path, repository: str, root: Path = ROOT) -> Path:
    """A model repository for the Hugging Face hub: the bundle, its README with a model card's head and whole links.

    Args:
        folder: to write into.
        repository: ``OWNER/NAME`` on the hub, where relative links will lead.
        root: of the bundle.

    Returns:
        The path of the folder to push.

    Raises:
        ValueError: the repository is not OWNER/NAME.
        FileExistsError: the folder is there already.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise ValueError(f"{repository!r} is not OWNER/NAME, a repository on the Hugging Face hub")
    target = folder / repository.partition("/")[2]
    _copy(_with_one_model(root), root, target)
    text = (root / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_dump(model_card(_metadata(root), repository), sort_keys=False)
    (target / "README.md").write_text(f"---\n{head}---\n\n{_whole_links(text, repository)}", encoding="utf-8")
    return target


def model_card(metadata: dict[str, Any], repository: str) -> dict[str, Any]:
    """The head of a model card, by the hub's names, from the bundle's metadata."""
    scores = [
        {"type": "dice" if name.endswith("dice") else "hd95", "name": name.replace("_", " "), "value": value}
        for name, value in metadata["eval_metrics"].items()
    ]
    result = {
        "task": {"type": "image-segmentation", "name": metadata["task"]},
        "dataset": {"type": "medical-segmentation-decathlon", "name": metadata["data_source"]},
        "metrics": scores,
    }
    return {
        "license": "cc-by-sa-4.0",  # of the weights, as their data; the code is Apache-2.0
        "library_name": "monai",
        "pipeline_tag": "image-segmentation",
        "tags": ["monai", "medical", "mri", "3d", "segmentation", "hippocampus", "self-supervised"],
        "metrics": ["dice", "hd95"],
        "model-index": [{"name": repository.partition("/")[2], "results": [result]}],
    }


def oldest_pins(text: str) -> dict[str, str]:
    """Package to version, of constraints, those for the oldest Python where there are several."""
    pins = {}
    for line in text.splitlines():
        pin, _, marker = (part.strip() for part in line.partition("#")[0].partition(";"))
        name, equals, version = pin.partition("==")
        if equals and ">=" not in marker:
            pins[name] = version
    return pins


def _metadata(root: Path) -> dict[str, Any]:
    return json.loads((root / "configs/metadata.json").read_text(encoding="utf-8"))


def _with_one_model(root: Path) -> list[str]:
    return [name for name in bundle_files(root) if not name.startswith("models/") or name.startswith(OWN_MODEL)]


def _copy(names: Sequence[str], root: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target / name)


def _whole_links(markdown: str, repository: str) -> str:
    """Markdown whose relative links lead into the hub's repository."""

    def whole(match: re.Match) -> str:
        kind = "resolve" if match[1].startswith("!") else "blob"
        return f"{match[1]}https://huggingface.co/{repository}/{kind}/main/{match[2]})"

    return LINK.sub(whole, markdown)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the bundle as others take it. Nothing is sent anywhere.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("."), help="where to (default: here)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--zoo", action="store_true", help="as a pull request to MONAI's model zoo adds it")
    form.add_argument("--hub", metavar="OWNER/NAME", help="as a repository on the Hugging Face hub")
    options = parser.parse_args(argv)
    if options.zoo:
        print(f"{write_zoo_form(options.folder)}: copy {options.folder} over a clone of the zoo")
    elif options.hub:
        target = write_hub_form(options.folder, options.hub)
        print(f"{target}: look at its README.md, then push it with\nhf upload {options.hub} {target}")
    else:
        target = write_bundle(options.folder)
        print(f"{target} ({target.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
