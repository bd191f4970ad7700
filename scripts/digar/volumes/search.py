"""Which volumes a folder holds, and what they are called: the one search and the one way of naming."""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from digar.volumes.dicom import find_series, is_dicom
from digar.volumes.files import printable
from digar.volumes.reading import volume_suffix
from digar.volumes.walk import walk

logger = logging.getLogger(__name__)
JOURNAL = "journal.jsonl"  # lies in the output folder of every folder inference
JOURNAL_BEGIN = re.compile(rb'\s*\{"(?:run|name)": "')


def find_volumes(folder: str | Path, leave_out: Iterable[str | Path] = ()) -> list[str]:
    """The volumes below a folder, sorted: NIfTI, MetaImage and NRRD files, and the paths that name DICOM series.

    Left out are hidden files and folders (macOS' ``._*`` among them), output folders of folder inferences, whose masks
    are no images, and DICOM files without an image. Links to folders are followed, but no folder is searched twice. A
    folder that cannot be opened is among the results, so that whoever reads it tells why.

    Args:
        folder: to search; it may be an output folder itself.
        leave_out: further folders that are not searched.
    """
    found: list[str] = []
    dicom: list[Path] = []
    for here, entries in walk(folder, leave_out, _is_run_output):
        found += [here] if entries is None else []
        for entry in entries or ():
            if volume_suffix(entry.name):  # a broken link too: its name is to be told
                found += [entry.path] if entry.is_symlink() or entry.is_file() else []
            elif entry.name != "DICOMDIR" and is_dicom(entry.path):
                dicom.append(Path(entry.path))
    found += [str(path) for path in find_series(dicom)]
    return sorted(found, key=lambda path: path.split(os.sep))


def _is_run_output(folder: str, names: Iterable[str]) -> bool:
    if not is_run_output(folder, names):
        return False
    logger.info("%s is the output folder of a run: its masks are not images", printable(folder))
    return True


def is_run_output(folder: str | Path, names: Iterable[str]) -> bool:
    """Whether a folder with these files is the output folder of a folder inference, by its journal."""
    if JOURNAL not in names:
        return False
    try:
        with open(os.path.join(folder, JOURNAL), "rb") as stream:
            return JOURNAL_BEGIN.match(stream.read(64)) is not None
    except OSError:
        return False


def case_name(path: str | Path) -> str:
    """The file's name without its ending: ``a/b.1.nii.gz`` is case ``b.1``."""
    name = Path(path).name
    return name[: len(name) - len(volume_suffix(name) or "")]


def case_names(paths: Sequence[str | Path]) -> list[str]:
    """A name for each of several files, all different: :func:`case_name`, with folders where it would not tell them.

    ``case1/image.nii.gz`` and ``case2/image.nii.gz`` are ``case1/image`` and ``case2/image``; files that differ in
    their ending alone keep it. A path that is named twice has one name.
    """
    absolute = [os.path.abspath(path) for path in paths]
    different = len(set(absolute))
    names = [case_name(path) for path in absolute]
    if len(set(names)) == different:
        return names
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    relative = [Path(path).relative_to(root) for path in absolute]
    names = [(path.parent / case_name(path)).as_posix() for path in relative]
    return names if len(set(names)) == different else [path.as_posix() for path in relative]
