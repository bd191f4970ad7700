"""Dice and cross entropy over the global batch, so that several processes compute what one does."""

import ignite.distributed as idist
import torch
from monai.networks import one_hot
from torch import Tensor, nn
from torch.nn import functional


class PooledDiceCELoss(nn.Module):
    """MONAI's ``DiceCELoss(to_onehot_y=True, softmax=True, batch=True)``, pooled over the batches of all processes.

    Dice is a ratio of sums: the mean of the processes' own ratios is another number. Here the sums (two per class) are
    added over the processes; each process differentiates its own part, multiplied by their number, by which DDP
    divides. The cross entropy is a mean over voxels, so that the mean over processes with batches of one size is right.

    Args:
        smooth: added to numerator and denominator of every class' Dice.
    """

    def __init__(self, smooth: float = 1e-5) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss, a scalar.

        Args:
            logits: ``(B, classes, X, Y, Z)``.
            label: ``(B, 1, X, Y, Z)``, the classes' numbers.
        """
        probability = logits.softmax(dim=1)
        truth = one_hot(label, logits.shape[1])
        axes = (0, 2, 3, 4)
        sums = torch.stack([(probability * truth).sum(axes), (probability + truth).sum(axes)])  # (2, classes)
        common, total = over_all_processes(sums)
        dice = (2 * common + self.smooth) / (total + self.smooth)
        return 1 - dice.mean() + functional.cross_entropy(logits, label.squeeze(1).long())


def over_all_processes(sums: Tensor) -> Tensor:
    """The sums over all processes; the gradient is that of this process' part, times the number of processes."""
    total = idist.all_reduce(sums.detach().clone())
    return total + idist.get_world_size() * (sums - sums.detach())
