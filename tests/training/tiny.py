"""A training as the configs wire it, of a handful of weights: with dropout, random samples, schedule and validation."""

from dataclasses import dataclass
from pathlib import Path

import torch
from digar.data.sampler import ResumableSampler
from digar.data.seeded import SeededCacheDataset
from digar.training.checkpoints import BestWeights, TrainingState
from digar.training.gradients import SafeSteps
from digar.training.run_seed import RunSeed
from digar.training.training_run import TrainingRun
from ignite.engine import Events
from ignite.metrics import Loss
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, LrScheduleHandler, ValidationHandler
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose, RandGaussianNoised
from torch import nn

CASES = 7
EPOCHS = 3
BATCH = 2
STEPS = 4  # per epoch, the last of one sample


@dataclass
class Tiny:
    """The parts of one run; ``seen`` are the samples that were computed, as (epoch, index)."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    trainer: SupervisedTrainer
    evaluator: SupervisedEvaluator
    run: TrainingRun
    seen: list[tuple[int, int]]
    losses: list[float]

    def weights(self) -> dict[str, torch.Tensor]:
        return self.network.state_dict()

    @property
    def state(self) -> TrainingState:
        return self.run.state

    @property
    def best_weights(self) -> BestWeights:
        return self.run.best_weights


def make_run(
    folder: Path,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    width: int = 3,
    cases: int = CASES,
    workers: int = 0,
    rank: int = 0,
    processes: int = 1,
    nan_policy: str = "stop",
    learning_rate: float = 0.01,
    weight_decay: float = 0.01,
    max_norm: float = 10.0,
    noise: float = 0.1,
    seed: int = 3,
    first: int = 0,
    start_from: Path | None = None,
    **settings: float,
) -> Tiny:
    """A run that writes to ``folder``, before any training and resuming."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    seen, losses = [], []

    def note(sample: dict) -> dict:
        seen.append((dataset.epoch, sample["index"]))
        return sample

    images = [torch.full((1, width), float(first + i)) for i in range(cases)]
    data = [{"image": image, "label": torch.ones(1, 1), "index": i} for i, image in enumerate(images)]
    transform = Compose([RandGaussianNoised("image", prob=1.0, std=noise), note])
    dataset = SeededCacheDataset(data, transform, progress=False, seed=seed)
    sampler = ResumableSampler(dataset, num_replicas=processes, rank=rank, seed=seed)
    loader = DataLoader(dataset, batch_size=batch, sampler=sampler, num_workers=workers)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    scheduler = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=EPOCHS * STEPS)
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader([{"image": torch.ones(width), "label": torch.ones(1)}] * 2, batch_size=2),
        network=network,
        decollate=False,
        metric_cmp_fn=lambda loss, best: loss < best,
        key_val_metric={"val_loss": Loss(nn.MSELoss(), lambda output: (output["pred"], output["label"]))},
    )
    handlers = [
        RunSeed(dataset, seed),
        SafeSteps(network, loader, max_norm, nan_policy, max_skipped=2),
        LrScheduleHandler(scheduler, epoch_level=False, print_lr=False),
        ValidationHandler(1, evaluator),
        *([CheckpointLoader(str(start_from), {"model": network})] if start_from else []),
    ]
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=handlers,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output[0]["loss"]))
    saved = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
    run = TrainingRun(trainer, evaluator, saved, folder, folder / "model.pt", settings, handlers)
    return Tiny(network, optimizer, trainer, evaluator, run, seen, losses)
