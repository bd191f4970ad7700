"""Objectives that MONAI lacks."""

from digar.training.losses.next_patch import (
    NextPatchLoss,
    count_predicted,
    next_patch_target,
    patch_order,
    pooled_loss_metric,
)
from digar.training.losses.pooled_dice import PooledDiceCELoss

__all__ = [
    "NextPatchLoss",
    "PooledDiceCELoss",
    "count_predicted",
    "next_patch_target",
    "patch_order",
    "pooled_loss_metric",
]
