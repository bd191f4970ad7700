"""What happens to gradients before the step: clipping, and a look whether they are numbers at all."""

import logging
import math
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn
from torch.utils.data import DataLoader

from digar.data.sampler import resumable_sampler
from digar.training.sharding import whole

logger = logging.getLogger(__name__)


class SafeSteps:
    """Clip the gradients before every step, and skip the step of a non-finite loss or gradient.

    Gradients are scaled down to a largest norm; the norm before that is kept in ``state.gradient_norm``. They must be
    unscaled at this point: this bundle's half precision is bfloat16, which needs no loss scaling.

    A step that cannot be made stops the training, or is skipped: weights and optimizer stay as they were, the learning
    rate's schedule goes on. Processes decide alike.

    Args:
        network: whose gradients.
        loader: of the training, with a ``ResumableSampler``; it tells which files the batch was made of.
        max_norm: largest L2 norm over all weights.
        policy: ``stop`` or ``skip``.
        max_skipped: steps skipped in a row; one more stops the training.

    Raises:
        ValueError: another policy.
    """

    UNDECISIVE = ("network", "loader", "max_skipped", "skipped")  # of the next step, see digar.networks.description

    def __init__(
        self, network: nn.Module, loader: DataLoader, max_norm: float, policy: str = "stop", max_skipped: int = 10
    ) -> None:
        if policy not in ("stop", "skip"):
            raise ValueError(f"nan_policy is {policy!r}: it must be stop or skip")
        self.network = network
        self.loader = loader
        self.max_norm = max_norm
        self.max_skipped = max_skipped if policy == "skip" else 0
        self.skipped = 0

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, trainer: Engine) -> None:
        norm = whole(torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)).item()
        loss = trainer.state.output["loss"].item()
        trainer.state.gradient_norm = norm
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
        self.network.zero_grad(set_to_none=True)  # PyTorch's optimizers pass over weights without gradient

    def files(self, trainer: Engine) -> list[str]:
        """What this process' batch was made of."""
        position = (trainer.state.iteration - 1) % trainer.state.epoch_length * self.loader.batch_size
        indices = resumable_sampler(self.loader).whole_epoch()[position : position + self.loader.batch_size]
        dataset: Any = self.loader.dataset
        return [str(dataset.data[index]["image"]) for index in indices]
