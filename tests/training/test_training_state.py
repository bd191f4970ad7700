"""A training that is killed at any step and resumed is, bit for bit, the training that was never killed."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from digar.training import checkpoints
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import nn

from tests.training.tiny import BATCH, CASES, EPOCHS, STEPS, Tiny, make_run


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program runs after it."""


def kill_after(run: Tiny, step: int, validated: bool = False) -> None:
    """Train until this step is made, or the epoch that it ends is validated too; what would be saved then is lost."""

    def die(engine: Engine) -> None:
        if run.trainer.state.iteration == step:
            raise Killed

    if validated:  # after the run's own handlers, which come with its start
        run.trainer.add_event_handler(Events.STARTED, lambda _: run.evaluator.add_event_handler(Events.COMPLETED, die))
    else:
        run.trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, die)
    with pytest.raises(Killed):
        run.run.start()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path]:
    """The run that is never killed, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    run = make_run(folder)
    run.run.start()
    assert run.trainer.state.iteration == EPOCHS * STEPS
    return run, folder


def assert_same(resumed: Tiny, folder: Path, whole: tuple[Tiny, Path]) -> None:
    """Weights, optimizer, losses, best score and the written weights, all bit for bit."""
    run, whole_folder = whole
    for name, tensor in run.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name
    assert resumed.losses == run.losses[-len(resumed.losses) :]
    assert str(resumed.optimizer.state_dict()) == str(run.optimizer.state_dict())
    assert resumed.best_weights.state_dict() == run.best_weights.state_dict()
    best, expected = (torch.load(path / "model.pt", weights_only=True) for path in (folder, whole_folder))
    assert all(torch.equal(tensor, best[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("step", range(1, EPOCHS * STEPS + 1))
def test_killed_at_any_step_and_resumed_it_ends_as_if_it_had_not_been(step, whole, tmp_path):
    kill_after(make_run(tmp_path, save_minutes=0), step)
    resumed = make_run(tmp_path, resume="auto")
    resumed.run.start()
    assert_same(resumed, tmp_path, whole)


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_killed_after_a_validation_that_wrote_the_best_weights_it_ends_the_same(epoch, whole, tmp_path):
    kill_after(make_run(tmp_path), epoch * STEPS, validated=True)
    resumed = make_run(tmp_path, resume="auto")
    resumed.run.start()
    assert_same(resumed, tmp_path, whole)


def test_a_training_that_went_on_from_weights_does_not_load_them_again_when_it_is_resumed(tmp_path):
    start = tmp_path / "start.pt"
    torch.save({name: tensor + 1 for name, tensor in make_run(tmp_path).weights().items()}, start)
    unbroken = make_run(tmp_path / "whole", start_from=start)
    unbroken.run.start()
    kill_after(make_run(tmp_path / "parts", save_minutes=0, start_from=start), 6)
    resumed = make_run(tmp_path / "parts", resume=True, start_from=start)
    resumed.run.start()
    assert_same(resumed, tmp_path / "parts", (unbroken, tmp_path / "whole"))


def test_killed_again_and_again_it_ends_the_same(whole, tmp_path):
    for step in (2, 3, 7, 9):
        kill_after(make_run(tmp_path, save_minutes=0, resume="auto"), step)
    resumed = make_run(tmp_path, resume=True)
    resumed.run.start()
    assert_same(resumed, tmp_path, whole)


def test_dropout_takes_part(whole, tmp_path):
    again = make_run(tmp_path)
    again.network[1].p = 0.0
    again.run.start()
    assert again.losses[0] != whole[0].losses[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_an_epoch_has_seen_is_not_computed_again(workers, tmp_path, whole):
    kill_after(make_run(tmp_path, save_minutes=0), STEPS + 3)
    resumed = make_run(tmp_path, workers=workers, resume=True)
    indices = []

    @resumed.trainer.on(Events.ITERATION_STARTED)
    def note(engine: Engine) -> None:
        indices.append(engine.state.batch["index"].tolist())

    resumed.run.start()
    sampler = resumed.state.loader.sampler
    sampler.set_epoch(2)
    assert len(sampler.whole_epoch()) == CASES
    left = sampler.whole_epoch()[2 * BATCH :]  # two of the epoch's steps were saved
    assert sum(indices, [])[: len(left)] == left
    if workers == 0:
        assert [index for epoch, index in resumed.seen if epoch == 2] == left
    assert_same(resumed, tmp_path, whole)


# When states are written, and which stay


def steps_of(folder: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("step_")) for file in (folder / "states").iterdir())


@pytest.mark.parametrize(("keep", "expected"), [(1, [12]), (2, [8, 12]), (3, [4, 8, 12])])
def test_the_last_states_stay_and_no_other_file(keep, expected, tmp_path):
    make_run(tmp_path, keep_states=keep).run.start()
    assert steps_of(tmp_path) == expected


def test_within_an_epoch_states_are_written_when_it_is_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run = make_run(tmp_path, save_minutes=2, keep_states=99)
    run.trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: clock.__setitem__(0, clock[0] + 50))
    run.run.start()
    assert steps_of(tmp_path) == [3, 4, 7, 8, 11, 12]  # every third step is 150 s after an epoch's end


def test_at_least_one_state_must_be_kept(tmp_path):
    with pytest.raises(ValueError, match="keep_states is 0"):
        make_run(tmp_path, keep_states=0)


def test_a_damaged_state_is_passed_over_with_a_warning_and_then_removed(whole, tmp_path, caplog):
    kill_after(make_run(tmp_path, save_minutes=0), 7)
    newest = tmp_path / "states/step_0000006.pt"
    assert steps_of(tmp_path) == [5, 6]
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = make_run(tmp_path, save_minutes=0, resume=True)
    files = []
    resumed.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=6), lambda engine: files.append(steps_of(tmp_path))
    )
    with caplog.at_level(logging.INFO):
        resumed.run.start()
    assert f"{newest} is damaged: going back to the one before it" in caplog.text
    assert "after step 5 of 12" in caplog.text
    assert files == [[5, 6]]  # the damaged file has been replaced by the step that was made again
    assert_same(resumed, tmp_path, whole)


def test_a_state_that_holds_more_than_tensors_is_not_loaded_and_no_word_says_how_to(tmp_path, caplog):
    kill_after(make_run(tmp_path, save_minutes=0), 7)
    newest = tmp_path / "states/step_0000006.pt"
    torch.save({"trainer": SimpleNamespace()}, newest)
    make_run(tmp_path, resume=True).run.start()
    assert f"{newest} holds more than weights, or is damaged" in caplog.text
    assert "weights_only" not in caplog.text
    for file in (tmp_path / "states").iterdir():
        torch.save({"trainer": SimpleNamespace()}, file)
    with pytest.raises(ValueError, match="every training state in .* is damaged"):
        make_run(tmp_path, resume=True).run.start()


def test_when_every_state_is_damaged_it_says_so_and_begins_nothing(tmp_path):
    make_run(tmp_path).run.start()
    for file in (tmp_path / "states").iterdir():
        file.write_bytes(b"")
    for resume in (True, "auto"):
        with pytest.raises(ValueError, match=f"every training state in {tmp_path}/states is damaged: start without"):
            make_run(tmp_path, resume=resume).run.start()


# Beginning


def test_without_a_state_resuming_is_refused_with_what_to_do(tmp_path):
    message = f"there is no training state in {tmp_path}/states: correct --output_dir, or start without --resume"
    with pytest.raises(FileNotFoundError, match=message):
        make_run(tmp_path, resume=True).run.start()


def test_auto_begins_where_there_is_no_state(tmp_path, whole):
    run = make_run(tmp_path, resume="auto")
    run.run.start()
    assert_same(run, tmp_path, whole)


def test_beginning_anew_sets_the_states_of_a_former_run_apart(tmp_path):
    make_run(tmp_path).run.start()
    anew = make_run(tmp_path)
    former = anew.state.files()
    assert len(former) == 2  # nothing is moved before the training starts
    anew.run.start()
    (kept,) = (tmp_path / "former").glob("states_*")
    assert sorted(file.name for file in kept.iterdir()) == sorted(file.name for file in former)


def test_another_word_for_resume_is_refused(tmp_path):
    with pytest.raises(ValueError, match="resume is 'yes': it must be True, False or auto"):
        make_run(tmp_path, resume="yes").run.start()


def refused(tmp_path: Path, message: str, **options: float) -> None:
    """Resuming with these options is refused before the trainer has moved."""
    other = make_run(tmp_path, resume=True, **options)
    with pytest.raises(ValueError, match=message):
        other.run.start()
    assert other.trainer.state.iteration == 0


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    kill_after(make_run(tmp_path, save_minutes=0), 7)
    return tmp_path


@pytest.mark.parametrize("planned", [2, 9])
def test_a_run_of_another_length_is_refused_with_both(planned, interrupted):
    refused(
        interrupted, f"belongs to a run of 3 epochs.*resume with --max_epochs 3 instead of {planned}", epochs=planned
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"cases": 8}, r"training cases \(7 then, 8 now; with"),
        ({"first": 1}, r"training cases \(7 then, 7 now; without .*; with"),  # as of another fold, on the same counts
        ({"seed": 4}, r"samples.seed \(3 then, 4 now\); order.seed \(3 then, 4 now\); steps.0.seed \(3 then, 4 now\)"),
        ({"noise": 0.2}, r"samples.transform.transforms.0.*std \(0.1 then, 0.2 now\)"),
        ({"weight_decay": 0.5}, r"optimizer.0.weight_decay \(0.01 then, 0.5 now\)"),
        ({"max_norm": 1.0}, r"steps.1.max_norm \(10.0 then, 1.0 now\)"),
    ],
)
def test_whatever_decides_the_next_step_is_refused_by_name(changed, named, interrupted):
    refused(interrupted, f"step_0000006.pt belongs to another training; these differ: .*{named}", **changed)


def test_what_decides_no_step_may_change(interrupted):
    resumed = make_run(interrupted, resume=True, workers=1, nan_policy="skip", save_minutes=5, keep_states=3)
    resumed.run.start()
    assert resumed.run.complete


def test_another_learning_rate_is_taken_from_the_next_step_on_and_said(interrupted, tmp_path_factory, caplog):
    rates = {}
    for learning_rate in (0.01, 0.001):
        folder = tmp_path_factory.mktemp("resumed") / "run"
        shutil.copytree(interrupted, folder)
        run = make_run(folder, resume=True, learning_rate=learning_rate)
        own = rates.setdefault(learning_rate, [])
        run.trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda _, run=run, own=own: own.append(run.optimizer.param_groups[0]["lr"])
        )
        run.run.start()
    assert len(rates[0.01]) == EPOCHS * STEPS - 6
    assert rates[0.001] == pytest.approx([rate / 10 for rate in rates[0.01]])
    assert caplog.text.count("learning rates are planned as 0.001 after step 6, they were as 0.01 before") == 1


def test_other_batches_are_refused_with_the_ones_to_take(interrupted):
    refused(interrupted, "2 samples per step.*this one has 3: resume with --batch_size 2 for 1 process", batch=3)
    refused(interrupted, "2 samples per step.*has 4: resume with --batch_size 1 for 2 processes", processes=2)


def test_the_state_of_another_network_is_refused_by_name(interrupted):
    refused(
        interrupted, r"step_0000006.pt belongs to another training; .*network.0.in_features \(3 then, 4 now\)", width=4
    )


def test_the_state_of_another_optimizer_is_refused_by_name(interrupted):
    other = make_run(interrupted, resume=True)
    other.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "initial_lr": 0.1})
    with pytest.raises(ValueError, match=r"these differ: .*optimizer.1.weight_decay \(none then, 0.01 now\)"):
        other.run.start()


# Several processes


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_go_on_with_the_samples_that_one_process_has_left(rank, interrupted):
    """One process took 4 of epoch 2's samples, in two steps; two processes share what follows."""
    other = make_run(interrupted, batch=1, processes=2, rank=rank, resume=True)
    other.run.prepare()
    sampler = other.state.loader.sampler
    sampler.set_epoch(2)
    order = make_run(interrupted).state.loader.sampler
    order.set_epoch(2)
    following = order.whole_epoch()[4:]
    following += order.whole_epoch()[: len(following) % 2]  # an odd epoch is filled with its first sample
    assert list(sampler) == following[rank::2]
    sampler.set_epoch(3)
    assert len(list(sampler)) == 4
