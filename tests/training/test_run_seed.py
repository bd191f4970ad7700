"""Every epoch draws its own samples, and every step and process its own dropout, the same in every run."""

import ignite.distributed as idist
import pytest
import torch
from digar.training.run_seed import RunSeed
from ignite.engine import Engine, Events
from monai.data import DataLoader

from tests.data.test_seeded import make_dataset, samples


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_engine_draws_each_epoch_with_its_own_number(num_workers):
    dataset = make_dataset()
    drawn: dict[int, list] = {1: [], 2: []}
    engine = Engine(lambda engine, batch: drawn[engine.state.epoch].append(batch["image"]))
    RunSeed(dataset, seed=0).attach(engine)
    epochs = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: epochs.append(dataset.epoch))
    engine.run(DataLoader(dataset, batch_size=2, num_workers=num_workers), max_epochs=2)
    assert epochs == [1, 2]
    for epoch, batches in drawn.items():
        torch.testing.assert_close(torch.cat(batches), samples(make_dataset(), epoch), rtol=0, atol=0)


def draws(seed: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a network would draw in each of four steps, over two epochs."""
    monkeypatch.setattr(idist, "get_rank", lambda: rank)
    drawn = []
    engine = Engine(lambda engine, batch: drawn.append(torch.rand(()).item()))
    RunSeed(make_dataset(), seed).attach(engine)
    engine.run(range(2), max_epochs=2)
    return drawn


def test_steps_processes_and_seeds_draw_different_numbers_and_the_same_ones_again(monkeypatch):
    first = draws(0, 0, monkeypatch)
    assert draws(0, 0, monkeypatch) == first
    assert len({*first, *draws(0, 1, monkeypatch), *draws(1, 0, monkeypatch)}) == 12
