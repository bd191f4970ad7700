"""MONAI Label app of this bundle: the network, its training, and the case to label next, the one it is least sure of.

    python -m monailabel.main start_server --app apps/digar --studies STUDIES --host 127.0.0.1

The bundle is the one that this folder lies in; nothing is linked or downloaded.
"""

import logging
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from fastapi import HTTPException
from monai.transforms import Activationsd
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.scoring.epistemic_v2 import EpistemicScoring
from monailabel.tasks.train.bundle import BundleTrainTask

logger = logging.getLogger(__name__)

NAME = "digar"
DROPOUT = 0.2


class DigarApp(MONAILabelApp):
    """The bundle in MONAI Label.

    Strategies: ``epistemic`` (least sure first), ``random``, ``first``. Scoring: ``epistemic``; MONAI Label runs it
    when the server starts, after each training and each time a case is fetched.

    Args:
        app_dir: this folder.
        studies: folder of images, or the address of a DICOMweb store.
        conf: ``--conf`` of the command line; nothing in it is used.

    Raises:
        FileNotFoundError: the bundle has no weights.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        bundle = Path(app_dir).resolve().parents[1]
        if not (bundle / "models" / "model.pt").is_file():
            raise FileNotFoundError(
                f"{bundle}/models/model.pt is missing: put weights there (models/former/ holds older ones)"
            )
        self.bundle = str(bundle)
        super().__init__(app_dir, studies, conf, name="DiGAR", description="Dilated-gated attention, fine-tuned")

    def init_infers(self) -> dict[str, BundleInferTask]:
        return {NAME: BundleInferTask(self.bundle, self.conf, type=InferType.SEGMENTATION, load_strict=True)}

    def init_trainers(self) -> dict[str, BundleTrainTask]:
        return {NAME: Retraining(self.bundle, self.conf)}

    def init_strategies(self) -> dict[str, Any]:
        return {"epistemic": Epistemic(), "random": Random(), "first": First()}

    def init_scoring_methods(self) -> dict[str, EpistemicScoring]:
        options = {"type": InferType.SEGMENTATION, "dropout": DROPOUT, "train_mode": True, "skip_writer": True}
        return {"epistemic": Uncertainty(SoftPrediction(self.bundle, self.conf, **options))}

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Give the saved label the network's values, whatever the order of the segments that it was drawn with.

        A label with segments that the network does not know is removed again, and the request answered by 400. In a
        DICOMweb store a label has become DICOM SEG by now, and is left as it is.
        """
        super().on_save_label(image_id, label_id)
        if isinstance(self.datastore(), DICOMWebDatastore):
            return
        info = self.datastore().get_label_info(label_id, DefaultLabelTag.FINAL)
        drawn = [segment["name"].lower() for segment in info.get("label_info", [])]
        path = Path(self.datastore().get_label_uri(label_id, DefaultLabelTag.FINAL))
        if not drawn or not path.name.endswith((".nii", ".nii.gz")):
            return
        try:
            reorder_label(path, drawn, self._infers[NAME].labels)
        except ValueError as error:
            self.datastore().remove_label(label_id, DefaultLabelTag.FINAL)
            raise HTTPException(400, str(error)) from error


def reorder_label(path: Path, drawn: list[str], labels: dict[str, int]) -> None:
    """Rewrite a label whose values count the drawn segments (1, 2, ...) with the network's values.

    Args:
        path: NIfTI file; left alone where the values are right already.
        drawn: names of the segments in the order of their values; 3D Slicer numbers them by their place in its list.
        labels: the network's value of each name.

    Raises:
        ValueError: a segment's name is none of the network's, or a value has no name; the file is then unchanged.
    """
    unknown = [name for name in drawn if name not in labels]
    if unknown:
        raise ValueError(f"segments {', '.join(unknown)} are none of {', '.join(labels)}: rename them and save again")
    image = nib.load(path)
    places = np.asanyarray(image.dataobj).astype(int)
    if places.min() < 0 or places.max() > len(drawn):
        raise ValueError(f"the label holds the value {places.max()}, but {len(drawn)} segments are named")
    values = np.array([0, *(labels[name] for name in drawn)], np.uint8)
    if (values == np.arange(len(values))).all():
        return
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    nib.save(nib.Nifti1Image(values[places], image.affine), temporary)
    temporary.replace(path)
    logger.info("%s: segments %s now have the values %s", path, ", ".join(drawn), values[1:].tolist())


class Retraining(BundleTrainTask):
    """Training that goes on from the present weights, or anew; it fails with its cause in a line."""

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict]) -> None:
        """Load the present weights at the start, unless the training shall begin anew, where MONAI Label fails."""
        if pretrained:
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def run_single_gpu(self, request: dict[str, Any], overrides: dict[str, Any]) -> None:
        try:
            super().run_single_gpu(request, overrides)
        except RuntimeError as error:  # MONAI's own says which config item failed, not why
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise RuntimeError(str(cause)) from None


class SoftPrediction(BundleInferTask):
    """Inference that ends with the probabilities of all classes, in the network's grid."""

    def post_transforms(self, data: dict[str, Any] | None = None) -> list[Activationsd]:
        return [Activationsd(keys=self.key_pred, softmax=True)]


class Uncertainty(EpistemicScoring):
    """Entropy of the mean soft prediction over several passes with dropout, averaged over the volume's voxels."""

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        # one worker: MONAI Label imports the bundle's scripts anew for every volume, which threads must not do at once
        return super().__call__({**request, "max_workers": 1}, datastore)

    def run_scoring(self, image_id: str, simulation_size: int, model_ts: int, datastore: Datastore) -> None:
        """Score one image; one that cannot be read is named in the log and comes last."""
        try:
            super().run_scoring(image_id, simulation_size, model_ts, datastore)
        except (OSError, RuntimeError, ValueError) as error:
            logger.error("%s cannot be scored: %s", image_id, error)
            datastore.update_image_info(image_id, {self.key_output_entropy: 0.0, self.key_output_ts: model_ts})
