"""The bundle as a command: mistyped options are refused, and the last line of an error says what is wrong."""

import difflib
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import fire
import monai.bundle
from monai.bundle import ConfigParser
from monai.bundle.utils import ID_SEP_KEY
from monai.utils import ensure_tuple

from digar.cli.failure import explain_error
from digar.cli.values import check_values
from digar.training.tracking import disable_telemetry

SOME_FAILED = 3  # exit code
LOG_FORMAT = "%(asctime)s - %(levelname)s - %(message)s"  # as in configs/logging.conf, and MONAI's own
QUIET = (".FolderEvaluator", "highdicom.base")  # loggers
CHATTER = ("Engine run ", "nvImageCodec is not available")  # beginnings of what every run would say


def is_bundle_command(arguments: Sequence[str]) -> bool:
    """Whether the process was started as ``python -m monai.bundle run ...``."""
    return arguments[1:2] == ["run"] and arguments[0].replace("\\", "/").endswith("monai/bundle/__main__.py")


def is_command(arguments: Sequence[str]) -> bool:
    """Whether the process was started as ``digar ...`` or as ``python -m monai.bundle run ...``."""
    program = arguments[0].replace("\\", "/") if arguments else ""
    return is_bundle_command(arguments) or program.endswith(("/digar", "/digar.exe", "/digar/__main__.py"))


def prepare_command(output_dir: str | Path | None = None) -> None:
    """First step of every workflow: nothing is reported to the internet.

    As a command, mistyped options are refused, an error is one line, and what is logged is kept in a file.

    Args:
        output_dir: where ``log.txt`` goes (``log_1.txt``, ... of further processes); None for no log file.

    Raises:
        ValueError: an option that no config knows.
        OSError: the folder cannot be written.
    """
    disable_telemetry()
    if not is_command(sys.argv):
        return
    sys.excepthook = explain_error
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
    logging.getLogger().handlers[:] = [_without_chatter(handler) for handler in logging.getLogger().handlers]
    if output_dir is not None:
        keep_log(Path(output_dir))
    if is_bundle_command(sys.argv):
        refuse_unknown_options(sys.argv)


def keep_log(folder: Path) -> None:
    """Write what is logged from here on to ``log.txt`` in a folder as well, after what former runs wrote there."""
    rank = os.environ.get("RANK", "0")
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / (f"log_{rank}.txt" if rank != "0" else "log.txt"), encoding="utf-8")
    file.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.getLogger().addHandler(_without_chatter(file))
    logging.getLogger(__name__).debug("started as %s", " ".join(sys.argv))


def _without_chatter(handler: logging.Handler) -> logging.Handler:
    """Leave out what says nothing: that an engine begins and ends, which readers are missing, what DICOM SEG copies."""
    handler.addFilter(lambda record: not record.getMessage().startswith(CHATTER) and not record.name.endswith(QUIET))
    return handler


def finish_command(failed: int) -> None:
    """Last step of a workflow over many files: the command ends with 3 if some failed. As a library, it does nothing.

    Args:
        failed: how many files failed.
    """
    if failed and is_command(sys.argv):
        sys.exit(SOME_FAILED)


def refuse_unknown_options(arguments: Sequence[str]) -> None:
    """Check a command line against the ids of its config files.

    An option may name an id of the files, a part of one (``train#trainer#amp``) whose parent exists, or a parameter of
    ``monai.bundle.run``.

    Args:
        arguments: the words of the command line.

    Raises:
        ValueError: names the unknown option and the nearest id, or the option whose value cannot be.
    """
    options: dict[str, str] = {}
    for i, word in enumerate(arguments):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name.replace("-", "_")] = value if equals else (arguments[i + 1] if i + 1 < len(arguments) else "")
    collected = ConfigParser.load_config_file(options["args_file"]) if options.get("args_file") else {}
    options = {**{name: str(value) for name, value in collected.items()}, **options}
    files = fire.parser.DefaultParseValue(options.get("config_file", ""))  # as MONAI's command reads it
    parser = ConfigParser(ConfigParser.load_config_files(files))
    check_values({name: fire.parser.DefaultParseValue(value) for name, value in options.items()})
    command_options = set(inspect.signature(monai.bundle.run).parameters) - {"override"} | {"help"}
    for name in options:
        identity = name.replace("#", ID_SEP_KEY)
        parent = identity.rpartition(ID_SEP_KEY)[0]
        if name in command_options or identity in parser or (parent and parent in parser):
            continue
        known = [*parser.get(), *command_options]
        nearest = max(known, key=lambda k: difflib.SequenceMatcher(None, name, k).ratio())
        raise ValueError(
            f"option --{name} is neither an id of {', '.join(ensure_tuple(files))} nor an option of the command; "
            f"did you mean --{nearest}?"
        )
