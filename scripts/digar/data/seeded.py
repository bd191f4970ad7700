"""Randomness that depends only on (seed, epoch, index), not on the number of workers and processes."""

from typing import Any

import numpy as np
from monai.data import CacheDataset


def derive_seed(seed: int, epoch: int, index: int) -> int:
    """One 32-bit seed from the three numbers, well mixed."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0])


class SeededCacheDataset(CacheDataset):
    """MONAI's CacheDataset whose random transforms are seeded anew for every sample.

    Args:
        seed: of the whole run.
        arguments: see :class:`monai.data.CacheDataset`.

    Without :meth:`set_epoch` (validation) every pass draws the same samples.
    """

    # of a sample, see digar.networks.description: its cases are compared by themselves, the rest is how they are kept
    UNDECISIVE = (
        "data", "epoch", "_cache", "_hash_keys", "cache_num", "set_num", "set_rate", "num_workers", "progress",
        "copy_cache", "as_contiguous", "hash_as_key", "hash_func", "runtime_cache",
    )  # fmt: skip

    def __init__(self, *arguments: Any, seed: int, **keywords: Any) -> None:
        self.seed = seed
        self.epoch = 0
        super().__init__(*arguments, **keywords)

    def set_epoch(self, epoch: int) -> None:
        """Draw the samples of this epoch from now on."""
        self.epoch = epoch

    def _transform(self, index: int) -> Any:
        self.transform.set_random_state(seed=derive_seed(self.seed, self.epoch, index % len(self)))
        return super()._transform(index)
