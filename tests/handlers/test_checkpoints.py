"""Weights and training states: nothing half-written, nothing lost, and a resumed run is the run that stopped."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts.handlers.checkpoints import BestWeights, TrainingState, keep_former, save_atomically

# save_atomically


def save_half(content: object, stream: BinaryIO) -> None:
    stream.write(b"half")
    raise OSError(28, "No space left on device")


def test_saved_content_loads_and_its_folder_is_made(tmp_path):
    path = tmp_path / "runs/first/weights.pt"
    save_atomically({"a": torch.arange(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(3))
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_former_file_whole_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"former")
    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="No space left on device"):
        save_atomically({}, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"former"


def test_a_full_disk_at_the_first_write_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="No space left on device"):
        save_atomically({}, tmp_path / "weights.pt")
    assert list(tmp_path.iterdir()) == []


# keep_former

WRITTEN = time.mktime((2025, 3, 9, 14, 5, 7, 0, 0, -1))


def write_dated(path: Path, content: str) -> Path:
    path.write_text(content)
    os.utime(path, (WRITTEN, WRITTEN))
    return path


def test_without_a_former_file_nothing_is_kept(tmp_path):
    assert keep_former(tmp_path / "model.pt") is None
    assert list(tmp_path.iterdir()) == []


def test_a_former_file_is_moved_under_the_time_it_was_written(tmp_path):
    kept = keep_former(write_dated(tmp_path / "model.pt", "first"))
    assert kept == tmp_path / "former/model_2025-03-09_14-05-07.pt"
    assert kept.read_text() == "first"
    assert not (tmp_path / "model.pt").exists()


def test_files_of_one_second_are_numbered_and_none_is_lost(tmp_path):
    kept = [keep_former(write_dated(tmp_path / "model.pt", content)) for content in ("first", "second", "third")]
    assert [file.stem.removeprefix("model_2025-03-09_14-05-07") for file in kept] == ["", "_1", "_2"]
    assert [file.read_text() for file in kept] == ["first", "second", "third"]


# BestWeights


class Marked(nn.Module):
    """A network whose one weight says which state of it was written."""

    def __init__(self) -> None:
        super().__init__()
        self.mark = nn.Parameter(torch.zeros(()))

    def become(self, mark: int) -> None:
        with torch.no_grad():
            self.mark.fill_(mark)


def written(path: Path) -> int | None:
    return int(torch.load(path, weights_only=True)["mark"]) if path.exists() else None


def marks_after(scores: list[float], tmp_path: Path, **options: object) -> list[int | None]:
    """What stands in the weights file after each validation; the n-th validated network is marked n."""
    network = Marked()
    handler = BestWeights(network, tmp_path / "model.pt", "score", **options)
    marks = []
    for number, score in enumerate(scores, start=1):
        network.become(number)
        handler.validated(SimpleNamespace(state=SimpleNamespace(metrics={"score": score})))
        marks.append(written(tmp_path / "model.pt"))
    return marks


def test_weights_are_written_only_when_the_score_improves(tmp_path):
    assert marks_after([0.2, 0.1, 0.5, 0.5, 0.4, 0.6], tmp_path) == [1, 1, 3, 3, 3, 6]


def test_a_smaller_loss_is_an_improvement_where_it_should_be(tmp_path):
    assert marks_after([3.0, 4.0, 2.0, 2.0, 0.0, -1.0], tmp_path, smaller_is_better=True) == [1, 1, 3, 3, 5, 6]


@pytest.mark.parametrize("smaller_is_better", [False, True])
def test_a_score_that_is_not_a_number_never_writes(smaller_is_better, tmp_path):
    nan = float("nan")
    marks = marks_after([nan, 0.5, nan], tmp_path, smaller_is_better=smaller_is_better)
    assert marks == [None, 2, 2]


def test_the_worst_possible_dice_is_still_written_first(tmp_path):
    assert marks_after([0.0], tmp_path) == [1]


def test_the_first_write_of_a_run_keeps_the_former_weights_and_later_ones_do_not(tmp_path):
    write_dated(tmp_path / "model.pt", "of another run")
    assert marks_after([0.1, 0.2, 0.3], tmp_path) == [1, 2, 3]
    assert [file.read_text() for file in (tmp_path / "former").iterdir()] == ["of another run"]


def run_training(tmp_path: Path, scores: list[float], handler: BestWeights) -> None:
    """An epoch per score: the network is marked with the epoch, then validated."""
    trainer, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)

    def validate(engine: Engine) -> None:
        handler.network.become(engine.state.epoch)
        evaluator.run([0])

    @evaluator.on(Events.EPOCH_COMPLETED)
    def score(engine: Engine) -> None:
        engine.state.metrics["score"] = scores[trainer.state.epoch - 1]

    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    handler.attach(trainer, evaluator)
    trainer.run([0], max_epochs=len(scores))


def test_attached_to_a_training_it_keeps_the_best_epoch(tmp_path):
    run_training(tmp_path, [0.3, 0.7, 0.5], BestWeights(Marked(), tmp_path / "model.pt", "score"))
    assert written(tmp_path / "model.pt") == 2


def test_a_training_never_validated_with_a_number_ends_with_its_last_weights(tmp_path):
    write_dated(tmp_path / "model.pt", "of another run")
    run_training(tmp_path, [float("nan")] * 3, BestWeights(Marked(), tmp_path / "model.pt", "score"))
    assert written(tmp_path / "model.pt") == 3
    assert len(list((tmp_path / "former").iterdir())) == 1


def test_without_an_evaluator_the_last_weights_are_written_at_the_end(tmp_path):
    network = Marked()
    trainer = Engine(lambda engine, batch: network.become(engine.state.epoch))
    BestWeights(network, tmp_path / "model.pt", None).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert written(tmp_path / "model.pt") == 2


@pytest.mark.parametrize(("smaller_is_better", "worse", "better"), [(False, 0.3, 0.6), (True, 0.6, 0.3)])
def test_a_resumed_run_writes_only_what_beats_its_former_best(smaller_is_better, worse, better, tmp_path):
    path, network = tmp_path / "model.pt", Marked()
    options = {"metric": "score", "smaller_is_better": smaller_is_better}
    first = BestWeights(network, path, **options)
    first.validated(SimpleNamespace(state=SimpleNamespace(metrics={"score": 0.5})))
    torch.save(first.state_dict(), tmp_path / "state.pt")

    resumed = BestWeights(network, path, **options)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    network.become(7)
    resumed.validated(SimpleNamespace(state=SimpleNamespace(metrics={"score": worse})))
    assert written(path) == 0
    resumed.validated(SimpleNamespace(state=SimpleNamespace(metrics={"score": better})))
    assert written(path) == 7
    assert not (tmp_path / "former").exists()  # its own weights are no former run's


# TrainingState


def make_training(max_epochs: int = 3, width: int = 4) -> dict:
    """Objects as a workflow hands them over, before any training."""
    torch.manual_seed(0)
    network = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def step(engine: Engine, batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()
        scheduler.step()

    trainer = Engine(step)
    trainer.state.max_epochs = max_epochs  # as MONAI's trainers know it before they run
    return {
        "network": network,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "trainer": trainer,
        "best_weights": BestWeights(network, "unused.pt", "score"),
    }


def batches(width: int = 4) -> list[torch.Tensor]:
    return list(torch.ones(2, 5, width))


def train(objects: dict) -> None:
    objects["trainer"].run(batches(), max_epochs=objects["trainer"].state.max_epochs)


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The state of a run of 3 epochs that stopped after the second, with a best score of 0.5."""
    objects = make_training()
    objects["best_weights"].best = 0.5
    TrainingState(tmp_path / "state.pt", objects).attach(objects["trainer"])
    stop = Events.EPOCH_COMPLETED(once=2)
    objects["trainer"].add_event_handler(stop, lambda engine: engine.terminate())
    train(objects)
    assert objects["trainer"].state.epoch == 2
    return tmp_path / "state.pt"


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(interrupted):
    resumed = make_training()
    TrainingState(interrupted, resumed).resume()
    assert resumed["trainer"].state.epoch == 2
    assert resumed["best_weights"].best == 0.5
    train(resumed)
    whole = make_training()
    train(whole)
    assert resumed["trainer"].state.iteration == whole["trainer"].state.iteration == 6
    assert resumed["scheduler"].get_last_lr() == whole["scheduler"].get_last_lr()
    torch.testing.assert_close(resumed["network"].weight, whole["network"].weight, rtol=0, atol=0)
    assert resumed["optimizer"].state_dict()["state"].keys() == whole["optimizer"].state_dict()["state"].keys()


def test_without_a_state_resuming_is_refused_with_the_way_to_start(tmp_path):
    message = f"there is no training state at {tmp_path}/state.pt: start without --resume True"
    with pytest.raises(FileNotFoundError, match=message):
        TrainingState(tmp_path / "state.pt", make_training()).resume()


def test_the_state_of_another_network_is_refused_by_name(interrupted):
    with pytest.raises(ValueError, match=f"(?s){interrupted} is the state of another network: .*size mismatch"):
        TrainingState(interrupted, make_training(width=5)).resume()


def test_the_state_of_another_optimizer_is_refused_by_name(interrupted):
    other = make_training()
    other["optimizer"].add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match=f"{interrupted} is the state of another optimizer: "):
        TrainingState(interrupted, other).resume()


@pytest.mark.parametrize("planned", [2, 9])
def test_a_run_of_another_length_is_refused_with_both_and_left_as_it_was(planned, interrupted):
    other = make_training(max_epochs=planned)
    before = other["network"].weight.clone()
    message = f"{interrupted} belongs to a run of 3 epochs.*resume with --max_epochs 3 instead of {planned}"
    with pytest.raises(ValueError, match=message):
        TrainingState(interrupted, other).resume()
    assert torch.equal(other["network"].weight, before)


def test_every_epoch_replaces_the_state_and_leaves_no_other_file(tmp_path):
    objects = make_training()
    TrainingState(tmp_path / "state.pt", objects).attach(objects["trainer"])
    iterations = []

    @objects["trainer"].on(Events.EPOCH_COMPLETED)
    def read(engine: Engine) -> None:
        iterations.append(torch.load(tmp_path / "state.pt", weights_only=True)["trainer"]["iteration"])

    train(objects)
    assert iterations == [2, 4, 6]
    assert list(tmp_path.iterdir()) == [tmp_path / "state.pt"]
