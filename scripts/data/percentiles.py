"""Exact percentiles of many numbers without sorting them all, and the intensity scaling of pretraining samples."""

import numpy as np
import torch

LOWER, UPPER = 1.0, 99.9  # per cent
STRIDE = 61  # a prime: every 61st number bounds the tails
FEW = 4096  # so many numbers are sorted at once


def percentiles(values: np.ndarray, lower: float = LOWER, upper: float = UPPER) -> tuple[float, float]:
    """Two percentiles, linearly interpolated: what ``numpy.percentile`` gives, many times as fast in the tails.

    Every 61st number bounds a tail; the tail alone is then sorted, so the result is exact.

    Args:
        values: finite numbers of any shape.
        lower, upper: in per cent; the first in the lower half, the second in the upper.
    """
    flat = values.reshape(-1)
    sample = np.sort(flat[::STRIDE] if flat.size > FEW else flat)
    position = lower / 100 * (flat.size - 1)
    near, far = _order_statistics(flat, sample, int(position), from_above=False)
    low = near + position % 1 * (far - near)
    position = (1 - upper / 100) * (flat.size - 1)
    near, far = _order_statistics(flat, sample, int(position), from_above=True)
    return low, near + position % 1 * (far - near)


def _order_statistics(flat: np.ndarray, sample: np.ndarray, rank: int, from_above: bool) -> tuple[float, float]:
    """The numbers of this rank and the next, counted from 0 at the smallest number or, ``from_above``, the largest."""
    following = min(rank + 1, flat.size - 1)
    if sample.size == flat.size:
        ordered = sample[::-1] if from_above else sample
        return float(ordered[rank]), float(ordered[following])
    expected = rank / flat.size * sample.size
    index = min(int(expected + 4 * np.sqrt(expected) + 3), sample.size - 1)  # four standard deviations farther in
    bound = sample[-1 - index] if from_above else sample[index]
    tail = flat[flat > bound] if from_above else flat[flat < bound]
    if following >= tail.size:  # many numbers equal the bound, or the sample misled
        if following < tail.size + np.count_nonzero(flat == bound):
            nearest = (tail.min() if from_above else tail.max()) if rank < tail.size else bound
            return float(nearest), float(bound)
        tail = flat
    ordered = np.sort(tail)
    if from_above:
        ordered = ordered[::-1]
    return float(ordered[rank]), float(ordered[following])


def scale_by_percentiles(crop: np.ndarray) -> torch.Tensor:
    """``(C, X, Y, Z)``, each channel's 1 and 99.9 percentiles brought to 0 and 1 and the rest clipped; float32.

    Where both percentiles agree, numbers up to them become 0 and those above 1.
    """
    scaled = torch.empty(crop.shape, dtype=torch.float32)
    for channel, result in zip(crop, scaled, strict=True):
        low, high = percentiles(channel)
        if high > low:
            result.copy_(torch.from_numpy(channel)).sub_(low).mul_(1 / (high - low)).clamp_(0, 1)
        else:
            result.copy_(torch.from_numpy(channel > low))
    return scaled
