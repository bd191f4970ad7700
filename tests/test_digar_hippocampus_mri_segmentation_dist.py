"""The unit test in two processes that MONAI's model zoo runs on the bundle (in ci/unit_tests), here on the clone."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser

IN_THE_ZOO = "models/digar_hippocampus_mri_segmentation"
BUNDLE = IN_THE_ZOO if os.path.isdir(IN_THE_ZOO) else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EVALUATE = "multi_gpu_evaluate.json" if BUNDLE == IN_THE_ZOO else "multi_gpu_train.json"  # the clone has it once
SMALL = {
    "roi_size": [16, 16, 16],
    "network_size": {"hidden_size": 24, "num_layers": 2, "num_heads": 2},
    "batch_size": 1,
    "max_epochs": 1,
    "num_workers": 0,
    "validation_share": 0.4,
}


class TestDigarHippocampusMriSegmentationInTwoProcesses(unittest.TestCase):
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

    def complete(self, *names: str) -> None:
        parser = ConfigParser()
        parser.read_config([os.path.join(BUNDLE, "configs", name) for name in names])
        own = {"bundle_root": os.path.abspath(BUNDLE), "dataset_dir": self.folder, "output_dir": self.output}
        parser.update(pairs={**SMALL, **own, "weights_file": os.path.join(self.output, "model.pt")})
        exported = os.path.join(self.folder, "config.json")
        ConfigParser.export_config_file(parser.config, exported, indent=4)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
        command += ["-m", "monai.bundle", "run", "--config_file", exported]
        for option, name in (("--logging_file", "logging.conf"), ("--meta_file", "metadata.json")):
            command += [option, os.path.join(BUNDLE, "configs", name)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)

    def test_train_and_evaluate(self) -> None:
        self.complete("train.json", "multi_gpu_train.json")
        written = os.listdir(os.path.join(self.output, "tensorboard"))
        assert any("process_1" in name for name in written)
        self.complete("train.json", "evaluate.json", EVALUATE)
        with open(os.path.join(self.output, "cases.csv")) as table:
            assert sum(",mean," in line for line in table) == 2


if __name__ == "__main__":
    unittest.main()
