"""One training in several processes, started by torchrun or srun."""

import logging
import os

import torch
import torch.distributed as dist

left_groups: list[dist.ProcessGroup | None] = []


def start_processes() -> None:
    """Join the group of processes: NCCL on GPUs, gloo on CPUs; only the first process logs below warnings.

    Raises:
        RuntimeError: the command was not started in several processes.
    """
    if "RANK" not in os.environ:
        raise RuntimeError(
            "multi_gpu_train.json and multi_gpu_fsdp.json need several processes: start with "
            "torchrun --standalone --nproc_per_node=N -m monai.bundle run ..."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # processes that torchrun starts again meet in the store of the first ones, which holds the addresses of the dead
    store, rank, num_processes = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt_{restarts()}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_processes)
    if dist.get_rank() > 0:
        logging.disable(logging.INFO)


def stop_processes() -> None:
    """Leave the group of processes, and keep the object of the left group until this process ends.

    The network's wrapper (DistributedDataParallel) also holds it. Were the wrapper's reference the last one, gloo's
    threads would be joined under Python's lock, which they may wait for: the process would never end (PyTorch issue
    56297).
    """
    left_groups.append(dist.group.WORLD)
    dist.destroy_process_group()


def restarts() -> int:
    """How often torchrun has started these processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
