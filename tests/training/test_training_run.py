"""Signals stop a training after its step, with its state saved and an exit code that schedulers know."""

import logging
import os
import signal
import threading
from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from digar.volumes.locks import InUseError
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from tests.training.tiny import EPOCHS, STEPS, Tiny, make_run

TOTAL = EPOCHS * STEPS


def signal_in_step(run: Tiny, step: int, number: int, times: int = 1) -> None:
    """The signals come while this step is computed."""

    def send(engine: Engine) -> None:
        if engine.state.iteration == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    run.trainer.add_event_handler(IterationEvents.FORWARD_COMPLETED, send)


def last_step(folder: Path) -> int:
    return max(int(file.stem.removeprefix("step_")) for file in (folder / "states").iterdir())


@pytest.mark.parametrize("step", [1, 6, 11])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_after_the_step_and_resuming_ends_the_same(number, step, tmp_path, caplog):
    stopped = make_run(tmp_path / "stopped")
    signal_in_step(stopped, step, number)
    with caplog.at_level(logging.INFO):
        stopped.run.start()
    assert stopped.trainer.state.iteration == last_step(tmp_path / "stopped") == step
    assert (
        f"stopped by {number.name} after step {step} of {TOTAL}; the state is in {tmp_path}/stopped/states"
        in caplog.text
    )
    assert "the same command with --resume goes on" in caplog.text
    with pytest.raises(SystemExit) as left:
        stopped.run.leave()
    assert left.value.code == 128 + number

    resumed, whole = make_run(tmp_path / "stopped", resume=True), make_run(tmp_path / "whole")
    for run in (resumed, whole):
        run.run.start()
        run.run.leave()  # does nothing after a training that ran to its end
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name


def test_in_the_last_step_of_an_epoch_the_validation_is_still_made(tmp_path):
    run = make_run(tmp_path)
    signal_in_step(run, STEPS, signal.SIGTERM)
    run.run.start()
    assert run.trainer.state.iteration == last_step(tmp_path) == STEPS
    assert run.best_weights.best is not None
    with pytest.raises(SystemExit):
        run.run.leave()


def test_in_a_validation_the_validation_is_finished_first(tmp_path):
    run = make_run(tmp_path)
    run.evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: os.kill(os.getpid(), signal.SIGTERM))
    run.run.start()
    assert run.trainer.state.iteration == last_step(tmp_path) == STEPS
    assert run.evaluator.state.best_metric_epoch == 1


def test_in_the_very_last_step_the_training_is_complete_and_ends_well(tmp_path):
    run = make_run(tmp_path)
    signal_in_step(run, TOTAL, signal.SIGTERM)
    run.run.start()
    run.run.leave()
    assert last_step(tmp_path) == TOTAL


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    run = make_run(tmp_path)
    signal_in_step(run, 2, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        run.run.start()
    assert not (tmp_path / "states").exists()


def test_a_second_sigterm_changes_nothing(tmp_path):
    run = make_run(tmp_path)
    signal_in_step(run, 2, signal.SIGTERM, times=2)
    run.run.start()
    assert last_step(tmp_path) == 2


@pytest.mark.parametrize("how", ["complete", "stopped", "failed"])
def test_afterwards_the_programs_own_handlers_are_back(how, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    run = make_run(tmp_path)
    if how == "stopped":
        signal_in_step(run, 2, signal.SIGTERM)
    if how == "failed":
        run.trainer.add_event_handler(Events.ITERATION_STARTED(once=2), lambda engine: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.run.start()
    else:
        run.run.start()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_complete_training_is_left_as_it_is(tmp_path, caplog):
    make_run(tmp_path).run.start()
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.pt")}
    last = torch.load(tmp_path / f"states/step_{TOTAL:07d}.pt", weights_only=True)["network"]
    again = make_run(tmp_path, resume="auto")
    with caplog.at_level(logging.INFO):
        again.run.start()
    again.run.leave()
    assert "the training is complete: nothing is left to do" in caplog.text
    assert again.losses == []
    assert all(torch.equal(tensor, last[name]) for name, tensor in again.weights().items())
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.pt")} == files


def test_a_process_without_a_signal_stops_with_the_one_that_got_it(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    others = iter([0, 0, 15] + [15] * 99)
    reduce = idist.all_reduce

    def with_others(value: torch.Tensor | int, op: str) -> torch.Tensor | int:
        """The other process' signal, where processes agree on signals and states; it never has an infinite loss."""
        own = reduce(value, op)
        if not isinstance(value, torch.Tensor) or run.trainer.last_event_name != Events.ITERATION_COMPLETED:
            return own
        return torch.maximum(own, torch.tensor([next(others), 0]))

    monkeypatch.setattr(idist, "all_reduce", with_others)
    run.run.start()
    assert run.trainer.state.iteration == last_step(tmp_path) == 3
    with pytest.raises(SystemExit) as left:
        run.run.leave()
    assert left.value.code == 143


def test_a_second_training_in_the_same_folder_is_refused_and_leaves_its_files_alone(tmp_path):
    refusals = []

    def start_another(engine: Engine) -> None:
        files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.pt")}
        with pytest.raises(InUseError) as caught:
            make_run(tmp_path).run.start()
        refusals.append(str(caught.value))
        assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.pt")} == files

    run = make_run(tmp_path)
    run.trainer.add_event_handler(Events.EPOCH_STARTED(once=2), start_another)
    run.run.start()
    assert refusals == [
        f"output_dir {tmp_path} is in use by another run: wait until that has ended, or pass another --output_dir"
    ]
    make_run(tmp_path).run.start()  # the first has ended


def test_two_trainings_to_one_weights_file_are_refused_in_different_folders_too(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    for run in (first, second):
        run.best_weights.weights_file = tmp_path / "model.pt"

    def start_another(engine: Engine) -> None:
        with pytest.raises(InUseError, match=f"weights_file {tmp_path}/model.pt is in use"):
            second.run.start()

    first.trainer.add_event_handler(Events.EPOCH_STARTED(once=2), start_another)
    first.run.start()


def test_what_a_killed_run_left_half_written_is_gone_when_the_next_begins(tmp_path):
    half = [tmp_path / folder / f".digar-{'0' * 32}.pt" for folder in ("", "states", "pictures")]
    for file in half:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
    (tmp_path / "states/of_someone_else.pt").write_bytes(b"other")
    run = make_run(tmp_path, resume="auto")
    signal_in_step(run, 1, signal.SIGTERM)
    run.run.start()
    assert not any(file.exists() for file in half)
    assert (tmp_path / "states/of_someone_else.pt").exists()


def test_in_another_thread_a_training_runs_without_touching_signals(tmp_path):
    run = make_run(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run.run.start)
    thread.start()
    thread.join()
    assert run.trainer.state.iteration == TOTAL
    assert signal.getsignal(signal.SIGTERM) is before
