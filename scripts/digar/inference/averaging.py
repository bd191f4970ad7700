"""The average of several networks that were trained apart, such as the folds of a task."""

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from digar.networks.weights import load_weights


class Ensemble(nn.Module):
    """Mean of the logits of a network and of copies of it with other weights, window by window.

    Args:
        network: as built, its own weights loaded before or afterwards; the copies have its sizes.
        weights_files: weights of the further networks; none for the network alone.

    Raises:
        FileNotFoundError, ValueError: see :func:`digar.networks.weights.load_weights`.
    """

    def __init__(self, network: nn.Module, weights_files: Sequence[str | Path] = ()) -> None:
        super().__init__()
        plain = network.module if isinstance(network, DistributedDataParallel) else network
        others = [load_weights(copy.deepcopy(plain), path) for path in weights_files]
        self.members = nn.ModuleList([plain, *others])

    def forward(self, windows: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to mean logits ``(B, classes, X, Y, Z)``."""
        first, *others = self.members
        total = first(windows)
        for member in others:
            total = total.float() + member(windows)
        return total / len(self.members) if others else total
