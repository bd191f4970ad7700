"""A lock refuses a second run by name, and is gone with the process that held it."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from digar.volumes import locks
from digar.volumes.locks import InUseError, held

HOLD = """
import os, sys, time
from digar.volumes.locks import held
with held(sys.argv[1], "output_dir here"):
    begun, begin = os.pipe()
    if os.fork() == 0:
        os.write(begin, b".")
        time.sleep(5)  # a data worker, which lives a little longer than its training
        os._exit(0)
    os.read(begun, 1)
    print("held", flush=True)
    time.sleep(60)
"""


def is_free(lock_file: Path) -> bool:
    try:
        with held(lock_file, "output_dir here"):
            return True
    except InUseError:
        return False


def test_a_second_run_is_refused_with_the_folder_and_the_option(tmp_path):
    with (
        held(tmp_path / "out/.lock", f"output_dir {tmp_path}"),
        pytest.raises(
            InUseError, match=f"output_dir {tmp_path} is in use by another run: .* pass another --output_dir"
        ),
        held(tmp_path / "out/.lock", f"output_dir {tmp_path}"),
    ):
        pass
    assert is_free(tmp_path / "out/.lock")


def test_another_thread_is_another_run(tmp_path):
    answers = []
    with held(tmp_path / ".lock", "output_dir here"):
        thread = threading.Thread(target=lambda: answers.append(is_free(tmp_path / ".lock")))
        thread.start()
        thread.join()
    assert answers == [False]


def test_a_run_that_fails_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / ".lock", "output_dir here"):
        _ = 1 / 0
    assert is_free(tmp_path / ".lock")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="data workers are forked on POSIX systems only")
def test_a_killed_process_holds_nothing_even_while_its_workers_live_on(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert not is_free(tmp_path / ".lock")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert is_free(tmp_path / ".lock")


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(self, **keywords) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    with held(tmp_path / ".lock", "output_dir here"):
        pass
    assert "output_dir here cannot be locked (No locks available)" in caplog.text
