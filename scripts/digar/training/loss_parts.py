"""The loss of each kind of sequence, and on the patches that cannot be copied."""

from collections.abc import Mapping

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from digar.data.sequences import SequenceKind
from digar.training.losses import NextPatchLoss, patch_order


class LossParts:
    """After every epoch, ``state.metrics`` gets the mean loss of each kind that occurred: ``train_loss/spatial``.

    Where some of a kind's patches equal earlier ones by construction (published slabs), the mean over all other
    predicted patches is ``train_loss_not_copied``. Means are pooled over patches and processes.

    Attach it after the metrics of an evaluator (MONAI's engines do): it reads the loss function's last result.

    Args:
        loss_function: of the engine.
        name: the loss's, ``train_loss`` or ``val_loss``.
        kinds: of sequence, by name.
    """

    def __init__(self, loss_function: NextPatchLoss, name: str, kinds: Mapping[str, SequenceKind]) -> None:
        self.loss_function = loss_function
        self.name = name
        self.kinds = list(kinds)
        patch_size, order = loss_function.patch_size, loss_function.token_order
        copied = [
            kind.copied_patches(patch_size)[patch_order(kind.sample_size, patch_size, order)] for kind in kinds.values()
        ]
        self.copied = torch.stack(copied)  # (kinds, N) in token order
        self.sums = torch.zeros(len(kinds) + 1, 2, dtype=torch.float64)  # error and patches per kind, then not copied

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
        new = predicted & ~self.copied.to(error.device)[kind]
        masks = [predicted & (kind == index)[:, None] for index in range(len(self.kinds))] + [new]
        sums = torch.stack([torch.stack([(error * mask).sum(), mask.sum()]) for mask in masks])
        self.sums = self.sums.to(sums.device) + sums

    def write(self, engine: Engine) -> None:
        sums = idist.all_reduce(self.sums.float())
        names = [f"{self.name}/{kind}" for kind in self.kinds]
        if self.copied.any():
            names.append(f"{self.name}_not_copied")
        for name, (error, count) in zip(names, sums.tolist(), strict=False):
            if count > 0:
                engine.state.metrics[name] = error / count
