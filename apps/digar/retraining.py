"""Training on the labels that were handed in."""

from typing import Any

from digar.cli.gate import TEXT, TRAINING, check_values
from digar.volumes.errors import in_a_line
from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.bundle import BundleTrainTask

OFFERED = ("max_epochs", "val_split", "pretrained", "device", "multi_gpu", "gpus")


class Retraining(BundleTrainTask):
    """Training that goes on from the present weights, or anew; it fails with its cause in a line."""

    def config(self) -> dict[str, Any]:
        """What a viewer offers to set."""
        stock = super().config()
        return {name: stock[name] for name in OFFERED}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train with the values of a request that a training takes: whatever else it holds does not reach a config."""
        values = {name: value for name, value in request.items() if name in TRAINING}
        check_values(values, {**TRAINING, "device": TEXT})  # fewer devices may be seen here than by the server
        return super().__call__({"model": request["model"], **values}, datastore)

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict]) -> None:
        """Load the present weights at the start, unless the training shall begin anew, where MONAI Label fails."""
        if pretrained:
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def run_single_gpu(self, request: dict[str, Any], overrides: dict[str, Any]) -> None:
        try:
            super().run_single_gpu(request, overrides)
        except RuntimeError as error:  # MONAI's own says which config item failed, not why
            raise RuntimeError(in_a_line(error)) from None
