"""An exported file, TorchScript or ONNX, in the place of the PyTorch network."""

from pathlib import Path

import torch
from torch import Tensor, nn

from digar.networks.weights import refuse_damaged, refuse_nonfinite

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # of onnxruntime, in order of preference


def load_exported(path: str | Path) -> nn.Module:
    """A network that runs an exported file: TorchScript (``.ts``) or ONNX (``.onnx``).

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: an ONNX file, and onnxruntime is not installed.
        ValueError: another ending, a file that is damaged or not what its ending says, or non-finite weights.
    """
    file = Path(path)
    if file.suffix.lower() not in (".ts", ".onnx"):
        raise ValueError(f"{file} is not an exported network: its name must end in .ts (TorchScript) or .onnx")
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no exported network at {file}: docs/export.md has the command that writes it"
        )
    if file.suffix.lower() == ".onnx":
        return OnnxNetwork(file)
    refuse_damaged(file)
    try:
        network = torch.jit.load(file, map_location="cpu")
    except RuntimeError as error:
        raise ValueError(f"{file} cannot be read as TorchScript: export it again ({error})") from error
    refuse_nonfinite(network.state_dict(), file)
    return network


class OnnxNetwork(nn.Module):
    """A network with one input and one output, run by onnxruntime in float32.

    It uses CUDA where onnxruntime has it, else as many threads as PyTorch.

    Args:
        path: the ONNX file.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file is damaged or of another format.
    """

    backend, precision = "ONNX Runtime", "float32"  # even if an inferer is set to another precision
    UNDECISIVE = ("session", "input")  # what they compute is in the file

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{path} needs onnxruntime: pip install -r requirements-export.txt") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = [name for name in PROVIDERS if name in onnxruntime.get_available_providers()]
        damaged = onnxruntime.capi.onnxruntime_pybind11_state
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers)
        except (damaged.InvalidProtobuf, damaged.InvalidGraph, damaged.Fail) as error:
            raise ValueError(f"{path} cannot be read as ONNX: export it again ({error})") from error
        self.input = self.session.get_inputs()[0]

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to logits ``(B, classes, X, Y, Z)``; any B, the other sizes as exported.

        Raises:
            ValueError: the image has another size or channel count than the file was exported for.
        """
        if list(image.shape[1:]) != self.input.shape[1:]:
            raise ValueError(
                f"image has channels and size {list(image.shape[1:])}, "
                f"the exported network takes {self.input.shape[1:]}: give the roi_size it was exported with"
            )
        array = image.detach().cpu().float().numpy()
        (logits,) = self.session.run(None, {self.input.name: array})
        return torch.from_numpy(logits).to(image.device)
