"""What a training shows in TensorBoard beside loss and metrics: gate shares, learning rate, gradient norm."""

from ignite.engine import Engine, Events
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from digar.networks.models import Network


class TrainingCurves:
    """Write the dilated branch's share of every layer (per epoch), the rate and the gradient norm (per iteration).

    Args:
        network: a network of this bundle, as it was before processes were wrapped around it.
        optimizer: of :func:`digar.training.optimizers.build_adamw`; the rate of its head is shown.
        writer: TensorBoard's.
    """

    def __init__(self, network: Network, optimizer: Optimizer, writer: SummaryWriter) -> None:
        self.network = network
        self.optimizer = optimizer
        self.writer = writer

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self.iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.epoch)

    def iteration(self, trainer: Engine) -> None:
        step = trainer.state.iteration
        rate = max(group["lr"] for group in self.optimizer.param_groups if not group["gates"])
        self.writer.add_scalar("learning_rate", rate, step)
        self.writer.add_scalar("gradient_norm", trainer.state.gradient_norm, step)

    def epoch(self, trainer: Engine) -> None:
        shares = self.network.backbone.gate_shares()
        for layer, share in enumerate(shares):
            self.writer.add_scalar(f"gate_share/gated_layer_{layer}", share, trainer.state.epoch)
        if shares:
            trainer.logger.info(f"gate shares: {', '.join(f'{share:.3f}' for share in shares)}")
