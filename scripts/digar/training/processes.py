"""One training in several processes, started by torchrun or srun, and the processes that load its data."""

import logging
import os
import signal

import torch
import torch.distributed as dist
from monai.data.utils import worker_init_fn


def start_processes() -> None:
    """Join the group of processes: NCCL on GPUs, gloo on CPUs; only the first process logs below warnings.

    Raises:
        RuntimeError: the command was not started in several processes.
    """
    if "RANK" not in os.environ:
        raise RuntimeError(
            "multi_gpu_train.json needs several processes: start with "
            "torchrun --standalone --nproc_per_node=N -m monai.bundle run ..."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if dist.get_rank() > 0:
        logging.disable(logging.INFO)


def share(length: int, rank: int, num_processes: int) -> range:
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
