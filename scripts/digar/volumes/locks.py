"""One run at a time: a lock that the operating system holds for a process, and lets go when the process ends."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".digar.lock"  # in an output folder
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what file systems without locks answer

logger = logging.getLogger(__name__)


class InUseError(RuntimeError):
    """Another run works on the same files."""


@contextmanager
def held(lock_file: str | Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs. A killed process holds no lock, even if it leaves the file behind.

    Where the file system has no locks, the block runs with a warning.

    Args:
        lock_file: created where it is missing, and left there.
        what: is locked, with the option that names it: ``output_dir runs/training``.

    Raises:
        InUseError: another run, or another thread of this process, holds it.
        OSError: the file cannot be written.
    """
    lock_file = Path(lock_file)
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        option = what.split()[0]
        raise InUseError(
            f"{what} is in use by another run: wait until that has ended, or pass another --{option}"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s cannot be locked (%s): let no other run write there", what, error.strerror)
    try:
        yield
    finally:
        lock.release()
