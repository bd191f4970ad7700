"""Gradients are clipped between the backward pass and the step, and their norm is kept."""

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from scripts.handlers.gradient import GradientClipping

STEEP = torch.tensor([[3.0, 4.0]])  # the loss's gradient: of norm 5


def train_one_step(max_norm: float) -> tuple[torch.Tensor, SupervisedTrainer]:
    """How far one step of plain gradient descent at rate 1 moves the weights, and the trainer."""
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": STEEP, "label": torch.zeros(1, 1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda prediction, label: prediction.sum(),
        decollate=False,
        train_handlers=[GradientClipping(network, max_norm)],
    )
    trainer.run()
    return before - network.weight.detach(), trainer


def test_a_step_is_not_longer_than_the_largest_norm_and_keeps_its_direction():
    step, _ = train_one_step(max_norm=0.5)
    torch.testing.assert_close(step, STEEP / 10, rtol=1e-4, atol=1e-6)


def test_a_gradient_within_the_norm_is_not_changed():
    step, _ = train_one_step(max_norm=6.0)
    torch.testing.assert_close(step, STEEP, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [0.5, 6.0])
def test_the_norm_before_clipping_is_kept_for_the_curves(max_norm):
    _, trainer = train_one_step(max_norm)
    assert trainer.state.gradient_norm == pytest.approx(5.0, rel=1e-5)


def test_the_norm_is_taken_over_all_weights():
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=nn.MSELoss(),
    )
    GradientClipping(network, max_norm=1.0)(trainer)
    assert trainer.state.gradient_norm == pytest.approx(4.0)  # of four weights, 2 each
    clipped = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert clipped.norm().item() == pytest.approx(1.0, rel=1e-4)
