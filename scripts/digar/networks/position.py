"""Positions of the tokens: fixed 3D sin-cos, or learned."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sincos_position(grid_size: Sequence[int], hidden_size: int) -> Tensor:
    """Fixed 3D sin-cos position of every patch, as in AR-SSL4M.

    A third of the channels per axis; in a third of ``d`` channels first ``sin(n omega_k)``, then ``cos(n omega_k)``,
    ``omega_k = 10000^(-k / (d / 2))``, ``n`` the patch's index along that axis.

    Returns:
        ``(t*h*w, hidden)`` in raster order (last axis fastest).

    Raises:
        ValueError: ``hidden_size`` is not divisible by 6.
    """
    if hidden_size % 6:
        raise ValueError(f"hidden_size {hidden_size} is not divisible by 6, which sin-cos positions in 3D need")
    half = hidden_size // 6
    omega = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    index = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in grid_size], indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in index]  # three of (N, half)
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
