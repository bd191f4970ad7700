"""A progress bar over the whole training: step, throughput and the time left, not only this epoch's."""

from __future__ import annotations  # tqdm is generic for type checkers alone

from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.handlers import from_engine
from tqdm import tqdm


class TrainingProgress:
    """One bar from the first step to the last: epoch, loss, crops per second, elapsed and remaining time.

    It starts where a resumed training does. Of several processes the first one shows it.
    """

    bar: tqdm[Any]

    def attach(self, trainer: Engine) -> None:
        if idist.get_rank() == 0:
            trainer.add_event_handler(Events.STARTED, self.start)
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self.step)
            trainer.add_event_handler(Events.COMPLETED | Events.TERMINATE, self.close)

    def start(self, trainer: Engine) -> None:
        state = trainer.state
        self.bar = tqdm(
            total=state.max_epochs * state.epoch_length, initial=state.iteration, unit="step", dynamic_ncols=True
        )

    def step(self, trainer: Engine) -> None:
        state = trainer.state
        self.bar.set_description_str(f"epoch {state.epoch}/{state.max_epochs}", refresh=False)
        rate = self.bar.format_dict["rate"]
        shown = {"loss": f"{from_engine(['loss'], first=True)(state.output):.4g}"}
        if rate:
            crops = len(state.output) * idist.get_world_size()  # decollated: an item per crop
            shown["crops_per_s"] = f"{rate * crops:.3g}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def close(self, trainer: Engine) -> None:
        self.bar.close()
