"""Files are whole or not there, and the best weights are never lost."""

import operator
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest
import torch
from digar.training.checkpoints import BestWeights, keep_former, save_atomically
from ignite.engine import Engine, Events
from torch import nn

# save_atomically


def save_half(content: object, stream: BinaryIO) -> None:
    """As torch.save at a full disk: its own error hides the system's."""
    try:
        stream.write(b"half")
        raise OSError(28, "No space left on device")
    finally:
        raise RuntimeError("unexpected pos 704 vs 598")


def test_saved_content_loads_and_its_folder_is_made(tmp_path):
    path = tmp_path / "runs/first/weights.pt"
    save_atomically({"a": torch.arange(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(3))
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_former_file_whole_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"former")
    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(
        OSError, match="No space left on device.*what stood there before is whole.*weights.pt"
    ) as caught:
        save_atomically({}, path)
    assert caught.value.errno == 28
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"former"


def test_a_full_disk_at_the_first_write_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="No space left on device"):
        save_atomically({}, tmp_path / "weights.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full_is_told_with_the_file(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("this system lets nobody mount")
    try:
        path = tmp_path / "weights.pt"
        save_atomically({"a": torch.arange(3)}, path)
        with pytest.raises(OSError, match="cannot be written: No space left on device.*weights.pt"):
            save_atomically({"a": torch.zeros(400_000)}, path)
        assert list(tmp_path.iterdir()) == [path]
        assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(3))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_error_that_is_not_the_systems_is_left_as_it_is(tmp_path):
    with pytest.raises(AttributeError, match="pickle"):
        save_atomically({"a": lambda: None}, tmp_path / "weights.pt")
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


@pytest.mark.parametrize("links", [True, False])
def test_a_former_file_is_kept_under_the_time_it_was_written_and_stands_until_it_is_replaced(
    links, tmp_path, monkeypatch
):
    def refuse(*names: object) -> None:
        raise OSError(38, "Function not implemented")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    kept = keep_former(write_dated(tmp_path / "model.pt", "first"))
    assert kept == tmp_path / "former/model_2025-03-09_14-05-07.pt"
    assert (tmp_path / "model.pt").read_text() == "first"
    save_atomically({}, tmp_path / "model.pt")
    assert kept.read_text() == "first"


def test_a_former_folder_is_moved(tmp_path):
    (tmp_path / "states").mkdir()
    write_dated(tmp_path / "states/step_1.pt", "first")
    kept = keep_former(tmp_path / "states")
    assert (kept / "step_1.pt").read_text() == "first"
    assert not (tmp_path / "states").exists()


def test_a_file_that_is_kept_already_is_not_kept_twice(tmp_path):
    write_dated(tmp_path / "model.pt", "first")
    assert keep_former(tmp_path / "model.pt") == keep_former(tmp_path / "model.pt")
    assert len(list((tmp_path / "former").iterdir())) == 1


def test_files_of_one_second_are_numbered_and_none_is_lost(tmp_path):
    kept = []
    for content in ("first", "second", "third"):
        kept.append(keep_former(write_dated(tmp_path / "model.pt", content)))
        (tmp_path / "model.pt").unlink()
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


def validated(score: float, smaller_is_better: bool = False) -> SimpleNamespace:
    """An evaluator that has come to this score."""
    state = SimpleNamespace(
        metrics={"score": score}, key_metric_name="score", best_metric=torch.tensor(score), best_metric_epoch=1
    )
    compare = operator.lt if smaller_is_better else operator.gt
    return SimpleNamespace(state=state, metric_cmp_fn=compare)


def marks_after(scores: list[float], tmp_path: Path, smaller_is_better: bool = False) -> list[int | None]:
    """What stands in the weights file after each validation; the n-th validated network is marked n."""
    network = Marked()
    handler = BestWeights(network, tmp_path / "model.pt", validated(0.0))
    marks = []
    for number, score in enumerate(scores, start=1):
        network.become(number)
        handler.validated(validated(score, smaller_is_better), Engine(lambda engine, batch: None))
        marks.append(written(tmp_path / "model.pt"))
    return marks


def test_weights_are_written_only_when_the_score_improves(tmp_path):
    assert marks_after([0.2, 0.1, 0.5, 0.5, 0.4, 0.6], tmp_path) == [1, 1, 3, 3, 3, 6]


def test_a_smaller_loss_is_an_improvement_where_it_should_be(tmp_path):
    assert marks_after([3.0, 4.0, 2.0, 2.0, 0.0, -1.0], tmp_path, smaller_is_better=True) == [1, 1, 3, 3, 5, 6]


@pytest.mark.parametrize("smaller_is_better", [False, True])
def test_while_no_score_is_a_number_the_last_weights_are_kept_and_then_the_best(smaller_is_better, tmp_path, caplog):
    nan = float("nan")
    marks = marks_after([nan, nan, 0.5, nan], tmp_path, smaller_is_better=smaller_is_better)
    assert marks == [1, 2, 3, 3]
    assert caplog.text.count("score is undefined on the held-out cases: the last weights are kept") == 1


def test_the_worst_possible_dice_is_still_written_first(tmp_path):
    assert marks_after([0.0], tmp_path) == [1]


def test_a_full_disk_at_the_first_write_leaves_the_former_weights_in_their_place(tmp_path, monkeypatch):
    write_dated(tmp_path / "model.pt", "of another run")
    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="No space left on device"):
        marks_after([0.5], tmp_path)
    assert (tmp_path / "model.pt").read_text() == "of another run"


def test_the_first_write_of_a_run_keeps_the_former_weights_and_later_ones_do_not(tmp_path):
    write_dated(tmp_path / "model.pt", "of another run")
    assert marks_after([0.1, 0.2, 0.3], tmp_path) == [1, 2, 3]
    assert [file.read_text() for file in (tmp_path / "former").iterdir()] == ["of another run"]


def run_training(tmp_path: Path, scores: list[float], patience: int | None = None) -> int:
    """An epoch per score: the network is marked with the epoch, then validated. Returns the epochs that were made."""
    trainer, evaluator, network = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None), Marked()
    evaluator.metric_cmp_fn = operator.gt

    def validate(engine: Engine) -> None:
        network.become(engine.state.epoch)
        evaluator.run([0])

    @evaluator.on(Events.EPOCH_COMPLETED)
    def score(engine: Engine) -> None:
        engine.state.key_metric_name = "score"
        engine.state.metrics["score"] = scores[trainer.state.epoch - 1]

    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    BestWeights(network, tmp_path / "model.pt", evaluator, patience).attach(trainer)
    trainer.run([0], max_epochs=len(scores))
    return trainer.state.epoch


def test_attached_to_a_training_it_keeps_the_best_epoch(tmp_path):
    assert run_training(tmp_path, [0.3, 0.7, 0.5]) == 3
    assert written(tmp_path / "model.pt") == 2


def test_so_many_validations_without_a_better_score_end_the_training(tmp_path):
    assert run_training(tmp_path, [0.3, 0.2, 0.4, 0.1, 0.4, 0.9], patience=2) == 5
    assert written(tmp_path / "model.pt") == 3


def test_a_training_never_validated_with_a_number_ends_with_its_last_weights(tmp_path):
    write_dated(tmp_path / "model.pt", "of another run")
    run_training(tmp_path, [float("nan")] * 3)
    assert written(tmp_path / "model.pt") == 3
    assert len(list((tmp_path / "former").iterdir())) == 1


def test_without_a_validation_the_last_weights_are_written_at_the_end(tmp_path):
    network = Marked()
    trainer = Engine(lambda engine, batch: network.become(engine.state.epoch))
    BestWeights(network, tmp_path / "model.pt", Engine(lambda engine, batch: None)).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert written(tmp_path / "model.pt") == 2


@pytest.mark.parametrize(("smaller_is_better", "worse", "better"), [(False, 0.3, 0.6), (True, 0.6, 0.3)])
def test_a_resumed_run_writes_only_what_beats_its_former_best(smaller_is_better, worse, better, tmp_path):
    path, network, trainer = tmp_path / "model.pt", Marked(), Engine(lambda engine, batch: None)
    first = BestWeights(network, path, validated(0.5))
    first.validated(validated(0.5), trainer)
    torch.save(first.state_dict(), tmp_path / "state.pt")

    resumed = BestWeights(network, path, validated(0.0))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    network.become(7)
    resumed.validated(validated(worse, smaller_is_better), trainer)
    assert written(path) == 0
    resumed.validated(validated(better, smaller_is_better), trainer)
    assert written(path) == 7
    assert not (tmp_path / "former").exists()  # its own weights are no former run's
