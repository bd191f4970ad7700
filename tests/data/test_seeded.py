"""Samples depend on (seed, epoch, index) alone: not on workers, processes, caching or order."""

import itertools

import numpy as np
import pytest
import torch
from digar.data.seeded import SeededCacheDataset, derive_seed
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoised, RandScaleIntensityd, ScaleIntensityRanged
from torch.utils.data import DistributedSampler

LENGTH = 6


def make_dataset(seed: int = 3, cache_rate: float = 1.0) -> SeededCacheDataset:
    """Volumes of one brightness each; two random transforms, so that both have to be seeded."""
    transforms = [
        ScaleIntensityRanged("image", a_min=0, a_max=LENGTH, b_min=0, b_max=1),
        RandGaussianNoised("image", prob=1.0),
        RandScaleIntensityd("image", factors=0.5, prob=1.0),
    ]
    data = [{"image": torch.full((1, 2, 2, 2), float(index))} for index in range(LENGTH)]
    return SeededCacheDataset(data, Compose(transforms), cache_rate=cache_rate, progress=False, seed=seed)


def samples(dataset: SeededCacheDataset, epoch: int | None = None) -> torch.Tensor:
    """All samples of an epoch in order, ``(LENGTH, 1, 2, 2, 2)``."""
    if epoch is not None:
        dataset.set_epoch(epoch)
    return torch.stack([dataset[index]["image"] for index in range(LENGTH)])


def load(dataset: SeededCacheDataset, num_workers: int, sampler: DistributedSampler | None = None) -> torch.Tensor:
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=num_workers)
    return torch.cat([batch["image"] for batch in loader])


def test_samples_are_the_same_whatever_the_number_of_workers():
    dataset = make_dataset()
    expected = samples(dataset, epoch=4)
    for num_workers in (0, 1, 2):
        torch.testing.assert_close(load(dataset, num_workers), expected, rtol=0, atol=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_that_share_the_epoch_draw_what_one_process_draws(num_workers):
    expected = samples(make_dataset(), epoch=2)
    seen = []
    for rank in range(2):
        dataset = make_dataset()
        dataset.set_epoch(2)
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=9)
        indices = list(sampler)
        torch.testing.assert_close(load(dataset, num_workers, sampler), expected[indices], rtol=0, atol=0)
        seen += indices
    assert sorted(seen) == list(range(LENGTH))


def test_neither_order_nor_the_global_generators_change_a_sample():
    expected = samples(make_dataset(), epoch=1)
    dataset = make_dataset()
    dataset.set_epoch(1)
    for index in (4, 0, 4, 5, 2):
        np.random.seed(index)
        torch.manual_seed(index)
        torch.testing.assert_close(dataset[index]["image"], expected[index], rtol=0, atol=0)


@pytest.mark.parametrize("cache_rate", [0.0, 0.5])
def test_samples_are_the_same_however_much_is_cached(cache_rate):
    torch.testing.assert_close(samples(make_dataset(cache_rate=cache_rate)), samples(make_dataset()), rtol=0, atol=0)


def test_epochs_seeds_and_samples_differ():
    drawn = [samples(make_dataset(seed), epoch) for seed in (3, 4) for epoch in (1, 2)]
    for one, other in itertools.combinations(drawn, 2):
        assert not torch.isclose(one, other).flatten(1).all(dim=1).any()
    noise = [sample - sample.mean() for sample in drawn[0]]
    assert all(not torch.allclose(one, other, atol=1e-3) for one, other in itertools.combinations(noise, 2))


def test_an_epoch_can_be_drawn_again():
    dataset = make_dataset()
    first = samples(dataset, epoch=1)
    samples(dataset, epoch=2)
    torch.testing.assert_close(samples(dataset, epoch=1), first, rtol=0, atol=0)


def test_without_set_epoch_every_pass_is_alike():
    dataset = make_dataset()
    first = load(dataset, 0)
    torch.testing.assert_close(load(dataset, 0), first, rtol=0, atol=0)
    torch.testing.assert_close(load(dataset, 1), first, rtol=0, atol=0)


def test_derived_seeds_differ_over_every_argument():
    numbers = list(itertools.product(range(4), range(6), range(50)))
    seeds = {derive_seed(*triple) for triple in numbers}
    assert len(seeds) == len(numbers)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_derived_seed_is_always_the_same():
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)
    assert derive_seed(1, 2, 3) != derive_seed(3, 2, 1)
