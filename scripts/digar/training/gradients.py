"""What happens to gradients before the step: clipping, and a look whether they are numbers at all."""

import logging
import math

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)


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


class FiniteSteps:
    """Make no step of a loss or a gradient that is infinite or not a number: stop, or skip it and go on.

    A skipped step leaves weights and optimizer as they were; the learning rate's schedule goes on. Processes decide
    alike. Attach it after :class:`GradientClipping`, whose norm it reads.

    Args:
        optimizer: whose step is skipped.
        loader: of the training, with a ``ResumableSampler``; it tells which files the batch was made of.
        policy: ``stop`` or ``skip``.
        max_skipped: steps skipped in a row; one more stops the training.

    Raises:
        ValueError: another policy.
    """

    def __init__(self, optimizer: Optimizer, loader: DataLoader, policy: str = "stop", max_skipped: int = 10) -> None:
        if policy not in ("stop", "skip"):
            raise ValueError(f"nan_policy is {policy!r}: it must be stop or skip")
        self.optimizer = optimizer
        self.loader = loader
        self.max_skipped = max_skipped if policy == "skip" else 0
        self.skipped = 0

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, trainer: Engine) -> None:
        loss, norm = trainer.state.output["loss"].item(), trainer.state.gradient_norm
        finite = math.isfinite(loss) and math.isfinite(norm)
        if not idist.all_reduce(int(not finite), "MAX"):
            self.skipped = 0
            return
        self.skipped += 1
        what = f"step {trainer.state.iteration} has the loss {loss} and a gradient of norm {norm}"
        if idist.get_world_size() > 1:
            what += f" in process {idist.get_rank()}"
        files = ", ".join(self.files(trainer))
        if self.skipped > self.max_skipped:
            row = f", the step {self.skipped} times in a row" if self.skipped > 1 else ""
            raise FloatingPointError(
                f"{what}{row}; its batch: {files}. Look at these files, lower --learning_rate, "
                "or leave such steps out by --nan_policy skip"
            )
        logger.warning("%s: it is skipped; its batch: %s", what, files)
        self.optimizer.zero_grad(set_to_none=True)  # PyTorch's optimizers pass over weights without gradient

    def files(self, trainer: Engine) -> list[str]:
        """What this process' batch was made of."""
        position = (trainer.state.iteration - 1) % trainer.state.epoch_length * self.loader.batch_size
        indices = self.loader.sampler.whole_epoch()[position : position + self.loader.batch_size]
        return [str(self.loader.dataset.data[index]["image"]) for index in indices]
