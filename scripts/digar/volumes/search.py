"""Which volumes a folder holds, and what they are called: the one search and the one way of naming."""

import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from digar.volumes.dicom import is_dicom
from digar.volumes.files import printable
from digar.volumes.reading import volume_suffix

logger = logging.getLogger(__name__)
JOURNAL = "journal.jsonl"  # lies in the output folder of every folder inference
JOURNAL_BEGIN = re.compile(rb'\s*\{"(?:run|name)": "')


def find_volumes(folder: str | Path, leave_out: Iterable[str | Path] = ()) -> list[str]:
    """The volumes below a folder, sorted: NIfTI, MetaImage and NRRD files, and folders that hold DICOM files.

    Left out are hidden files and folders (macOS' ``._*`` among them), and output folders of folder inferences, whose
    masks are no images. Links to folders are followed, but no folder is searched twice. A folder that cannot be opened
    is among the results, so that whoever reads it tells why.

    Args:
        folder: to search; it may be an output folder itself.
        leave_out: further folders that are not searched.
    """
    found: list[str] = []
    seen = {os.path.realpath(place) for place in leave_out}
    waiting = deque([(str(folder), os.path.realpath(folder))])  # path, and where it really lies
    while waiting:
        here, place = waiting.popleft()
        if place in seen:
            logger.info("%s leads to %s, which is searched once", printable(here), printable(place))
            continue
        seen.add(place)
        try:
            with os.scandir(here) as entries:
                listed = sorted((entry for entry in entries if entry.name[:1] != "."), key=lambda entry: entry.name)
        except OSError as error:
            logger.warning("%s cannot be searched: %s", printable(here), error.strerror)
            found.append(here)
            continue
        if here != str(folder) and is_run_output(here, (entry.name for entry in listed)):
            logger.info("%s is the output folder of a run: its masks are no images", printable(here))
            continue
        series = False
        for entry in listed:
            link = entry.is_symlink()
            if _certain(entry.is_dir):
                # links come last, so that a folder is called by its own path
                (waiting.append if link else waiting.appendleft)(
                    (entry.path, os.path.realpath(entry.path) if link else os.path.join(place, entry.name))
                )
            elif volume_suffix(entry.name):
                found += [entry.path] if link or entry.is_file() else []  # a broken link too: its name is to be told
            elif not series and entry.name != "DICOMDIR" and _certain(entry.is_file):
                series = is_dicom(entry.path)
        found += [here] if series else []
    return sorted(found, key=lambda path: path.split(os.sep))


def _certain(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


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
