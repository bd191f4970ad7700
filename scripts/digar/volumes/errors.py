"""What an error says to people: the first cause that is not a library's wrapper, in a line."""

import re

LAST_LINES = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception)): (.+)$", re.MULTILINE)  # of tracebacks, as text


def first_error(error: BaseException) -> BaseException:
    """The outermost error that MONAI did not raise to wrap another one: it holds the message meant for people.

    An error that says what to do is often raised *from* a smaller one; that one is not for people.
    """
    while error.__cause__ is not None and _raised_in_monai(error):
        error = error.__cause__
    return error


def in_a_line(error: BaseException) -> str:
    """``VolumeError: scan.nii.gz: is empty ...``: kind and text of :func:`first_error`.

    PyTorch hands errors of data workers on as the text of their traceback; then the kind and text are taken from it.
    """
    shown = first_error(error)
    kind, text = type(shown).__name__, str(shown).strip()
    if "Original Traceback (most recent call last)" in text:
        raised = [found for found in LAST_LINES.findall(text) if not found[1].startswith("applying transform ")]
        kind, text = raised[-1] if raised else (kind, text.splitlines()[-1])
    return f"{kind}: {text or 'no further word'}"


def _raised_in_monai(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("monai.")
