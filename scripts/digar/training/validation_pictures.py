"""A picture after every validation: segmentations beside the truth, or predicted patches beside the image."""

from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import affine_to_spacing

from digar.networks.patches import from_patches, to_patches
from digar.training.losses import patch_order
from digar.volumes.pictures import Planes, intensity_window, picture_page, take_planes


class ValidationPictures:
    """Write a PNG page of the first cases whenever an evaluator has run.

    The evaluator must post-process ``pred`` and ``label`` to one-hot volumes, as the Dice metric wants them.

    Args:
        folder: where ``validation_epoch_NNNN.png`` goes.
        trainer: gives the epoch.
        num_cases: rows of the page.
    """

    def __init__(self, folder: str | Path, trainer: Engine, num_cases: int = 3) -> None:
        self.folder = Path(folder)
        self.trainer = trainer
        self.num_cases = num_cases
        self.rows: list[Planes] = []

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        evaluator.add_event_handler(Events.COMPLETED, self.write)

    def collect(self, evaluator: Engine) -> None:
        for case in evaluator.state.output:
            if len(self.rows) >= self.num_cases:
                return
            masks = [np.asarray(case[key].cpu()).argmax(axis=0) for key in ("label", "pred")]
            meta = case["image"].meta
            name = Path(str(meta.get("filename_or_obj", "case"))).name
            spacing = affine_to_spacing(case["image"].affine).tolist()
            image = np.asarray(case["image"][0].cpu().float())
            self.rows.append(take_planes(name, image, masks, spacing))

    @idist.one_rank_only()
    def write(self, evaluator: Engine) -> None:
        if not self.rows:
            return
        epoch = self.trainer.state.epoch
        title = f"epoch {epoch}: truth solid, prediction dashed"
        picture_page(self.folder / f"validation_epoch_{epoch:04d}.png", self.rows, title)


class PredictionPictures:
    """Write a PNG page of one pretraining sample: image, prefix, the prefix followed by the predictions, the error.

    Each predicted patch is drawn with its own true mean and deviation, which normalised targets do not tell.

    Args:
        folder: where ``prediction_epoch_NNNN.png`` goes.
        trainer: gives the epoch.
        patch_size: patch in voxels.
        norm_pixel: whether the targets are normalised per patch.
        token_order: the network's.
    """

    def __init__(
        self,
        folder: str | Path,
        trainer: Engine,
        patch_size: Sequence[int],
        norm_pixel: bool,
        token_order: str = "raster",
    ) -> None:
        self.folder = Path(folder)
        self.trainer = trainer
        self.patch_size = tuple(patch_size)
        self.norm_pixel = norm_pixel
        self.token_order = token_order

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), self.write)

    @idist.one_rank_only()
    def write(self, evaluator: Engine) -> None:
        """Draw the sample of the first batch whose prefix is nearest to a third of the patches."""
        prediction = evaluator.state.output["pred"].float().cpu()
        image, prefix = (tensor.cpu() for tensor in evaluator.state.output["label"][:2])
        patches = to_patches(image, self.patch_size)
        num_patches = patches.shape[1]
        shown = int((prefix - num_patches / 3).abs().argmin())
        patches, length = patches[shown : shown + 1], int(prefix[shown])
        place = patch_order(
            image.shape[2:], self.patch_size, self.token_order
        ).argsort()  # of each patch in the sequence
        predicted = prediction[shown : shown + 1, place]
        if self.norm_pixel:
            variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        given = (place < length)[None, :, None]  # patches 1..P
        nothing = torch.zeros_like(patches)
        rows = [
            ("image", patches),
            (f"prefix: {length} of {num_patches} patches", torch.where(given, patches, nothing)),
            ("prefix, then each next patch as predicted", torch.where(given, patches, predicted)),
            ("error, in the image's contrast", (predicted - patches).abs() * ~given),
        ]
        volumes = [(name, from_patches(p, image.shape[2:], self.patch_size)[0, 0].numpy()) for name, p in rows]
        low, high = intensity_window(volumes[0][1])
        windows = [(low, high)] * 3 + [(0.0, high - low)]
        picture_page(
            self.folder / f"prediction_epoch_{self.trainer.state.epoch:04d}.png",
            [take_planes(name, volume, window=window) for (name, volume), window in zip(volumes, windows, strict=True)],
            f"epoch {self.trainer.state.epoch}",
        )
