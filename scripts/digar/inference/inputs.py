"""From a folder, a file or a list to cases: which files belong together, and where each mask goes."""

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from digar.volumes.dicom import is_dicom
from digar.volumes.reading import volume_suffix

Case = dict[str, Any]
CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's suffix
LIST_SUFFIXES = (".txt", ".csv", ".json")


def find_cases(
    dataset_dir: str | Path, output_dir: str | Path, in_channels: int = 1, postfix: str = "mask"
) -> list[Case]:
    """The cases of a run, sorted by name.

    A folder is searched through; a sub-folder of DICOM files is one case. With several ``in_channels`` the files
    ``a_0000.nii.gz``, ``a_0001.nii.gz`` ... are the channels of one case. Sub-folders are mirrored below
    ``output_dir``; inputs whose masks would have the same name keep their ending in it.

    Args:
        dataset_dir: a folder, a volume, or a list of volumes: text (a path per line), CSV (a column ``image``, or the
            first one), JSON (a list of paths, or of lists of channels, or of objects with ``image``). Relative paths
            in a list start from its folder.
        output_dir: of the masks; left out of the search.
        in_channels: of the network.
        postfix: of the masks' names.

    Returns:
        ``{"name", "image", "mask"}`` of each case: its path below ``dataset_dir``, its file (or files, one per
        channel; absolute), and its mask's path below ``output_dir``.

    Raises:
        FileNotFoundError: there is no such input, or nothing in it.
        ValueError: the list cannot be read, or the output is the input folder.
    """
    source, output = Path(dataset_dir).absolute(), Path(output_dir).absolute()
    if not source.exists():
        raise FileNotFoundError(f"dataset_dir {source} does not exist: pass --dataset_dir with a folder, file or list")
    if source.is_file() and source.suffix.lower() in LIST_SUFFIXES:
        entries = _listed(source)
        root = Path(os.path.commonpath([Path(files[0]).absolute().parent for files in entries]))
    elif source.is_file():
        entries, root = [[source]], source.parent
    else:
        if source.resolve() == output.resolve():
            raise ValueError(f"output_dir {output} is the folder of the images: pass another --output_dir")
        entries, root = _grouped(_search(source, output.resolve()), in_channels), source
    if not entries:
        raise FileNotFoundError(f"dataset_dir {source} holds no volume (NIfTI, .mha, .mhd, .nrrd or DICOM series)")
    return _named(entries, root, postfix)


def _is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files."""
    files = (file for file in sorted(folder.iterdir()) if not file.name.startswith(".") and not volume_suffix(file))
    return any(is_dicom(file) for file in files if file.is_file() and file.name != "DICOMDIR")


def _search(folder: Path, output: Path) -> list[Path]:
    """Volumes and DICOM folders below a folder; hidden files (macOS' ``._*`` among them) are left out."""
    found = []
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (here / n).resolve() != output)
        found += [here / n for n in sorted(names) if not n.startswith(".") and volume_suffix(n)]
        if _is_series(here):
            found.append(here)
    return found


def _grouped(files: Iterable[Path], in_channels: int) -> list[list[Path]]:
    """Files that are channels of one case together, in the order of their numbers."""
    groups: dict[tuple, list[Path]] = {}
    for file in files:
        channel = CHANNEL.fullmatch(stem(file)) if in_channels > 1 else None
        key = (file.parent, channel[1], volume_suffix(file)) if channel else (file,)
        groups.setdefault(key, []).append(file)
    return [sorted(group) for group in groups.values()]


def stem(file: Path) -> str:
    """A file's name without the ending that tells a volume."""
    suffix = volume_suffix(file)
    return file.name[: -len(suffix)] if suffix and not file.is_dir() else file.name


def _listed(file: Path) -> list[list[Path]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            entries = _json_entries(json.loads(text))
        elif file.suffix.lower() == ".csv":
            rows = [row for row in csv.reader(text.splitlines()) if row and row[0].strip()]
            column = rows[0].index("image") if rows and "image" in rows[0] else 0
            headed = bool(rows) and ("image" in rows[0] or not _names_volume(file.parent / rows[0][0]))
            entries = [[row[column]] for row in rows[headed:]]
        else:
            entries = [[line.strip()] for line in text.splitlines() if line.strip() and not line.startswith("#")]
    except (ValueError, TypeError, LookupError, csv.Error) as error:
        raise ValueError(f"dataset_dir {file} is no list of volumes: {error}") from error
    if not entries:
        raise FileNotFoundError(f"dataset_dir {file} lists no volume")
    return [[file.parent / path for path in paths] for paths in entries]


def _names_volume(path: Path) -> bool:
    return volume_suffix(path) is not None or path.is_dir()


def _json_entries(content: Any) -> list[list[str]]:
    """A list of paths, of lists of paths, or of objects with ``image``; each as a list of paths."""
    if not isinstance(content, list):
        raise ValueError(f"it holds a {type(content).__name__}, not a list")
    entries = []
    for item in content:
        image = item["image"] if isinstance(item, dict) else item
        paths = [image] if isinstance(image, str) else list(image)
        if not paths or not all(isinstance(path, str) for path in paths):
            raise ValueError(f"{item!r} names no file")
        entries.append(paths)
    return entries


def _named(entries: Sequence[Sequence[Path]], root: Path, postfix: str) -> list[Case]:
    """Cases with names below ``root`` and masks that do not collide, also where case does not count."""
    cases: list[Case] = []
    for paths in entries:
        first = paths[0]
        inside = first.absolute().is_relative_to(root.absolute())
        relative = first.absolute().relative_to(root.absolute()) if inside and first != root else Path(first.name)
        base = stem(first)
        if len(paths) > 1 and (channel := CHANNEL.fullmatch(base)):
            base = channel[1]
        suffix = volume_suffix(first) or ""
        cases.append(
            {
                "name": (relative.parent / (base + suffix)).as_posix() if len(paths) > 1 else relative.as_posix(),
                "image": str(first) if len(paths) == 1 else [str(path) for path in paths],
                "mask": (relative.parent / f"{base}_{postfix}.nii.gz").as_posix(),
                "_whole": (relative.parent / f"{base}{suffix}_{postfix}.nii.gz").as_posix(),
            }
        )
    cases.sort(key=lambda case: case["name"])
    taken: dict[str, int] = {}
    for case in cases:
        taken[case["mask"].casefold()] = taken.get(case["mask"].casefold(), 0) + 1
    used: set[str] = set()
    for case in cases:
        whole = case.pop("_whole")
        if taken[case["mask"].casefold()] > 1:
            case["mask"] = whole
        number = 2
        wanted = case["mask"]
        while case["mask"].casefold() in used:
            case["mask"] = wanted.removesuffix(".nii.gz") + f"_{number}.nii.gz"
            number += 1
        used.add(case["mask"].casefold())
    return cases
