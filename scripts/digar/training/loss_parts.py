"""The loss of each kind of sequence, and on the patches that cannot be copied."""

from collections.abc import Sequence

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from digar.data.sequences import KINDS, copied_patches
from digar.training.losses import NextPatchLoss, patch_order


class LossParts:
    """After every epoch, ``state.metrics`` gets the mean loss of each kind that occurred: ``train_loss/spatial``.

    With published slabs (``slab_offset``), a part of a spatial sequence's patches equals an earlier one; the mean over
    all predicted patches that do not is ``train_loss_not_copied``. Means are pooled over patches and processes.

    Attach it after the metrics of an evaluator (MONAI's engines do): it reads the loss function's last result.

    Args:
        loss_function: of the engine.
        name: the loss's, ``train_loss`` or ``val_loss``.
        sample_size: in voxels.
        slab_offset: see :class:`digar.data.sequences.SpatialSequenced`.
    """

    def __init__(
        self, loss_function: NextPatchLoss, name: str, sample_size: Sequence[int], slab_offset: int | None
    ) -> None:
        self.loss_function = loss_function
        self.name = name
        patch_size = loss_function.patch_size
        copied = copied_patches(sample_size, patch_size, slab_offset)
        self.copied = copied[patch_order(sample_size, patch_size, loss_function.token_order)]  # (N,) in token order
        self.sums = torch.zeros(len(KINDS) + 1, 2, dtype=torch.float64)  # error and patches per kind, then not copied

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.remember)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Begin from nothing, but in an epoch that is resumed in its middle from what it had."""
        if engine.state.iteration % engine.state.epoch_length == 0:
            self.sums.zero_()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The epoch's sums so far; of several processes, the first one's."""
        return {"sums": self.sums.cpu()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.sums = state["sums"] * (idist.get_rank() == 0)

    def remember(self, engine: Engine) -> None:
        """Prefix and kind of the batch, ``(B,)`` each: at the iteration's end a trainer's output is decollated."""
        self.prefix, self.kind = engine.state.output["label"][1:]

    def collect(self, engine: Engine) -> None:
        prefix, kind = self.prefix, self.kind
        error = self.loss_function.patch_error  # (B, N)
        predicted = torch.arange(error.shape[1], device=error.device) >= prefix[:, None]  # (B, N)
        new = predicted & ~((kind == 0)[:, None] & self.copied.to(error.device))
        masks = [predicted & (kind == index)[:, None] for index in range(len(KINDS))] + [new]
        sums = torch.stack([torch.stack([(error * mask).sum(), mask.sum()]) for mask in masks])
        self.sums = self.sums.to(sums.device) + sums

    def write(self, engine: Engine) -> None:
        sums = idist.all_reduce(self.sums.float())
        names = [f"{self.name}/{kind}" for kind in KINDS]
        if self.copied.any():
            names.append(f"{self.name}_not_copied")
        for name, (error, count) in zip(names, sums.tolist(), strict=False):
            if count > 0:
                engine.state.metrics[name] = error / count
