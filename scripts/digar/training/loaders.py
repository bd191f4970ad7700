"""What a process loads: its share of the samples, in batches, beside the training."""

import signal
from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
from monai.data import DataLoader, Dataset, list_data_collate
from monai.data.utils import worker_init_fn

from digar.data.sampler import ResumableSampler


def training_loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int,
    seed: int,
    collate_fn: Callable[[Sequence], Any] = list_data_collate,
) -> DataLoader:
    """Batches of this process' samples in an order that depends on seed and epoch, from any step of an epoch on.

    Args:
        dataset: the samples of all processes.
        batch_size: of a process.
        num_workers: processes that load beside the training.
        seed: of the order.
        collate_fn: makes a batch of samples.
    """
    sampler = ResumableSampler(dataset, idist.get_world_size(), idist.get_rank(), seed=seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_fn,
        worker_init_fn=start_worker,
    )


def shared_loader(
    dataset: Dataset, batch_size: int = 1, collate_fn: Callable[[Sequence], Any] = list_data_collate
) -> DataLoader:
    """Every sample once, in one of the processes.

    Args:
        dataset: the cases of all processes.
        batch_size: of a process.
        collate_fn: makes a batch of samples.
    """
    own = cases_of_process(len(dataset), idist.get_rank(), idist.get_world_size())
    return DataLoader(dataset, batch_size=batch_size, sampler=own, num_workers=0, collate_fn=collate_fn)


def cases_of_process(length: int, rank: int, num_processes: int) -> range:
    """The validation cases of one process: every case belongs to exactly one.

    Raises:
        ValueError: fewer cases than processes; one without a case would leave the others waiting for its scores.
    """
    if 0 < length < num_processes:
        raise ValueError(
            f"{length} validation cases cannot be shared by {num_processes} processes: "
            "raise --validation_share, set it to 0, or start fewer processes"
        )
    return range(rank, length, num_processes)


def start_worker(worker_id: int) -> None:
    """Begin a process that loads data: signals are the training's to answer, which then ends its workers.

    Ctrl-C, torchrun and schedulers signal whole groups of processes; a worker that died of it would end the training
    before its state is saved.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    worker_init_fn(worker_id)
