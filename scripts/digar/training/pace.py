"""How long a training will take on this machine."""

import time

import torch

from digar.data.task import Task
from digar.networks.of_task import pretraining_network, segmentation_network
from digar.networks.precision import PrecisionInferer, best_precision


def seconds_per_step(task: Task, batch_size: int) -> float:
    """Seconds of one step of fine-tuning, or of pretraining where the task has no labels, measured after a first one.

    Losses, augmentations and the reading of scans are left out.

    Args:
        task: its network and crop.
        batch_size: of the step.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = (segmentation_network(task) if task.labels else pretraining_network(task)).to(device)
    image = torch.rand(batch_size, task.in_channels, *(task.crop if task.labels else task.sample_size), device=device)
    optimizer = torch.optim.AdamW(network.parameters())
    inferer = PrecisionInferer(best_precision(device))
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        optimizer.zero_grad()
        inferer(image, network).square().mean().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - began


def duration(seconds: float) -> str:
    """In words: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 days 5 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return " ".join([f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0))
    days, hours = divmod(hours, 24)
    return f"{days} day{'s' * (days > 1)}" + f" {hours} h" * (hours > 0)
