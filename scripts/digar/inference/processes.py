"""Several processes over one folder, started by torchrun: each takes its share of the images."""

import datetime
import os

import torch.distributed as dist


def process_number() -> int:
    """This process' number among those that torchrun started; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes torchrun started; 1 without it. Joins them, so that one can wait for the others."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    return count
