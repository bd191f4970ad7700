"""The commands of the experiments; see the package."""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from digar.volumes.files import whole_file

from benchmarks.experiments import __doc__ as description
from benchmarks.experiments.protocol import PROTOCOLS, Job, names, read_protocol
from benchmarks.experiments.scheduler import Queue, result_file, sole
from benchmarks.experiments.scores import RESULTS
from benchmarks.experiments.workflows import execute

RUNNING_ELSEWHERE = 75  # exit code


def run(experiments: Sequence[str], protocols: Path, data: Path, state: Path, workers: int) -> int:
    """Work through the jobs of the experiments; 1 where some failed."""
    jobs = [(state / name, job) for name in experiments for job in read_protocol(name, protocols).jobs.values()]

    def command(folder: Path, job: Job) -> list[str]:
        words = [sys.executable, "-m", "benchmarks.experiments", "job", folder.name, job.name]
        return [*words, "--protocols", str(protocols), "--data", str(data), "--state", str(state)]

    failed = Queue(jobs, command, workers).run()
    if failed:
        print(f"{len(failed)} jobs failed: {', '.join(failed)}")
    return int(bool(failed))


def do(experiment: str, name: str, protocols: Path, data: Path, state: Path) -> int:
    """Do one job and write its result."""
    protocol = read_protocol(experiment, protocols)
    folder = state / experiment
    with sole(folder / name) as free:
        if not free:
            return RUNNING_ELSEWHERE
        result = execute(protocol, protocol.jobs[name], folder, data)
        with whole_file(result_file(folder, name)) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def status(experiments: Sequence[str], state: Path) -> int:
    """Print what is done and what is not."""
    for name in experiments:
        jobs = read_protocol(name).jobs
        done = [job for job in jobs if result_file(state / name, job).is_file()]
        print(f"{name}: {len(done)} of {len(jobs)} jobs done")
        print("\n".join(f"  {'done' if job in done else '    '} {job}" for job in jobs))
    return 0


def collect(state: Path) -> int:
    """Copy finished results beside the pages of results, where they are committed."""
    for name in names():
        for file in (state / name / "results").glob("*.json"):
            with whole_file(RESULTS / name / file.name) as temporary:
                shutil.copyfile(file, temporary)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    options = {name: commands.add_parser(name) for name in ("run", "job", "status", "collect")}
    for name in ("run", "status"):
        options[name].add_argument("experiments", nargs="+", help=", ".join(names()))
    options["job"].add_argument("experiment")
    options["job"].add_argument("name", help="as status lists it")
    for name in ("run", "job"):
        options[name].add_argument("--data", type=Path, required=True, help="the folder of all data sets")
        options[name].add_argument("--protocols", type=Path, default=PROTOCOLS, help="the folder of the YAML files")
    for name in ("run", "job", "status", "collect"):
        options[name].add_argument("--state", type=Path, required=True, help="where runs are kept, outside the code")
    options["run"].add_argument("--workers", type=int, default=1, help="jobs at once, a core each")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.command == "run":
        return run(given.experiments, given.protocols, given.data, given.state, given.workers)
    if given.command == "job":
        return do(given.experiment, given.name, given.protocols, given.data, given.state)
    if given.command == "status":
        return status(given.experiments, given.state)
    return collect(given.state)


if __name__ == "__main__":
    sys.exit(main())
