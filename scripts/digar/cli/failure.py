"""How a command ends by an error: one line on the terminal, everything in the log file."""

import logging
import os
import sys
import traceback
from types import TracebackType

from digar.volumes.errors import in_a_line


def explain_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error in a line; its traceback goes to the log file, and is shown where ``DIGAR_DEBUG`` is set."""
    if isinstance(error, KeyboardInterrupt):
        print("\nstopped by Ctrl-C", file=sys.stderr)
        return
    shown = "".join(traceback.format_exception(kind, error, trace))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, shown, None, None))
    if os.environ.get("DIGAR_DEBUG"):
        print(shown, file=sys.stderr)
    print(f"\nERROR {in_a_line(error)}", file=sys.stderr)  # a progress bar may stand on the line
