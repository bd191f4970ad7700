"""Averages at test time: over mirrored images, and over networks that were trained apart (the folds of a task)."""

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from digar.networks.weights import load_weights


class MirroringInferer(Inferer):
    """Mean of the logits over an image and its mirror images, each result mirrored back.

    Args:
        inferer: does the work, ``2 ** len(axes)`` times.
        axes: 0, 1 and 2 are the image's axes (right, front, top); all combinations are taken; none for no mirroring.
            A network that never saw mirror images in training (``flip_probability`` 0) gets worse by it.

    Raises:
        ValueError: an axis that is none of them, or twice the same.
    """

    def __init__(self, inferer: Inferer, axes: Sequence[int]) -> None:
        if len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
            raise ValueError(f"mirroring {list(axes)} must be different ones of 0, 1, 2")
        self.inferer = inferer
        self.axes = tuple(axes)

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """``(B, C, X, Y, Z)`` to mean logits ``(B, classes, X, Y, Z)``."""
        total = self.inferer(inputs, network, *args, **kwargs)
        combinations = [c for n in range(1, len(self.axes) + 1) for c in itertools.combinations(self.axes, n)]
        for axes in combinations:
            spatial = [axis + 2 for axis in axes]
            total = total + self.inferer(inputs.flip(spatial), network, *args, **kwargs).flip(spatial)
        return total / (1 + len(combinations))


class EnsembleInferer(Inferer):
    """Mean of the logits of the given network and of copies of it with other weights.

    Args:
        inferer: does the work, once per network.
        network: as built; the copies have its sizes.
        weights_files: weights of the further networks; none for no ensemble.

    Raises:
        FileNotFoundError, ValueError: see :func:`digar.networks.weights.load_weights`.
    """

    def __init__(self, inferer: Inferer, network: nn.Module, weights_files: Sequence[str | Path]) -> None:
        self.inferer = inferer
        self.members = [load_weights(copy.deepcopy(network), path).eval() for path in weights_files]

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """``(B, C, X, Y, Z)`` to mean logits ``(B, classes, X, Y, Z)``."""
        total = self.inferer(inputs, network, *args, **kwargs)
        with torch.no_grad():
            for member in self.members:
                total = total + self.inferer(inputs, member.to(inputs.device), *args, **kwargs)
        return total / (1 + len(self.members))
