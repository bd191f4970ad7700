"""The score that a training's validations compare."""

from monai.handlers import MeanDice


class ValidationDice(MeanDice):
    """MONAI's mean Dice over cases and labels; where no held-out case holds a label not 0, but not a number."""

    def compute(self) -> float:
        dice = super().compute()
        return dice if self.metric_fn.get_buffer().isfinite().any() else float("nan")
