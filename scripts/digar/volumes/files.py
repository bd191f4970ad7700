"""Files in one way: written whole or not at all, tables that open as text, text read whatever wrote it, hashes."""

import codecs
import csv
import hashlib
import io
import json
import math
import os
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if sys.platform != "win32":  # there leftovers of killed runs stay
    import fcntl

TEMPORARY = re.compile(r"\.digar-[0-9a-f]{32}(\..*)?")  # names of files that are being written
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is run by spreadsheet programs
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
DELIMITERS = ",;\t"


# Writing


@contextmanager
def whole_file(target: str | Path) -> Iterator[Path]:
    """A temporary name beside the target, renamed when the block ends, removed when it fails.

    What stood under the target's name is whole until the new content is on the disk.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    ending = ".nii.gz" if target.name.lower().endswith(".nii.gz") else target.suffix[:16]  # tells nibabel to compress
    temporary = target.with_name(f".digar-{uuid.uuid4().hex}{ending}")
    with temporary.open("xb") as held:
        if sys.platform == "win32":
            held.close()
        else:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(held, fcntl.LOCK_EX)  # as long as it is written: see remove_leftovers
        try:
            yield temporary
            with temporary.open("r+b") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that killed runs left in a folder; those that another run is writing stay."""
    if sys.platform == "win32" or not Path(folder).is_dir():
        return
    for entry in list(os.scandir(folder)):
        if TEMPORARY.fullmatch(entry.name):
            with suppress(OSError), open(entry.path, "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole or not at all; undecodable names in it become readable, see :func:`printable`.

    Raises:
        OSError: see :func:`whole_file`.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_rows(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file of rows, the first one its header. NaN becomes an empty field.

    A text that a spreadsheet program would take for a formula (it begins with ``= + - @``) gets an apostrophe before
    it, as such programs write it; :func:`read_rows` takes it off.

    Raises:
        OSError: see :func:`whole_file`.
    """
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return ""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def printable(text: str | Path) -> str:
    r"""A name as it can be shown: bytes of a file name that are not UTF-8, and control characters, become ``\xfc``."""
    return "".join(map(_shown, str(text)))


def _shown(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python keeps such bytes
        return f"\\x{ord(character) - 0xDC00:02x}"
    hidden = character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff"
    return repr(character)[1:-1] if hidden else character


# Reading


def read_text(path: str | Path) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 where the mark that begins the file says so; the mark is taken off.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is in another encoding, or no text; names the line.
    """
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line, name = content.count(b"\n", 0, error.start) + 1, encoding.removesuffix("-sig").upper()
        raise ValueError(f"{path}, line {line}: this is no {name} text: save the file as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} is not text (it contains zero bytes): save the file as UTF-8")
    return text


def read_json(path: str | Path, kind: type = object) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        kind: ``dict`` or ``list``, where only that will do.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or of another kind.
    """
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, kind):
        wanted = "an object {...}" if kind is dict else "a list [...]"
        raise ValueError(f"{path} must hold {wanted}, it holds {_json_kind(content)}")
    return content


def _json_kind(content: Any) -> str:
    names = {dict: "an object {...}", list: "a list [...]", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(content), "a number")


def read_rows(path: str | Path) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file that hold anything, with the numbers of their lines; fields without spaces around them.

    Fields are parted by commas, semicolons or tabs, whichever the first row has most of.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no text, or a quotation does not end.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=first.count), strict=True)
    rows = []
    try:
        for row in reader:
            fields = [_field(field.strip()) for field in row]
            if any(fields):
                rows.append((reader.line_num, fields))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _field(text: str) -> str:
    return text[1:] if text[:1] == "'" and text[1:].startswith(FORMULA) else text


def read_table(path: str | Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file below its header, as column to field, with the numbers of their lines.

    Args:
        path: of the file.
        columns: that it must have.

    Raises:
        OSError: the file cannot be read.
        ValueError: see :func:`read_rows`; or a column is missing, or a row has fewer or more fields than the header.
    """
    rows = read_rows(path)
    header = rows[0][1] if rows else []
    while header and not header[-1]:
        header.pop()
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has more than one column {', '.join(twice)}: name each column once")
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(
            f"{path} has the columns {', '.join(header) or '(none)'}; it lacks {', '.join(missing)}: "
            "name the columns in its first line"
        )
    return [(line, dict(zip(header, row_of(path, line, row, len(header)), strict=True))) for line, row in rows[1:]]


def row_of(path: str | Path, line: int, row: Sequence[str], length: int) -> list[str]:
    """A row with as many fields as the header; empty ones at its end do not count.

    Raises:
        ValueError: it has fewer or more.
    """
    if len(row) < length or any(row[length:]):
        raise ValueError(
            f"{path}, line {line}: {len(row)} fields where the header has {length}: "
            "complete the line, and put fields that hold a comma in quotation marks"
        )
    return list(row[:length])


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
