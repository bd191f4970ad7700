"""The files below a folder, in the one way in which folders are searched."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from digar.volumes.files import printable

logger = logging.getLogger(__name__)


def walk(
    folder: str | Path,
    leave_out: Iterable[str | Path] = (),
    passed_over: Callable[[str, Sequence[str]], bool] = lambda place, names: False,
) -> Iterator[tuple[str, list[os.DirEntry] | None]]:
    """Every folder from one on, and its entries that are no folders, sorted; None for a folder that cannot be opened.

    Hidden files and folders (macOS' ``._*`` among them) are left out. Links to folders are followed, but no folder is
    searched twice.

    Args:
        folder: to search.
        leave_out: further folders that are not searched.
        passed_over: whether not to search a folder below, from its path and the names in it.
    """
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
            yield here, None
            continue
        if here != str(folder) and passed_over(here, [entry.name for entry in listed]):
            continue
        for entry in filter(_is_folder, listed):
            # links come last, so that a folder is called by its own path
            if entry.is_symlink():
                waiting.append((entry.path, os.path.realpath(entry.path)))
            else:
                waiting.appendleft((entry.path, os.path.join(place, entry.name)))
        yield here, [entry for entry in listed if not _is_folder(entry)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
