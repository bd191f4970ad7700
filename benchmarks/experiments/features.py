"""Frozen features: what a linear classifier makes of each layer's mean token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from digar.data.sequences.crops import resized, stored
from digar.inference.embeddings import sample_windows
from digar.networks.transformer import Backbone
from digar.volumes.checks import CheckedReader
from digar.volumes.files import whole_file
from digar.volumes.prepared import resampled
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the squared weights; chosen on the tuning volumes


@torch.inference_mode()
def layer_means(backbone: Backbone, scan: Tensor, normalise: bool) -> np.ndarray:
    """Each layer's mean patch token ``(layers, hidden)`` over the windows of a scan ``(C, X, Y, Z)``.

    ``normalise``: every token to mean 0 and deviation 1 first, as the last layer's are. Without, the patch embedding
    outweighs all that the blocks add to it.
    """
    size = backbone.image_size
    windows = [resized(stored(scan, window), size) for window in sample_windows(scan, size)]
    hidden = backbone(torch.stack(windows))
    if normalise:
        hidden = [F.layer_norm(tokens, tokens.shape[-1:]) for tokens in hidden]
    return np.stack([backbone.patches_only(tokens).mean(dim=(0, 1)).float().numpy() for tokens in hidden])


def features(
    backbone: Backbone, files: Sequence[str], spacing: Sequence[float], cache: Path, normalise: bool
) -> np.ndarray:
    """The features of volumes ``(volumes, layers, hidden)``, computed once and kept in ``cache``, an ``.npy`` file."""
    if cache.is_file():
        return np.load(cache)
    backbone.eval()
    reader = CheckedReader(backbone.in_channels, spacing)
    found = np.stack([layer_means(backbone, resampled(file, reader).as_tensor(), normalise) for file in files])
    with whole_file(cache) as temporary, temporary.open("wb") as stream:
        np.save(stream, found)
    return found


def fit_linear(inputs: Tensor, classes: Tensor, num_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights and bias of a multinomial logistic regression, its squared weights penalised; L-BFGS to its end."""
    weight = torch.zeros(num_classes, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(inputs, weight, bias), classes) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def probe(
    inputs: np.ndarray, classes: Sequence[int], learn: Sequence[int], tune: Sequence[int], num_classes: int
) -> tuple[np.ndarray, float]:
    """Probabilities of all volumes ``(volumes, classes)`` by a linear classifier of one layer's features.

    Args:
        inputs: ``(volumes, hidden)``; standardised by what is learned from.
        classes: of all volumes.
        learn, tune: the volumes that it is fitted to, and that its penalty is chosen with.

    Returns:
        The probabilities, and the log loss on the tuning volumes.
    """
    mean, deviation = inputs[learn].mean(axis=0), inputs[learn].std(axis=0) + 1e-6
    standard = torch.from_numpy((inputs - mean) / deviation).float()
    truth = torch.tensor(classes)
    best: tuple[float, Any] = (float("inf"), None)
    for penalty in PENALTIES:
        weight, bias = fit_linear(standard[learn], truth[learn], num_classes, penalty)
        logits = F.linear(standard, weight, bias)
        loss = F.cross_entropy(logits[tune], truth[tune]).item()
        if loss < best[0]:
            best = loss, logits.softmax(dim=1).numpy()
    return best[1], best[0]
