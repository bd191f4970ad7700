"""The unit test that MONAI's model zoo runs on the bundle (in its ci/unit_tests), here on the clone."""

import os
import shutil
import tempfile
import unittest

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

IN_THE_ZOO = "models/digar_hippocampus_mri_segmentation"
BUNDLE = IN_THE_ZOO if os.path.isdir(IN_THE_ZOO) else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = {
    "roi_size": [16, 16, 16],
    "network_size": {"hidden_size": 24, "num_layers": 2, "num_heads": 2},
    "batch_size": 1,
    "max_epochs": 1,
    "num_workers": 0,
}


def config(*names: str) -> dict:
    files = [os.path.join(BUNDLE, "configs", name) for name in names]
    own = {name: os.path.join(BUNDLE, "configs", name) for name in ("logging.conf", "metadata.json")}
    return {"config_file": files, "logging_file": own["logging.conf"], "meta_file": own["metadata.json"]}


class OnFiveCases(unittest.TestCase):
    """A task of five cases of noise, in a folder that is removed afterwards."""

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        generator = np.random.default_rng(0)
        for name, stop in (("imagesTr", 256), ("labelsTr", 3)):
            os.mkdir(os.path.join(self.folder, name))
            for case in range(5):
                volume = nib.Nifti1Image(generator.integers(0, stop, (20, 20, 20)).astype(np.uint8), np.eye(4))
                nib.save(volume, os.path.join(self.folder, name, f"case_{case}.nii.gz"))
        self.output = os.path.join(self.folder, "output")

    def tearDown(self) -> None:
        shutil.rmtree(self.folder)


class TestDigarHippocampusMriSegmentation(OnFiveCases):
    def complete(self, kind: str, *names: str, check: bool = True, **options: object) -> None:
        own = {"bundle_root": BUNDLE, "weights_file": os.path.join(self.output, "model.pt")}
        workflow = ConfigWorkflow(workflow_type=kind, **config(*names), **own, **options)
        workflow.initialize()
        if check:
            assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()

    def test_train_evaluate_and_infer(self) -> None:
        options = {**SMALL, "dataset_dir": self.folder, "output_dir": self.output}
        self.complete("train", "train.json", **options)
        self.complete("eval", "train.json", "evaluate.json", check=False, **options)
        assert os.path.isfile(os.path.join(self.output, "cases.csv"))

        inferred = {name: SMALL[name] for name in ("roi_size", "network_size")}
        images = os.path.join(self.folder, "imagesTr")
        self.complete("infer", "inference.json", dataset_dir=images, output_dir=self.output, **inferred)
        assert os.path.isfile(os.path.join(self.output, "case_0_mask.nii.gz"))


if __name__ == "__main__":
    unittest.main()
