"""The bundle as a command: mistyped options are refused, and the last line of an error says what is wrong."""

import difflib
import inspect
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

import monai.bundle
from monai.bundle import ConfigParser
from monai.bundle.utils import ID_SEP_KEY

from digar.training.tracking import disable_telemetry

SOME_FAILED = 3  # exit code


def is_bundle_command(arguments: Sequence[str]) -> bool:
    """Whether the process was started as ``python -m monai.bundle run ...``."""
    return arguments[1:2] == ["run"] and arguments[0].replace("\\", "/").endswith("monai/bundle/__main__.py")


def prepare_command() -> None:
    """First step of every workflow: nothing is reported to the internet; as a command, options are checked and errors
    made readable."""
    disable_telemetry()
    if is_bundle_command(sys.argv):
        sys.excepthook = explain_error
        refuse_unknown_options(sys.argv)


def finish_command(failed: int) -> None:
    """Last step of a workflow over many files: the command ends with 3 if some failed. As a library, it does nothing.

    Args:
        failed: how many files failed.
    """
    if failed and is_bundle_command(sys.argv):
        sys.exit(SOME_FAILED)


def explain_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback, then the first cause in a line: MONAI's own last line names only the config item."""
    if isinstance(error, KeyboardInterrupt):
        print("\nstopped by Ctrl-C", file=sys.stderr)
        return
    traceback.print_exception(kind, error, trace)
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    print(f"\nERROR {type(cause).__name__}: {cause}", file=sys.stderr)


def refuse_unknown_options(arguments: Sequence[str]) -> None:
    """Check a command line against the ids of its config files.

    An option may name an id of the files, a part of one (``train#trainer#amp``) whose parent exists, or a parameter of
    ``monai.bundle.run``.

    Args:
        arguments: the words of the command line.

    Raises:
        ValueError: names the unknown option and the nearest id.
    """
    options: dict[str, str] = {}
    for i, word in enumerate(arguments):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name.replace("-", "_")] = value if equals else (arguments[i + 1] if i + 1 < len(arguments) else "")
    collected = ConfigParser.load_config_file(options["args_file"]) if options.get("args_file") else {}
    options = {**{name: str(value) for name, value in collected.items()}, **options}
    files = [name.strip(" '\"") for name in options.get("config_file", "").strip("[]() ").split(",")]
    parser = ConfigParser(ConfigParser.load_config_files([name for name in files if name]))
    command_options = set(inspect.signature(monai.bundle.run).parameters) - {"override"} | {"help"}
    for name in options:
        identity = name.replace("#", ID_SEP_KEY)
        parent = identity.rpartition(ID_SEP_KEY)[0]
        if name in command_options or identity in parser or (parent and parent in parser):
            continue
        known = [*parser.get(), *command_options]
        nearest = max(known, key=lambda k: difflib.SequenceMatcher(None, name, k).ratio())
        raise ValueError(
            f"option --{name} is neither an id of {', '.join(files)} nor an option of the command; "
            f"did you mean --{nearest}?"
        )
