"""The networks for a task, and the weights that were trained for it.

Every further field of a network's settings can be given beside the task.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from digar.data.task import Task, check_models
from digar.networks.exported import OnnxNetwork
from digar.networks.models import ClassificationNetwork, PretrainingNetwork, SegmentationNetwork
from digar.networks.weights import load_weights


def segmentation_network(task: Task, **fields: Any) -> SegmentationNetwork:
    """For crops of the task; ``fields`` are of :class:`SegmentationSettings`."""
    head = {"out_channels": task.num_classes, "head": task.network.head, "feature_size": task.network.feature_size}
    return SegmentationNetwork(**{**_backbone(task, task.crop), **head, **fields})


def pretraining_network(task: Task, **fields: Any) -> PretrainingNetwork:
    """For samples of the task's pretraining; ``fields`` are of :class:`BackboneSettings`."""
    return PretrainingNetwork(**{**_backbone(task, task.sample_size), **fields})


def classification_network(task: Task, **fields: Any) -> ClassificationNetwork:
    """For whole volumes, resized to the task's crop; ``fields`` are of :class:`ClassificationSettings`."""
    return ClassificationNetwork(**{**_backbone(task, task.crop), "num_classes": task.num_classes, **fields})


def _backbone(task: Task, image_size: Sequence[int]) -> dict[str, Any]:
    return {
        "image_size": image_size,
        "patch_size": task.patch,
        "in_channels": task.in_channels,
        "size": task.network.size,
        "attention": task.network.attention,
        "dilation": task.network.dilation,
    }


def load_model(
    network: nn.Module, weights_files: Sequence[str | Path], task: Task, mirroring: Sequence[int] = ()
) -> nn.Module:
    """Load the weights of a run, once it is clear that they were trained for what the run does.

    Args:
        network: as built; an exported one has its weights.
        weights_files: of this network, then those of others that it is averaged with.
        task, mirroring: of the run, see :func:`digar.data.task.check_models`.

    Raises:
        FileNotFoundError, ValueError: see :func:`digar.data.task.check_models` and :func:`load_weights`.
    """
    check_models(weights_files, task, mirroring)
    if isinstance(network, torch.jit.ScriptModule | OnnxNetwork):
        return network
    return load_weights(network, weights_files[0])
