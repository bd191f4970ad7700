"""Everything random in a training depends on (seed, epoch, sample) or (seed, step, process) alone."""

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from digar.data.seeded import derive_seed


class RunSeed:
    """Tell the dataset which epoch begins, and seed PyTorch's generators, on every device, before every step.

    The network's own draws (dropout) then depend on (seed, step, process), so that a resumed run repeats them, and
    processes drop different things. Loaders must not keep workers between epochs (PyTorch's default).

    Args:
        dataset: has ``set_epoch``.
        seed: of the whole run.
    """

    UNDECISIVE = ("dataset",)  # it is described by itself, see digar.networks.description

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.dataset.set_epoch(engine.state.epoch))
        trainer.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, trainer: Engine) -> None:
        torch.manual_seed(derive_seed(self.seed, trainer.state.iteration, idist.get_rank()))
