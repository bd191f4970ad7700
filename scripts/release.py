"""The bundle as one file: ``digar_vX.Y.Z.zip``, which holds what a user runs and unpacks to the folder ``digar``.

Tests, caches and whatever git does not track stay out. Equal files give equal bytes.

    python scripts/release.py [FOLDER]
"""

import argparse
import json
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

from digar.volumes.files import whole_file

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("tests/", ".ci/", ".github/", ".git", ".pre-commit-config.yaml", "pyproject.toml")  # beginnings of paths
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold


def bundle_files(root: Path) -> list[str]:
    """The tracked files that belong to the bundle, sorted, relative to its root.

    Raises:
        RuntimeError: the root is no git repository, or a tracked file is missing from it.
    """
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listing.returncode:
        raise RuntimeError(f"{root} is no git repository, so nothing tells what belongs to the bundle")
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
    version = json.loads((root / "configs/metadata.json").read_text(encoding="utf-8"))["version"]
    target = folder / f"digar_v{version}.zip"
    with whole_file(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in bundle_files(root):
            entry = zipfile.ZipInfo(f"digar/{name}", EPOCH)
            entry.external_attr = 0o644 << 16  # readable after unpacking
            archive.writestr(entry, (root / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the bundle as a zip.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("."), help="where to (default: here)")
    target = write_bundle(parser.parse_args(argv).folder)
    print(f"{target} ({target.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
