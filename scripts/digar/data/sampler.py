"""Which sample comes when, and from the middle of an epoch on."""

from collections.abc import Iterator
from typing import Any, cast

from torch.utils.data import DataLoader, DistributedSampler


class ResumableSampler(DistributedSampler):
    """PyTorch's DistributedSampler, which can begin in the middle of an epoch.

    The samples before are not drawn at all, so that a loader's workers do not compute them. The order depends on the
    seed and the epoch alone.
    """

    skipped = (0, 0)

    def skip(self, epoch: int, num_samples: int) -> None:
        """Leave out the first samples of this process in this epoch; other epochs are whole."""
        self.skipped = (epoch, num_samples)

    def whole_epoch(self) -> list[int]:
        """This process' indices of the present epoch, those that are skipped too."""
        return list(super().__iter__())

    def __iter__(self) -> Iterator[int]:
        epoch, num_samples = self.skipped
        return iter(self.whole_epoch()[num_samples if self.epoch == epoch else 0 :])


def resumable_sampler(loader: DataLoader[Any]) -> ResumableSampler:
    """The sampler of a training's loader."""
    return cast(ResumableSampler, loader.sampler)
