"""Leaving the group of processes."""

import faulthandler
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from digar.training import distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ROUNDS = 60  # the network's wrapper as the last owner of the group hung within the first twenty, three times of three


def meet_and_part(rank: int, store: dist.Store, round_number: int) -> DistributedDataParallel:
    dist.init_process_group("gloo", store=dist.PrefixStore(str(round_number), store), rank=rank, world_size=2)
    network = DistributedDataParallel(nn.Sequential(*[nn.Linear(64, 64) for _ in range(20)]))
    for _ in range(3):
        dist.all_gather([torch.zeros(100) for _ in range(2)], torch.ones(100))
        dist.all_gather_object([None, None], {"round": round_number})
    distributed.stop_processes()
    return network


def meet_often(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(600, exit=True)  # a process that never ends fails, and says where it stood
    store = dist.FileStore(f"{folder}/meet", 2)
    for round_number in range(ROUNDS):
        network = meet_and_part(rank, store, round_number)
        del network


@pytest.mark.slow
def test_a_process_ends_though_the_network_outlives_its_group(tmp_path: Path) -> None:
    mp.spawn(meet_often, args=(str(tmp_path),), nprocs=2)
