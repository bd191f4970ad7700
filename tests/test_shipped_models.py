"""Every shipped model: its weights fit its task, its labels have codes, and it finds its own name."""

import pytest
import torch
from digar.cli.bundle import find_weights, shipped_models
from digar.data.task import read_task, task_file
from digar.networks.of_task import segmentation_network


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_fits_its_task(name: str) -> None:
    weights = find_weights(name)
    task = read_task(task_file(weights.parent))
    network = segmentation_network(task)
    network.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    assert weights.stat().st_size < 25e6
    assert set(task.codes) == set(task.labels)
    with torch.inference_mode():
        logits = network.eval()(torch.rand(1, len(task.channels), *task.crop))
    assert logits.shape == (1, len(task.labels) + 1, *task.crop)


def test_hippocampus_and_heart_are_shipped() -> None:
    assert shipped_models() == ["cardiac", "hippocampus"]
