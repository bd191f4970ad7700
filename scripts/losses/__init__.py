"""Objectives that MONAI lacks."""

from scripts.losses.next_patch import (
    NextPatchLoss,
    count_predicted,
    next_patch_target,
    patch_order,
    pooled_loss_metric,
)

__all__ = ["NextPatchLoss", "count_predicted", "next_patch_target", "patch_order", "pooled_loss_metric"]
