"""A queue that survives any stop: one process a core, each job's result a file, what has its result is not repeated."""

import fcntl
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from benchmarks.experiments.protocol import Job

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0


def result_file(state: Path, job: str) -> Path:
    """Where a job's result stands."""
    return state / "results" / f"{job}.json"


@contextmanager
def sole(folder: Path) -> Iterator[bool]:
    """Hold a job's folder; False where another process holds it. The system lets go when a process ends, however."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


class Queue:
    """Work through jobs in their order, each as a process of its own, as soon as what they need is there.

    On SIGTERM or Ctrl-C the processes are told to stop (a training saves its state), waited for, and the queue ends;
    the same command goes on.

    Args:
        jobs: of all experiments, each with the folder of its experiment's state.
        command: the words that start a job; its process must write the job's result.
        workers: processes at once.
    """

    def __init__(
        self, jobs: Sequence[tuple[Path, Job]], command: Callable[[Path, Job], list[str]], workers: int
    ) -> None:
        self.jobs = list(jobs)
        self.command = command
        self.workers = workers
        self.running: dict[tuple[Path, Job], subprocess.Popen] = {}
        self.failed: list[tuple[Path, Job]] = []
        self.stopped = False

    def ready(self) -> tuple[Path, Job] | None:
        """The first job that can be started."""
        for state, job in self.jobs:
            if (state, job) in self.running or (state, job) in self.failed or result_file(state, job.name).is_file():
                continue
            if all(result_file(state, need).is_file() for need in job.needs):
                with sole(state / job.name) as free:
                    if free:
                        return state, job
        return None

    def run(self) -> list[str]:
        """Work until nothing can be started any more; the names of the jobs that failed."""
        former = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self.stopped or self.running:
                self._reap()
                job = None if self.stopped or len(self.running) >= self.workers else self.ready()
                if job:
                    self._start(*job)
                elif not self.running and not self.stopped:
                    break
                else:
                    time.sleep(POLL_SECONDS)
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        return [job.name for _, job in self.failed]

    def _start(self, state: Path, job: Job) -> None:
        log = state / job.name / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:  # a process group of its own: Ctrl-C reaches it through this queue alone
            process = subprocess.Popen(
                self.command(state, job), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.running[state, job] = process
        logger.info("%s %s started", state.name, job.name)

    def _reap(self) -> None:
        for (state, job), process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[state, job]
            if result_file(state, job.name).is_file():
                logger.info("%s %s finished", state.name, job.name)
            elif not self.stopped:
                self.failed.append((state, job))
                logger.error("%s %s failed, see %s", state.name, job.name, state / job.name / "log.txt")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
