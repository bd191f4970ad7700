"""An exported file, TorchScript or ONNX, in the place of the PyTorch network."""

import sys
from abc import abstractmethod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from digar.networks.weights import refuse_damaged, refuse_nonfinite

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # of onnxruntime, in order of preference


def load_exported(path: str | Path, backend: str = "onnxruntime") -> nn.Module:
    """A network that runs an exported file: TorchScript (``.ts``) or ONNX (``.onnx``).

    Args:
        path: of the file.
        backend: that runs an ONNX file, ``onnxruntime`` or ``openvino``.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: an ONNX file, and its backend is not installed.
        ValueError: another ending or backend, a file that is damaged or not what its ending says, or non-finite
            weights.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} must be one of {', '.join(BACKENDS)}")
    file = Path(path)
    if file.suffix.lower() not in (".ts", ".onnx"):
        raise ValueError(f"{file} is not an exported network: its name must end in .ts (TorchScript) or .onnx")
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no exported network at {file}: docs/export.md has the command that writes it"
        )
    if file.suffix.lower() == ".onnx":
        return BACKENDS[backend](file)
    refuse_damaged(file)
    try:
        network = torch.jit.load(file, map_location="cpu")
    except RuntimeError as error:
        raise ValueError(f"{file} cannot be read as TorchScript: export it again ({error})") from error
    refuse_nonfinite(network.state_dict(), file)
    return network


class OnnxNetwork(nn.Module):
    """A network with one input and one output, run from an ONNX file in float32.

    Args:
        path: the ONNX file.

    Raises:
        ImportError: the backend is not installed.
        ValueError: the file is damaged or of another format.
    """

    backend, precision = "", "float32"  # even if an inferer is set to another precision
    UNDECISIVE = ("model", "shape")  # what they compute is in the file

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model = self.load(path)
        self.shape = self.taken()

    @abstractmethod
    def load(self, path: Path) -> Any:
        """The file as the backend holds it."""

    @abstractmethod
    def taken(self) -> list[int]:
        """The sizes of an input, ``C, X, Y, Z``."""

    @abstractmethod
    def run(self, image: np.ndarray) -> np.ndarray:
        """``(B, C, X, Y, Z)`` to logits, both float32."""

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to logits ``(B, classes, X, Y, Z)``; any B, the other sizes as exported.

        Raises:
            ValueError: the image has another size or channel count than the file was exported for.
        """
        if list(image.shape[1:]) != self.shape:
            raise ValueError(
                f"image has channels and size {list(image.shape[1:])}, "
                f"the exported network takes {self.shape}: give the roi_size it was exported with"
            )
        logits = self.run(image.detach().cpu().float().numpy())
        return torch.from_numpy(logits).to(image.device)


class OnnxRuntimeNetwork(OnnxNetwork):
    """Run by ONNX Runtime: on CUDA where it has that, else with as many threads as PyTorch."""

    backend = "ONNX Runtime"

    def load(self, path: Path) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{path} needs onnxruntime: pip install -r requirements-export.txt") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = [name for name in PROVIDERS if name in onnxruntime.get_available_providers()]
        damaged = onnxruntime.capi.onnxruntime_pybind11_state
        try:
            return onnxruntime.InferenceSession(path, options, providers)
        except (damaged.InvalidProtobuf, damaged.InvalidGraph, damaged.Fail) as error:
            raise ValueError(f"{path} cannot be read as ONNX: export it again ({error})") from error

    def taken(self) -> list[int]:
        return self.model.get_inputs()[0].shape[1:]

    def run(self, image: np.ndarray) -> np.ndarray:
        return self.model.run(None, {"image": image})[0]


class OpenVinoNetwork(OnnxNetwork):
    """Run by OpenVINO on the CPU, with as many threads as PyTorch."""

    backend = "OpenVINO"

    def load(self, path: Path) -> Any:
        # openvino reports each import to the internet through this package, and does without where it is missing
        sys.modules.setdefault("openvino_telemetry", ModuleType("openvino_telemetry"))
        try:
            import openvino
        except ImportError as error:
            raise ImportError(
                f"{path} needs openvino: pip install -r requirements-export.txt -r requirements-openvino.txt"
            ) from error
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            return openvino.Core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise ValueError(f"{path} cannot be read as ONNX: export it again ({error})") from error

    def taken(self) -> list[int]:
        return [size.get_length() for size in list(self.model.input(0).partial_shape)[1:]]

    def run(self, image: np.ndarray) -> np.ndarray:
        return self.model([image])[0].copy()  # the backend's buffer is filled again by the next call


BACKENDS: dict[str, type[OnnxNetwork]] = {"onnxruntime": OnnxRuntimeNetwork, "openvino": OpenVinoNetwork}
