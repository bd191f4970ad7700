"""What a training tells of itself: a line in the log per epoch, and curves in TensorBoard."""

from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.handlers import StatsHandler, TensorBoardStatsHandler, from_engine
from torch import nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter


def tensorboard(output_dir: str | Path) -> SummaryWriter:
    """TensorBoard's writer of this process."""
    folder, rank = Path(output_dir) / "tensorboard", idist.get_rank()
    return SummaryWriter(folder / f"process_{rank}" if rank else folder)


class TrainingCurves:
    """The loss in log and TensorBoard; there also the rate, the gradient norm and the dilated branch's share by layer.

    Args:
        network: as it was before processes were wrapped around it; one without a backbone has no shares.
        optimizer: the rate of its head is shown.
        writer: see :func:`tensorboard`.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, writer: SummaryWriter) -> None:
        self.backbone = getattr(network, "backbone", None)
        self.optimizer = optimizer
        self.writer = writer

    def attach(self, trainer: Engine) -> None:
        name, loss = "train_loss", from_engine(["loss"], first=True)
        StatsHandler(iteration_log=False, output_transform=loss, tag_name=name).attach(trainer)
        TensorBoardStatsHandler(self.writer, output_transform=loss, tag_name=name).attach(trainer)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self.iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.epoch)

    def iteration(self, trainer: Engine) -> None:
        step = trainer.state.iteration
        rate = max(group["lr"] for group in self.optimizer.param_groups if not group.get("gates"))
        self.writer.add_scalar("learning_rate", rate, step)
        self.writer.add_scalar("gradient_norm", trainer.state.gradient_norm, step)

    def epoch(self, trainer: Engine) -> None:
        shares = self.backbone.gate_shares() if self.backbone else []
        for layer, share in enumerate(shares):
            self.writer.add_scalar(f"gate_share/gated_layer_{layer}", share, trainer.state.epoch)
        if shares:
            trainer.logger.info(f"gate shares: {', '.join(f'{share:.3f}' for share in shares)}")


class ValidationCurves:
    """The metrics of a validation in log and TensorBoard.

    Args:
        writer: see :func:`tensorboard`.
    """

    def __init__(self, writer: SummaryWriter) -> None:
        self.writer = writer

    def attach(self, evaluator: Engine) -> None:
        StatsHandler(iteration_log=False).attach(evaluator)
        TensorBoardStatsHandler(self.writer, iteration_log=False).attach(evaluator)
