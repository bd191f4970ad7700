"""The bar of a training counts all its steps, tells the throughput, and starts where a resumed run does."""

import io

import ignite.distributed as idist
import pytest
from digar.training import progress
from digar.training.progress import TrainingProgress
from ignite.engine import Engine


@pytest.fixture
def bars(monkeypatch):
    """The bars that are made, drawn to nowhere."""
    made = []

    class Recorded(progress.tqdm):
        def __init__(self, **keywords) -> None:
            super().__init__(file=io.StringIO(), **keywords)
            made.append(self)

        @property
        def format_dict(self) -> dict:
            return {**super().format_dict, "rate": 0.5}  # steps per second

    monkeypatch.setattr(progress, "tqdm", Recorded)
    return made


def trainer() -> Engine:
    return Engine(lambda engine, batch: [{"loss": 0.125}] * 4)


def test_one_bar_counts_the_steps_of_all_epochs(bars):
    engine = trainer()
    TrainingProgress().attach(engine)
    engine.run(range(3), max_epochs=2)
    assert [(bar.n, bar.total) for bar in bars] == [(6, 6)]
    assert bars[0].desc == "epoch 2/2"
    assert "loss=0.125" in bars[0].postfix


def test_throughput_counts_the_crops_of_all_processes(bars, monkeypatch):
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    engine = trainer()
    TrainingProgress().attach(engine)
    engine.run(range(2), max_epochs=1)
    assert "crops_per_s=4" in bars[0].postfix


def test_a_resumed_training_goes_on_at_its_step(bars):
    engine = trainer()
    TrainingProgress().attach(engine)
    engine.load_state_dict({"epoch_length": 3, "max_epochs": 3, "iteration": 3})
    engine.run(range(3))
    assert (bars[0].initial, bars[0].n) == (3, 9)
