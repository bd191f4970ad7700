"""The unit test in two processes that MONAI's model zoo runs on the bundle (ci/unit_tests), here on the clone."""

import os
import subprocess
import sys
import unittest

from monai.bundle import ConfigParser

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # where the unit test in one process lies, here and there

import test_digar_hippocampus_mri_segmentation as alone

# the zoo's form has the overlay for several processes under a second name
EVALUATE = "multi_gpu_evaluate.json" if alone.BUNDLE == alone.IN_THE_ZOO else "multi_gpu_train.json"


class TestDigarHippocampusMriSegmentationInTwoProcesses(alone.OnFiveCases):
    def complete(self, *names: str) -> None:
        files = alone.config(*names)
        parser = ConfigParser()
        parser.read_config(files["config_file"])
        own = {"bundle_root": os.path.abspath(alone.BUNDLE), "dataset_dir": self.folder, "output_dir": self.output}
        own |= {"weights_file": os.path.join(self.output, "model.pt"), "validation_share": 0.4}
        parser.update(pairs={**alone.SMALL, **own})
        exported = os.path.join(self.folder, "config.json")
        ConfigParser.export_config_file(parser.config, exported, indent=4)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
        command += ["-m", "monai.bundle", "run", "--config_file", exported]
        command += ["--logging_file", files["logging_file"], "--meta_file", files["meta_file"]]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)

    def test_train_and_evaluate(self) -> None:
        self.complete("train.json", "multi_gpu_train.json")
        assert os.path.isfile(os.path.join(self.output, "model.pt"))
        written = os.listdir(os.path.join(self.output, "tensorboard"))
        assert any("process_1" in name for name in written)
        self.complete("train.json", "evaluate.json", EVALUATE)
        with open(os.path.join(self.output, "cases.csv")) as table:
            assert sum(",mean," in line for line in table) == 2


if __name__ == "__main__":
    unittest.main()
