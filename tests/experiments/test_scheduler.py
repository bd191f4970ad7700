"""The queue: order, needs, resuming, failures."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.experiments.protocol import Job
from benchmarks.experiments.scheduler import Queue, result_file, sole
from tests import conftest

WRITE = (
    "import pathlib, sys, time; r = pathlib.Path(sys.argv[1]); r.parent.mkdir(parents=True, exist_ok=True);"
    "open(r.parents[1] / 'order', 'a').write(r.stem + '\\n'); time.sleep(float(sys.argv[2])); r.write_text('{}')"
)


def start(state: Path, job: Job, seconds: float = 0.0) -> list[str]:
    return [sys.executable, "-c", WRITE, str(result_file(state, job.name)), str(seconds)]


def order(state: Path) -> list[str]:
    return (state / "order").read_text().split()


def test_a_job_waits_for_what_it_needs_and_finished_ones_are_not_repeated(tmp_path) -> None:
    first = Job("pretraining", "next")
    jobs = [(tmp_path, Job("run", "pretrained", 3, needs=(first.name,))), (tmp_path, first)]
    assert Queue(jobs, start, workers=2).run() == []
    assert order(tmp_path) == ["pretraining_next", "run_pretrained_3_draw0_seed0"]
    assert Queue(jobs, start, workers=2).run() == []
    assert len(order(tmp_path)) == 2


def test_a_failure_stops_what_needs_it_alone_and_is_tried_again_the_next_time(tmp_path) -> None:
    broken, free = Job("pretraining", "broken"), Job("run", "free")
    jobs = [(tmp_path, broken), (tmp_path, Job("run", "after", needs=(broken.name,))), (tmp_path, free)]

    def command(state: Path, job: Job) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no disk')"] if job == broken else start(state, job)

    assert Queue(jobs, command, workers=1).run() == ["pretraining_broken"]
    assert "no disk" in (tmp_path / broken.name / "log.txt").read_text()
    assert order(tmp_path) == [free.name]
    assert Queue(jobs, start, workers=1).run() == []
    assert order(tmp_path)[1:] == ["pretraining_broken", "run_after_all_draw0_seed0"]


@pytest.fixture
def script(tmp_path) -> Callable[[str], subprocess.Popen]:
    """Starts a program of a few lines beside the test, on this test's folder."""

    def begin(lines: str) -> subprocess.Popen:
        file = tmp_path / "program.py"
        file.write_text(f"import sys, time\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n{lines}")
        path = os.pathsep.join([str(conftest.ROOT / "scripts"), str(conftest.ROOT)])
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.Popen([sys.executable, str(file), str(tmp_path)], env=environment, stdout=subprocess.PIPE)

    return begin


def test_told_to_stop_the_queue_stops_its_jobs_and_goes_on_later(tmp_path, script) -> None:
    jobs = [(tmp_path, Job("run", name)) for name in ("a", "b")]
    process = script(
        "from benchmarks.experiments.protocol import Job\n"
        "from benchmarks.experiments.scheduler import Queue, result_file\n"
        "jobs = [(folder, Job('run', name)) for name in ('a', 'b')]\n"
        "def start(state, job):\n"
        f"    return [sys.executable, '-c', {WRITE!r}, str(result_file(state, job.name)), '600']\n"
        "sys.exit(Queue(jobs, start, workers=1).run() != [])"
    )
    while not (tmp_path / "order").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 0
    assert order(tmp_path) == ["run_a_all_draw0_seed0"]
    assert not list(tmp_path.glob("results/*"))
    assert Queue(jobs, start, workers=1).run() == []
    assert sorted(set(order(tmp_path))) == ["run_a_all_draw0_seed0", "run_b_all_draw0_seed0"]


def test_a_job_that_another_process_works_on_is_left_to_it(tmp_path) -> None:
    job = Job("run", "a")
    with sole(tmp_path / job.name) as free:
        assert free
        assert Queue([(tmp_path, job)], start, workers=1).run() == []
    assert not result_file(tmp_path, job.name).is_file()


def test_a_killed_process_lets_go_of_its_job(tmp_path, script) -> None:
    process = script(
        "from benchmarks.experiments.scheduler import sole\n"
        "with sole(folder / 'a'):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    process.stdout.readline()
    with sole(tmp_path / "a") as free:
        assert not free
    process.kill()
    process.wait()
    with sole(tmp_path / "a") as free:
        assert free
