"""Lets torchvision be imported beside a CPU build of PyTorch where its own wheel is a CUDA build.

MONAI Label imports torchvision for two plotting functions. The CUDA wheel does not register its operators beside a CPU
PyTorch, and then fails at its own import because two of them have no name; this appends the names to the installed
file. For the environment of the tests alone: users install the torchvision that fits their PyTorch.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

NAMES = """

_names_for_cpu = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _names_for_cpu.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

if __name__ == "__main__":
    works = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
    if works.returncode != 0:
        folder = Path(importlib.util.find_spec("torchvision").origin).parent
        with (folder / "extension.py").open("a") as file:
            file.write(NAMES)
        subprocess.run([sys.executable, "-c", "import torchvision"], check=True)
