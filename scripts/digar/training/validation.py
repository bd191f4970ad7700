"""When a training is validated, and the score that its validations compare."""

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import MeanDice, ValidationHandler, from_engine


class Validation(ValidationHandler):
    """MONAI's ValidationHandler, which validates after the last epoch too, and never without cases.

    Args:
        validator: the evaluator.
        interval: in epochs.

    Raises:
        ValueError: the interval is below 1.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        if interval < 1:
            raise ValueError(f"val_interval is {interval}: it must be a number of epochs, 1 or more")
        super().__init__(interval, validator)
        self.cases = len(validator.data_loader.dataset)

    def attach(self, trainer: Engine) -> None:
        if self.cases:
            trainer.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self.is_due), self)

    def is_due(self, trainer: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == trainer.state.max_epochs


class ValidationDice(MeanDice):
    """MONAI's mean Dice over cases and labels; where no held-out case holds a label not 0, but not a number.

    Args:
        num_classes: of the masks ``pred`` and ``label``, background included.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            include_background=False, num_classes=num_classes, output_transform=from_engine(["pred", "label"])
        )

    def compute(self) -> float:
        dice = super().compute()
        return dice if self.metric_fn.get_buffer().isfinite().any() else float("nan")
