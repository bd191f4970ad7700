"""A picture after every validation: segmentations beside the truth, or predicted patches beside the image."""

from collections.abc import Mapping
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events

from digar.networks.patches import from_patches, to_patches
from digar.training.losses import NextPatchLoss, patch_order
from digar.volumes.grids import WorkingGridd
from digar.volumes.pictures import Planes, Prediction, picture_page, prediction_page, take_planes


class ValidationPictures:
    """Write a PNG page of the first cases whenever an evaluator has run.

    The evaluator is a :class:`digar.evaluation.mask_evaluator.MaskEvaluator`; all is drawn in the working grid.

    Args:
        folder: where ``validation_epoch_NNNN.png`` goes.
        num_cases: rows of the page.
        labels: value to name.
    """

    def __init__(self, folder: str | Path, num_cases: int = 3, labels: Mapping[int, str] | None = None) -> None:
        self.folder = Path(folder)
        self.num_cases = num_cases
        self.labels = labels
        self.rows: list[Planes] = []

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        evaluator.add_event_handler(Events.COMPLETED, self.write)

    def collect(self, evaluator: Engine) -> None:
        for case in evaluator.state.output:
            if len(self.rows) >= self.num_cases:
                return
            image = case["image"]
            name = Path(str(image.meta.get("filename_or_obj", "case"))).name
            affine = image.affine.cpu().numpy()
            turned = WorkingGridd(("label", "pred"), np.linalg.norm(affine[:3, :3], axis=0), "nearest")(case)
            masks = [turned[key][0].numpy() for key in ("label", "pred")]
            self.rows.append(take_planes(name, image[0].cpu().numpy(), masks, affine))

    @idist.one_rank_only()
    def write(self, evaluator: Engine) -> None:
        if not self.rows:
            return
        epoch = evaluator.state.epoch
        title = f"validation after epoch {epoch}"
        picture_page(self.folder / f"validation_epoch_{epoch:04d}.png", self.rows, title, self.labels)


class PredictionPictures:
    """Write a PNG page of pretraining samples: image, prefix, the prefix followed by the predictions, the error.

    Each predicted patch is drawn with its own true mean and deviation, which normalised targets do not tell.

    Args:
        folder: where ``prediction_epoch_NNNN.png`` goes.
        loss_function: tells what the network predicts: patch size, normalisation, token order.
        num_samples: rows of the page, those of the first batch whose prefix is nearest to a third of the patches.
    """

    def __init__(self, folder: str | Path, loss_function: NextPatchLoss, num_samples: int = 4) -> None:
        self.folder = Path(folder)
        self.loss_function = loss_function
        self.num_samples = num_samples

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), self.write)

    @idist.one_rank_only()
    def write(self, evaluator: Engine) -> None:
        """Draw samples of the first batch."""
        prediction = evaluator.state.output["pred"].float().cpu()
        image, prefix = (tensor.cpu() for tensor in evaluator.state.output["label"][:2])
        target = self.loss_function
        patches = to_patches(image, target.patch_size)  # (B, N, C*p*q*r)
        # of each patch in the sequence
        place = patch_order(image.shape[2:], target.patch_size, target.token_order).argsort()
        predicted = prediction[:, place]
        if target.norm_pixel:
            variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        given = (place[None] < prefix[:, None])[..., None]  # patches 1..P
        parts = (
            patches,
            torch.where(given, patches, torch.zeros_like(patches)),
            torch.where(given, patches, predicted),
            (predicted - patches).abs() * ~given,
        )
        volumes = [from_patches(part, image.shape[2:], target.patch_size)[:, 0].numpy() for part in parts]
        num_patches = patches.shape[1]
        nearest = (prefix - num_patches / 3).abs().argsort(stable=True)[: self.num_samples].tolist()
        samples = [
            Prediction(f"prefix: {int(prefix[i])} of {num_patches} patches", *(volume[i] for volume in volumes))
            for i in nearest
        ]
        epoch = evaluator.state.epoch
        prediction_page(self.folder / f"prediction_epoch_{epoch:04d}.png", samples, f"next patches after epoch {epoch}")
