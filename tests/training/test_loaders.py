"""Validation cases are shared without a gap, and data workers outlive the signals of their group."""

import os
import signal

import pytest
import torch
from digar.training.loaders import cases_of_process, start_worker
from monai.data import DataLoader, Dataset


@pytest.mark.parametrize(("length", "processes"), [(7, 1), (7, 2), (7, 3), (8, 8), (0, 4)])
def test_every_validation_case_belongs_to_exactly_one_process(length, processes):
    shares = [cases_of_process(length, rank, processes) for rank in range(processes)]
    assert sorted(index for part in shares for index in part) == list(range(length))


def test_fewer_cases_than_processes_are_refused_with_the_way_out():
    with pytest.raises(
        ValueError, match="3 validation cases cannot be shared by 4 processes: raise --validation_share"
    ):
        cases_of_process(3, 0, 4)


def signal_self(item: dict) -> dict:
    """A sample whose worker gets every signal that its group may get."""
    if torch.utils.data.get_worker_info() is not None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
    return item


def test_a_worker_goes_on_loading_through_signals():
    data = Dataset([{"image": torch.full((1,), float(index))} for index in range(4)], signal_self)
    loader = DataLoader(data, batch_size=2, num_workers=1, worker_init_fn=start_worker)
    assert torch.cat([batch["image"] for batch in loader]).flatten().tolist() == [0, 1, 2, 3]
