"""Gradient clipping, which MONAI's trainer lacks."""

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn


class GradientClipping:
    """Scale the gradients down to a largest norm before every step; the norm is kept in ``state.gradient_norm``.

    Gradients must be unscaled at this point: this bundle's half precision is bfloat16, which needs no loss scaling.

    Args:
        network: whose gradients.
        max_norm: largest L2 norm over all weights.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, trainer: Engine) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        trainer.state.gradient_norm = norm.item()
