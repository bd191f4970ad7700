"""MONAI Label app of this bundle: its network, its training, strokes that correct it, and the case to label next.

    digar serve STUDIES

The bundle is the one that this folder lies in; nothing is linked or downloaded. What may be asked of the server, and by
whom, is in ``digar.cli.gate``.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monailabel.endpoints.infer
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.utils.app import app_instance
from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.append(str(BUNDLE / "scripts"))  # where the package is not installed; what follows is found by it

from digar.cli.gate import INFERENCE, Gate, RefusedError, check_values, read_json
from digar.volumes.errors import in_a_line
from masks import IMAGE_ERRORS, Batch, Masks, SoftPrediction, Uncertainty
from retraining import Retraining
from scribbles import Scribbles
from studies import with_checks

NAME = "digar"
SCRIBBLES = "digar+GraphCut"
DROPOUT = 0.2


class DigarApp(MONAILabelApp):
    """The bundle in MONAI Label.

    Strategies: ``epistemic`` (least sure first), ``random``, ``first``. Scoring: ``epistemic``; MONAI Label runs it
    when the server starts, after each training and each time a case is fetched.

    Args:
        app_dir: this folder.
        studies: folder of images, or the address of a DICOMweb store.
        conf: ``--conf`` of the command line: ``hosts``, names under which the server may be called besides the
            loopback's, separated by commas.

    Raises:
        FileNotFoundError: the bundle has no weights.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        if not (BUNDLE / "models" / "model.pt").is_file():
            raise FileNotFoundError(
                f"{BUNDLE}/models/model.pt is missing: put weights there (models/former/ holds older ones)"
            )
        super().__init__(app_dir, studies, conf, name="DiGAR", description="Dilated-gated attention, fine-tuned")
        # in the server itself, also after /reload: there MONAI Label would ask the server, which waits for the answer
        self.server_mode("monailabel.app" in sys.modules)

    def init_datastore(self) -> Datastore:
        return with_checks(super().init_datastore())

    def init_infers(self) -> dict[str, InferTask]:
        masks = Masks(str(BUNDLE), self.conf, type=InferType.SEGMENTATION, load_strict=True)
        self.datastore().labels = masks.labels
        return {NAME: masks, SCRIBBLES: Scribbles(str(BUNDLE), self.conf)}

    def init_trainers(self) -> dict[str, Retraining]:
        return {NAME: Retraining(str(BUNDLE), self.conf)}

    def init_batch_infer(self) -> Batch:
        return Batch()

    def init_strategies(self) -> dict[str, Any]:
        return {"epistemic": Epistemic(), "random": Random(), "first": First()}

    def init_scoring_methods(self) -> dict[str, Uncertainty]:
        options = {"type": InferType.SEGMENTATION, "dropout": DROPOUT, "train_mode": True, "skip_writer": True}
        return {"epistemic": Uncertainty(SoftPrediction(str(BUNDLE), self.conf, **options))}

    def on_init_complete(self) -> None:
        """Put the gate before the server, which is about to take its first request."""
        from monailabel.app import app as server

        server.middleware_stack = Gate(server.middleware_stack, self.conf.get("hosts", "").split(","))
        monailabel.endpoints.infer.run_inference = explained(monailabel.endpoints.infer.run_inference)
        super().on_init_complete()


def explained(run_inference: Callable) -> Callable:
    """MONAI Label's answer to a request for a mask: the form's values checked, and errors told to the viewer."""

    @functools.wraps(run_inference)
    def run(tasks: Any, model: str, image: str = "", session_id: str = "", params: str = "{}", *files: Any) -> Any:
        app: DigarApp = app_instance()
        try:
            check_values(read_json(params), INFERENCE)
            if model not in app._infers:
                raise RefusedError(404, f"there is no model {model!r}; {', '.join(app._infers)} are")
            if session_id and not app.sessions().get_session(session_id):
                raise RefusedError(404, f"there is no session {session_id}")
            if image and not session_id and not files[0] and not app.datastore().get_image_uri(image):
                raise RefusedError(404, f"there is no image {image!r} in {app.studies}")
            return run_inference(tasks, model, image, session_id, params, *files)
        except RefusedError as error:
            raise HTTPException(error.status, str(error)) from error
        except MONAILabelException as error:
            raise HTTPException(500, error.msg) from error
        except IMAGE_ERRORS as error:
            raise HTTPException(500, in_a_line(error)) from error

    return run
