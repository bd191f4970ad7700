"""A linear classifier of frozen features, on generated ones."""

import numpy as np
import pytest
import torch
from digar.networks import ClassificationNetwork

from benchmarks.experiments.features import PENALTIES, features, fit_linear, layer_means, probe


def test_the_fit_is_where_the_penalised_loss_is_flat() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, classes = torch.randn(40, 3, generator=generator), torch.arange(40) % 3
    weight, bias = (tensor.requires_grad_() for tensor in fit_linear(inputs, classes, 3, 0.01))
    logits = inputs @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(logits, classes) + 0.01 * weight.square().sum()
    assert all(slope.abs().max() < 1e-3 for slope in torch.autograd.grad(loss, (weight, bias)))


def test_a_layer_that_tells_the_classes_apart_is_known_by_its_loss() -> None:
    generator = np.random.default_rng(0)
    classes = [0, 1] * 60
    telling = generator.normal(size=(120, 8))
    telling[:, 3] += 4 * np.array(classes)
    learn, tune = list(range(40)), list(range(40, 80))
    probabilities, loss = probe(telling, classes, learn, tune, 2)
    found = probabilities[80:].argmax(axis=1)
    assert (found == classes[80:]).mean() > 0.9
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(120), abs=1e-5)
    _, of_noise = probe(generator.normal(size=(120, 8)), classes, learn, tune, 2)
    assert loss < 0.3 < of_noise


def test_what_is_scored_does_not_change_the_fit() -> None:
    generator = np.random.default_rng(1)
    inputs, classes = generator.normal(size=(30, 4)), [0, 1] * 15
    changed = inputs.copy()
    changed[20:] += 100
    first, second = (probe(given, classes, range(10), range(10, 20), 2)[0] for given in (inputs, changed))
    assert np.array_equal(first[:20], second[:20])
    assert len(PENALTIES) > 1


def test_each_layer_gives_its_mean_patch_token_and_features_are_kept(task, tmp_path) -> None:
    torch.manual_seed(0)
    network = ClassificationNetwork(8, 4, size={"hidden_size": 24, "num_layers": 2, "num_heads": 2}).eval()
    scan = torch.rand(1, 8, 8, 8)
    scan[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    found = layer_means(network.backbone, scan, normalise=False)
    assert found.shape == (2, 24)
    normalised = layer_means(network.backbone, scan, normalise=True)
    assert np.allclose(normalised.mean(axis=1), 0, atol=1e-5)
    assert not np.allclose(normalised[0], found[0])
    files = sorted(str(file) for file in (task / "imagesTr").iterdir())[:2]
    kept = features(network.backbone, files, [24.0] * 3, tmp_path / "features.npy", False)
    assert kept.shape == (2, 2, 24)
    assert np.array_equal(features(network.backbone, [], [1.0] * 3, tmp_path / "features.npy", False), kept)
