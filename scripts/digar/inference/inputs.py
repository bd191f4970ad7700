"""From a folder, a file or a list to cases: which files belong together, and where each mask goes."""

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from digar.data.layouts import LAYOUTS
from digar.data.layouts.layout import case_images, refuse_missing
from digar.data.layouts.scans import Scans
from digar.data.layouts.table import Table
from digar.volumes.dicom import is_series
from digar.volumes.files import printable, read_json, read_rows, read_text, row_of
from digar.volumes.reading import volume_exists, volume_suffix
from digar.volumes.search import case_name, find_volumes

Case = dict[str, Any]
CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's suffix
LIST_SUFFIXES = (".txt", ".csv", ".json")
LONGEST_NAME = 255  # bytes
LONGEST_ENDING = len("_probabilities_0000.npy") - len(".nii.gz")  # what is written beside a mask

logger = logging.getLogger(__name__)


def find_cases(
    dataset_dir: str | Path, output_dir: str | Path, in_channels: int = 1, postfix: str = "mask"
) -> list[Case]:
    """The cases of a run, sorted by name.

    A folder is searched through, see :func:`digar.volumes.search.find_volumes`; a DICOM series is one case. With
    several ``in_channels`` the files ``a_0000.nii.gz``, ``a_0001.nii.gz`` ... are the channels of one case. Sub-folders
    are mirrored below ``output_dir``, those of a list from the folder on that all its files lie in.
    Inputs whose masks would have the same name keep their ending in it; a name that would be too long is cut, and told
    apart by its hash. What a list names twice is taken once.

    Args:
        dataset_dir: a data set in a known layout, whose images are taken, not its labels; a folder; a volume; or a list
            of volumes: text (a path per line), CSV (a column ``image``, or the first one), JSON (a list of paths, or of
            lists of channels, or of objects with ``image``). Relative paths in a list start from its folder, and may
            lead out of it.
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
    if not volume_exists(source):
        raise FileNotFoundError(f"{source} does not exist: name a folder, a file or a list of images")
    if (images := _images_of_data_set(source)) is not None:
        entries = images
        root = str(source) if source.is_dir() else _common_folder(entries)
    elif source.is_file() and source.suffix.lower() in LIST_SUFFIXES:
        entries = _listed(source)
        root = _common_folder(entries)
    elif not source.is_dir():
        entries, root = [[str(source)]], str(source.parent)
    else:
        if source.resolve() == output.resolve():
            raise ValueError(f"output_dir {output} is the folder of the images: pass another --output_dir")
        entries, root = _grouped(find_volumes(source, [output]), in_channels), str(source)
    if not entries:
        raise FileNotFoundError(f"dataset_dir {source} contains no volume (NIfTI, .mha, .mhd, .nrrd or DICOM series)")
    return _named(entries, root, postfix)


def _common_folder(entries: Sequence[Sequence[str]]) -> str:
    """The folder that the (first) files of all entries lie in."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(files[0])) for files in entries])


def _images_of_data_set(source: Path) -> list[list[str]] | None:
    """The images of a data set in a layout that tells them from labels, see :mod:`digar.data.layouts`; else None."""
    layouts = (layout for layout in LAYOUTS if not isinstance(layout, Scans | Table))
    layout = next((layout for layout in layouts if not layout.missing(source)), None)
    if layout is None:
        return None
    data = layout.read(source)
    refuse_missing(data, labels=False)
    logger.info("%s: its images are taken", data.describe())
    return [case_images(case) for case in (*data.labelled, *data.unlabelled)]


def _grouped(files: Iterable[str], in_channels: int) -> list[list[str]]:
    """Files that are channels of one case together, in the order of their numbers."""
    if in_channels == 1:
        return [[file] for file in files]
    groups: dict[tuple[str, ...], list[str]] = {}
    for file in files:
        channel = CHANNEL.fullmatch(case_name(file))
        key = (os.path.dirname(file), channel[1], volume_suffix(file) or "") if channel else (file,)
        groups.setdefault(key, []).append(file)
    return [sorted(group) for group in groups.values()]


# Lists


def _listed(file: Path) -> list[list[str]]:
    """The entries of a list, each the paths of its files."""
    read = {".json": _json_entries, ".csv": _table_entries, ".txt": _text_entries}[file.suffix.lower()]
    once: dict[tuple[str, ...], list[str]] = {}
    for paths in read(file):
        located = [os.path.join(file.parent, path) for path in paths]
        key = tuple(map(os.path.abspath, located))
        if key in once:
            logger.warning("%s names %s more than once: it is taken once", file, ", ".join(map(printable, paths)))
        once.setdefault(key, located)
    if not once:
        raise FileNotFoundError(f"dataset_dir {file} lists no volume")
    return list(once.values())


def _text_entries(file: Path) -> list[list[str]]:
    lines = (line.strip() for line in read_text(file).splitlines())
    return [[line] for line in lines if line and not line.startswith("#")]


def _table_entries(file: Path) -> list[list[str]]:
    """Column ``image``, or the first one; the first row is a header if it names no volume."""
    rows = read_rows(file)
    first = rows[0][1] if rows else [""]
    headed = "image" in first or not (volume_suffix(first[0]) or is_series(file.parent / first[0]))
    column = first.index("image") if "image" in first else 0
    entries = []
    for line, row in rows[headed:]:
        path = row_of(file, line, row, len(first))[column]
        if not path:
            raise ValueError(f"{file}, line {line}: it names no file")
        entries.append([path])
    return entries


def _json_entries(file: Path) -> list[list[str]]:
    """A list of paths, of lists of paths, or of objects with ``image``; each as a list of paths."""
    entries: list[list[str]] = []
    for number, item in enumerate(read_json(file, list), start=1):
        image = item.get("image") if isinstance(item, dict) else item
        paths = image if isinstance(image, list) else [image]
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise ValueError(f'{file}, entry {number}: it names no file; write a path, or {{"image": a path}}')
        entries.append([str(path) for path in paths])
    return entries


# Names


def _named(entries: Sequence[Sequence[str]], root: str, postfix: str) -> list[Case]:
    """Cases with different names below ``root``, and masks that do not collide, also where case does not count."""
    cases: list[Case] = []
    wanted: list[tuple[str, str]] = []  # names of the mask without and with the image's ending
    for paths in entries:
        first = os.path.abspath(paths[0])
        folder, file = os.path.split(os.path.relpath(first, root) if first != root else os.path.basename(first))
        base, ending = case_name(file), file[len(case_name(file)) :]
        if len(paths) > 1 and (channel := CHANNEL.fullmatch(base)):
            base = channel[1]
        name = Path(folder, base + ending if len(paths) > 1 else file).as_posix()
        cases.append({"name": name, "image": paths[0] if len(paths) == 1 else list(paths)})
        short, whole = (Path(folder, _fitting(b, f"_{postfix}.nii.gz")).as_posix() for b in (base, base + ending))
        wanted.append((short, whole))
    plain = Counter(_folded(short) for short, _ in wanted)
    names: set[str] = set()
    masks: set[str] = set()
    for number in sorted(range(len(cases)), key=lambda number: cases[number]["name"]):
        short, whole = wanted[number]
        mask = short if plain[_folded(short)] == 1 else whole
        cases[number]["mask"] = _unused(mask, f"_{postfix}.nii.gz", masks)
        cases[number]["name"] = _unused(cases[number]["name"], "", names)
    return sorted(cases, key=lambda case: case["name"])


def _fitting(base: str, ending: str) -> str:
    """A file name of a base and an ending, cut where it, or what is written beside it, would be too long."""
    room = LONGEST_NAME - LONGEST_ENDING - len(ending)
    encoded = os.fsencode(base)
    if len(encoded) > room:
        digest = hashlib.sha256(encoded).hexdigest()[:8]
        base = f"{encoded[: room - 9].decode('utf-8', 'ignore')}~{digest}"
    return base + ending


def _folded(name: str) -> str:
    """Alike for names that are one on file systems that do not tell case or ways of writing an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def _unused(name: str, ending: str, used: set[str]) -> str:
    """The name, numbered before its ending where it is used already; it is used from now on."""
    number, stem = 1, name.removesuffix(ending)
    while _folded(name) in used:
        number += 1
        name = f"{stem}_{number}{ending}"
    used.add(_folded(name))
    return name
