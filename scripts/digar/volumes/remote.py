"""Scans in an object store or on a web server, fetched one at a time by fsspec when a list names them."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from digar.volumes.header import VolumeError

PROTOCOLS = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "http": "aiohttp", "https": "aiohttp"}  # and their packages
ADDRESS = re.compile(f"({'|'.join(PROTOCOLS)})://.")
VERSION = ("size", "ETag", "LastModified", "last_modified", "etag", "mtime", "generation")  # of what a store tells


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address, as ``s3://bucket/scan.nii.gz`` is, and no file of this machine."""
    return ADDRESS.match(str(path)) is not None


def remote_state(address: str) -> dict[str, str]:
    """What tells whether a scan has changed since it was fetched: its size and version, as far as the store knows.

    Raises:
        VolumeError: it is not there, cannot be reached, or a package for its protocol is missing.
    """
    with _store(address) as (system, path):
        facts: dict[str, Any] = system.info(path)
    return {name: str(facts[name]) for name in VERSION if facts.get(name) is not None}


@contextmanager
def fetched(address: str) -> Iterator[str]:
    """The path of a scan's local copy under its own name, which is removed afterwards.

    Raises:
        VolumeError: see :func:`remote_state`; what is wrong with the copy is said of the address.
    """
    with tempfile.TemporaryDirectory(prefix="digar-") as folder:
        target = str(Path(folder) / address.partition("?")[0].rpartition("/")[2])
        with _store(address) as (system, path):
            system.get_file(path, target)
        try:
            yield target
        except VolumeError as error:
            raise type(error)(address, error.reason) from error


@contextmanager
def _store(address: str) -> Iterator[tuple[Any, str]]:
    """The file system of an address and the path in it; what goes wrong there is an error that names the address."""
    package = PROTOCOLS[address.partition(":")[0]]
    kinds: tuple[type[Exception], ...] = (OSError,)
    try:
        import fsspec

        if package == "aiohttp":
            import aiohttp

            kinds = (OSError, aiohttp.ClientError)
        yield fsspec.core.url_to_fs(address)
    except ImportError:
        raise VolumeError(address, f"needs a package to be fetched: pip install {package}") from None
    except kinds as error:
        raise VolumeError(address, f"cannot be fetched ({error or type(error).__name__})") from error
