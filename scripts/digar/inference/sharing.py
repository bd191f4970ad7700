"""Several processes at work in one output folder, on any machines that see it: each image by one, one report.

Bytes of ``journal.lock`` are locked as long as something is done; a process that ends, however it ends, lets go of its
own. Where a file system keeps no locks, processes need different ranks; on Windows there is one process at a time.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from digar.volumes.locks import NO_LOCKS, InUseError, held
from digar.volumes.search import JOURNAL

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)
LOCK_FILE = "journal.lock"
PRESENT, JOURNALS, IMAGES = 0, 2**8, 2**32  # first bytes of what is locked
PATIENCE = 0.2  # seconds between looks at a lock that must come free


class SharedFolder:
    """A process' place in an output folder, until :meth:`leave`.

    Args:
        folder: made where it is missing.
        run: hash of what decides the masks; processes of another one are refused while these are at work.
        rank: of the process.

    Raises:
        InUseError: processes of another run are at work in the folder.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, run: str, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.locks = sys.platform != "win32"
        self.held = contextlib.ExitStack()
        if self.locks:
            # opened once in a process: closing a second handle would release all its locks
            self.file = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            self.held.callback(os.close, self.file)
        else:
            self.held.enter_context(held(self.folder / LOCK_FILE, f"output_dir {self.folder}"))
        try:
            self._enter(run)
        except BaseException:
            self.leave()
            raise
        free = (number for number in range(IMAGES) if self._lock(JOURNALS + number))
        self.journal_number = next(free) if self.locks else rank

    def _enter(self, run: str) -> None:
        while self.locks:
            if self._lock(PRESENT):  # alone: the file is from an earlier run
                about = {"run": run, "process": os.getpid(), "host": socket.gethostname()}
                os.ftruncate(self.file, 0)
                os.pwrite(self.file, json.dumps(about).encode(), 0)
                self._lock(PRESENT, shared=True)
                return
            if self._lock(PRESENT, shared=True):
                about = json.loads(os.pread(self.file, 4096, 0))
                if about["run"] == run:
                    return
                self._unlock(PRESENT)
                if not self._lock(PRESENT):
                    raise InUseError(
                        f"output_dir {self.folder} is in use by a run with other weights or settings (process "
                        f"{about['process']} on {about['host']}): wait until that has ended, or pass another "
                        "--output_dir"
                    )
            time.sleep(PATIENCE)

    def claim(self, image: str) -> bool:
        """Take an image, unless another process has it."""
        return not self.locks or self._lock(_byte_of(image))

    def release(self, image: str) -> None:
        """Let an image go."""
        if self.locks:
            self._unlock(_byte_of(image))

    def leave(self) -> None:
        """Let go of everything."""
        self.held.close()

    def _lock(self, byte: int, shared: bool = False) -> bool:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(self.file, kind | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(
                "%s cannot be locked (%s): let processes that work there at once have different --rank s",
                self.folder, error.strerror,
            )  # fmt: skip
            self.locks = False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self.file, fcntl.LOCK_UN, 1, byte)


def _byte_of(image: str) -> int:
    return IMAGES + int.from_bytes(hashlib.sha256(os.fsencode(image)).digest()[:7], "big")


@contextlib.contextmanager
def reporting(folder: str | Path) -> Iterator[None]:
    """One process at a time writes the report: the last one knows of all images.

    Raises:
        FileNotFoundError: the folder contains no journal.
    """
    with open(Path(folder) / JOURNAL, "r+b") as stream:
        with contextlib.suppress(OSError):  # no locks
            if sys.platform != "win32":
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield
