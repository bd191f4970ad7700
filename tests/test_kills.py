"""Real processes are killed at random moments, in one process and in two, and end where an unbroken run does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from digar.data.phantoms import write_phantoms
from digar.networks.compilation import missing_compiler

from tests.conftest import HANGING, ROOT, SMALL

pytestmark = pytest.mark.slow
STEPS = 12  # 4 epochs of 3 steps; 6 training cases


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 cases to train on and 2 to validate, so that two processes share them without a rest."""
    folder = tmp_path_factory.mktemp("phantoms") / "task"
    write_phantoms(folder, num_training=8, num_test=0, seed=2)
    return folder


OPTIONS = {**SMALL, "max_epochs": 4, "validation_share": 0.25, "save_minutes": 0, "precision": "float32"}


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network with plain gradient descent in float32: processes differ by rounding alone.

    The rate is small, as steps multiply that: at 0.05 the weights are 1e-4 apart after 12 steps (1e-16 in float64).
    """
    file = tmp_path_factory.mktemp("overlay") / "kills.json"
    groups = "$[{'params': list(@network.parameters()), 'gates': False}]"
    descent = {"_target_": "torch.optim.SGD", "params": groups, "lr": 0.005}
    file.write_text(json.dumps({**OPTIONS, "optimizer": descent}))
    return file


@pytest.fixture(scope="module")
def adamw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network with the configs' own optimizer, whose state is sharded too."""
    file = tmp_path_factory.mktemp("overlay") / "adamw.json"
    file.write_text(json.dumps({**OPTIONS, "batch_size": 1}))
    return file


def start(
    config: str, studies: Path, overlay: Path, out: Path, multi: str = "", restarts: int = 0, **options: object
) -> subprocess.Popen:
    """A training as users start it, in a session of its own; with the config ``multi`` in two processes."""
    names = [f"configs/{config}", *([f"configs/{multi}.json"] if multi else []), str(overlay)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"--max_restarts={restarts}"]
    launcher = launcher if multi else []
    words = [
        sys.executable, "-W", "ignore", *launcher, "-m", "monai.bundle", "run",
        "pretraining" if config == "pretrain.yaml" else "training", "--config_file", str(names),
        "--dataset_dir", str(studies), "--output_dir", str(out), "--weights_file", str(out / "model.pt"),
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.txt").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def children(process: int) -> list[int]:
    """The processes that torchrun started, by rank."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return sorted(int(line) for line in listed.stdout.split())


def last_step(out: Path) -> int:
    return max((int(file.stem.removeprefix("step_")) for file in (out / "states").glob("step_*.pt")), default=0)


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.01)


def finish(process: subprocess.Popen, out: Path, code: int = 0) -> None:
    try:
        ended = process.wait(HANGING)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # the stacks go to the log
        ended = process.wait()
    assert ended == code, (out / "log.txt").read_text()[-6000:]


def final_state(out: Path) -> dict:
    return torch.load(out / f"states/step_{STEPS:07d}.pt", weights_only=True)


compiler = pytest.mark.skipif(missing_compiler(torch.device("cpu")) is not None, reason="needs a C++ compiler")


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("train.json", {"network_def#dropout": 0.2}),
        ("pretrain.yaml", {}),
        pytest.param("pretrain.yaml", {"compile": True}, marks=compiler),
    ],
)
def test_killed_at_random_moments_it_ends_bit_for_bit_where_an_unbroken_run_does(
    config, options, studies, overlay, tmp_path
):
    chance = random.Random(seed := random.SystemRandom().randrange(10**6))
    print(f"seed of the moments: {seed}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(start(config, studies, overlay, whole, num_workers=1, **options), whole)
    for step in sorted(chance.sample(range(1, STEPS), 2)):
        process = start(config, studies, overlay, parts, num_workers=1, resume="auto", **options)
        wait_until(process, lambda step=step: last_step(parts) >= step)
        time.sleep(chance.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        print(f"killed after step {last_step(parts)}")
        process.wait()
    finish(start(config, studies, overlay, parts, num_workers=1, resume="auto", **options), parts)
    expected, state = final_state(whole), final_state(parts)
    assert str(state["optimizer"]) == str(expected["optimizer"])
    assert state["best_weights"] == expected["best_weights"]
    for name, tensor in expected["network"].items():
        assert torch.equal(tensor, state["network"][name]), name
    best, written = (torch.load(out / "model.pt", weights_only=True) for out in (whole, parts))
    assert all(torch.equal(tensor, written[name]) for name, tensor in best.items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_with_its_data_workers_is_a_clean_stop(number, studies, overlay, tmp_path):
    process = start("pretrain.yaml", studies, overlay, tmp_path, num_workers=2)
    wait_until(process, lambda: last_step(tmp_path) >= 2)
    os.killpg(process.pid, number)
    finish(process, tmp_path, 128 + number)
    log = (tmp_path / "log.txt").read_text()
    assert f"stopped by {number.name} after step {last_step(tmp_path)} of {STEPS}" in log
    assert "Traceback" not in log
    finish(start("pretrain.yaml", studies, overlay, tmp_path, resume=True), tmp_path)


DDP, FSDP = "multi_gpu_train", "multi_gpu_fsdp"


@pytest.mark.parametrize(
    ("config", "first", "last", "options"),
    [
        ("train.json", DDP, DDP, {}),
        ("train.json", FSDP, DDP, {}),
        ("pretrain.yaml", DDP, FSDP, {}),
        pytest.param("pretrain.yaml", DDP, DDP, {"compile": True}, marks=compiler),
    ],
)
def test_one_process_two_and_a_change_between_them_train_the_same_weights(
    config, first, last, options, studies, overlay, tmp_path
):
    """One process throughout, against two that torchrun is told to stop, then one, then two to the end."""
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    finish(start(config, studies, overlay, one, batch_size=2, **options), one)

    process = start(config, studies, overlay, mixed, first, batch_size=1, **options)
    wait_until(process, lambda: last_step(mixed) >= 2)
    process.terminate()
    assert process.wait() != 0
    assert "stopped by SIGTERM" in (mixed / "log.txt").read_text()
    assert 2 <= last_step(mixed) < STEPS

    process = start(config, studies, overlay, mixed, batch_size=2, resume=True, **options)
    before = last_step(mixed)
    wait_until(process, lambda: last_step(mixed) > before)
    process.terminate()
    assert process.wait() in (143, 0)
    finish(start(config, studies, overlay, mixed, last, batch_size=1, resume=True, **options), mixed)

    expected, state = final_state(one), final_state(mixed)
    largest = max(tensor.sub(state["network"][name]).abs().max().item() for name, tensor in expected["network"].items())
    print(f"largest difference of a weight: {largest:.2e}")
    for name, tensor in expected["network"].items():
        torch.testing.assert_close(state["network"][name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    assert state["best_weights"]["best"] == pytest.approx(expected["best_weights"]["best"], rel=1e-4)


@pytest.fixture(scope="module")
def unbroken(studies: Path, adamw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded training that nobody stops."""
    out = tmp_path_factory.mktemp("unbroken")
    finish(start("train.json", studies, adamw, out, FSDP), out)
    return out


def assert_same_end(out: Path, unbroken: Path) -> None:
    """Weights, moments and best weights, bit for bit; all whole and plain."""
    expected, state = final_state(unbroken), final_state(out)
    assert str(state["optimizer"]) == str(expected["optimizer"])
    assert len(state["optimizer"]["state"]) == len(expected["network"])
    best, written = (torch.load(folder / "model.pt", weights_only=True) for folder in (unbroken, out))
    for weights, others in ((state["network"], expected["network"]), (written, best)):
        for name, tensor in others.items():
            assert type(weights[name]) is torch.Tensor
            assert torch.equal(weights[name], tensor), name


def test_a_sharded_training_killed_at_random_moments_ends_bit_for_bit_where_an_unbroken_one_does(
    studies, adamw, unbroken, tmp_path
):
    chance = random.Random(seed := random.SystemRandom().randrange(10**6))
    print(f"seed of the moments: {seed}")
    process, step = start("train.json", studies, adamw, tmp_path, FSDP), chance.randrange(1, STEPS - 1)
    wait_until(process, lambda: last_step(tmp_path) >= step)
    time.sleep(chance.uniform(0, 0.3))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    print(f"killed after step {last_step(tmp_path)}")
    finish(start("train.json", studies, adamw, tmp_path, FSDP, resume=True), tmp_path)
    assert_same_end(tmp_path, unbroken)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_is_killed_and_torchrun_goes_on_by_itself(rank, studies, adamw, unbroken, tmp_path):
    process = start("train.json", studies, adamw, tmp_path, FSDP, restarts=1)
    wait_until(process, lambda: last_step(tmp_path) >= 4)
    os.kill(children(process.pid)[rank], signal.SIGKILL)
    finish(process, tmp_path)
    assert "training resumes from" in (tmp_path / "log.txt").read_text()
    assert_same_end(tmp_path, unbroken)


SRUN = """#!/bin/bash
# As srun: the command once for each task; as slurmd: SIGUSR1 to every task as soon as there is a state, the first time.
while [ "${1#--}" != "$1" ]; do shift; done
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    tasks="$tasks $!"
done
if [ ! -e signalled ]; then
    until ls "$OUT"/states/step_*.pt > /dev/null 2>&1; do sleep 0.1; done
    touch signalled
    kill -USR1 $tasks
fi
highest=0
for task in $tasks; do
    wait $task
    code=$?
    [ $code -gt $highest ] && highest=$code
done
exit $highest
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi
"""


def test_the_slurm_script_requeues_when_time_is_over_and_then_goes_on(studies, overlay, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    python = f'#!/bin/bash\nexec {sys.executable} -W ignore "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": python}.items():
        for note in ("signalled", "requeued"):
            text = text.replace(note, str(tmp_path / note))
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text((ROOT / "examples/pretrain.slurm").read_text().replace("configs/base.json", str(overlay)))
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
        "SLURM_JOB_ID": str(random.SystemRandom().randrange(20000)),
        "SLURM_JOB_NODELIST": "localhost",
    }
    command = ["bash", str(script), str(studies), str(tmp_path / "out"), "--batch_size", "1", "--num_workers", "1"]
    for code in (138, 0):
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
        assert (tmp_path / "requeued").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    assert last_step(tmp_path / "out") == STEPS
