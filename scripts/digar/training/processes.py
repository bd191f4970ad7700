"""One training in several processes, started by torchrun or srun."""

import logging
import os

import torch
import torch.distributed as dist


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
