"""Masks of one image or many, and how sure the network is of them."""

import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from digar.volumes.errors import in_a_line
from fastapi import HTTPException
from monai.inferers import Inferer
from monai.transforms import Activationsd
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.scoring.epistemic_v2 import EpistemicScoring
from monailabel.utils.others.generic import name_to_device, remove_file

logger = logging.getLogger(__name__)

IMAGE_ERRORS = (OSError, RuntimeError, ValueError)  # what an image raises that cannot be used


class Masks(BundleInferTask):
    """The folder inference's mask of an image; several threads may ask for one at a time."""

    _lock = threading.RLock()  # a config is resolved by one thread at a time

    def pre_transforms(self, data: dict[str, Any] | None = None) -> list[Callable]:
        with self._lock:
            return super().pre_transforms(data)

    def inferer(self, data: dict[str, Any] | None = None) -> Inferer:
        with self._lock:
            return super().inferer(data)

    def post_transforms(self, data: dict[str, Any] | None = None) -> list[Callable]:
        with self._lock:
            return super().post_transforms(data)

    def _get_network(self, device: str, data: dict[str, Any] | None) -> torch.nn.Module:
        with self._lock:
            return super()._get_network(device, data)


class Batch(BatchInferTask):
    """Masks of many images, several at once; an image that fails is named, and passed."""

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable) -> dict[str, Any]:
        images = sorted(set(self.get_images(request, datastore)))
        images = images[: request.get("max_batch_size") or len(images)]
        workers = max(min(request.get("max_workers") or 1, len(images)), 1)
        devices = self.devices(request)
        logger.info("%d images, %d at once, on %s", len(images), workers, ", ".join(devices))
        shared = {
            **request,
            "save_label": True,
            "label_tag": request.get("label_tag", DefaultLabelTag.ORIGINAL),
            "beside_others": workers > 1,  # then an image takes half of the memory at most
        }

        def run(image: str, device: str) -> dict[str, Any]:
            try:
                if not datastore.get_image_uri(image):
                    raise ValueError("there is no such image")
                result = infer({**shared, "image": image, "device": device}, datastore)
                remove_file(result.pop("file", None))
            except HTTPException as error:
                return {"error": error.detail}
            except MONAILabelException as error:
                return {"error": error.msg}
            except IMAGE_ERRORS as error:
                return {"error": in_a_line(error)}
            return result

        results = {}
        with ThreadPoolExecutor(workers, "batch") as pool:
            for image, result in zip(images, pool.map(run, images, itertools.cycle(devices)), strict=True):
                results[image] = result
                logger.info("%d of %d: %s %s", len(results), len(images), image, result.get("error", "done"))
        failed = [f"{image} ({result['error']})" for image, result in results.items() if "error" in result]
        logger.info(
            "%d images done, %d failed: %s", len(images) - len(failed), len(failed), "; ".join(failed) or "none"
        )
        return results

    @staticmethod
    def devices(request: dict[str, Any]) -> list[str]:
        """Those among which the images are dealt out: all GPUs, those named, or the one device named."""
        if not (torch.cuda.is_available() and request.get("multi_gpu", True)):
            return [name_to_device(request.get("device"))]
        gpus = request.get("gpus") or "all"
        return [f"cuda:{i}" for i in (range(torch.cuda.device_count()) if gpus == "all" else gpus.split(","))]


class SoftPrediction(Masks):
    """Inference that ends with the probabilities of all classes, in the network's grid."""

    def post_transforms(self, data: dict[str, Any] | None = None) -> list[Activationsd]:
        return [Activationsd(keys=self.key_pred, softmax=True)]


class Uncertainty(EpistemicScoring):
    """Entropy of the mean soft prediction over several passes with dropout, averaged over the volume's voxels."""

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        # one worker: the soft predictions of several passes take much memory
        return super().__call__({**request, "max_workers": 1}, datastore)

    def run_scoring(self, image_id: str, simulation_size: int, model_ts: int, datastore: Datastore) -> None:
        """Score one image; one that cannot be read is named in the log and comes last."""
        try:
            super().run_scoring(image_id, simulation_size, model_ts, datastore)
        except IMAGE_ERRORS as error:
            logger.error("%s cannot be scored: %s", image_id, in_a_line(error))
            datastore.update_image_info(image_id, {self.key_output_entropy: 0.0, self.key_output_ts: model_ts})
