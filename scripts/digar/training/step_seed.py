"""The network's own draws (dropout) depend on (seed, step, process) alone, so that a resumed run repeats them."""

import torch
from ignite.engine import Engine, Events

from digar.data.seeded import derive_seed


class StepSeed:
    """Seed PyTorch's generators, on every device, before every training step.

    Args:
        seed: of the whole run.
        rank: of this process, so that processes drop different things.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, trainer: Engine) -> None:
        torch.manual_seed(derive_seed(self.seed, trainer.state.iteration, self.rank))
