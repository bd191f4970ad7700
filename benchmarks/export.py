"""The exported networks beside PyTorch: one forward pass of the shipped network, timed in turns, and how equal it is.

python -m benchmarks.export
python -m benchmarks.export --batches 1 4 --rounds 10 --output export.json
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from digar.networks.exported import load_exported
from digar.networks.precision import best_precision
from digar.networks.weights import load_weights
from monai.bundle import ConfigParser, ckpt_export, onnx_export
from torch import Tensor, nn

from benchmarks.measure import default_device, machine_facts, print_machine, print_table, seconds_in_turns, write_json

ROOT = Path(__file__).parents[1]
FILES = {
    "ckpt_file": str(ROOT / "models/model.pt"),
    "meta_file": str(ROOT / "configs/metadata.json"),
    "config_file": str(ROOT / "configs/inference.json"),
}
REFERENCE = "PyTorch, float32"


def load_networks(folder: Path, device: str) -> dict[str, nn.Module]:
    """The shipped network, and its exports, which are written to the folder."""
    ckpt_export(args_file=str(ROOT / "configs/export_torchscript.json"), filepath=str(folder / "model.ts"), **FILES)
    onnx_export(args_file=str(ROOT / "configs/export_onnx.json"), filepath=str(folder / "model.onnx"), **FILES)
    parser = ConfigParser(ConfigParser.load_config_file(FILES["config_file"]))
    network = load_weights(parser.get_parsed_content("network_def"), FILES["ckpt_file"])
    networks = {
        "PyTorch": network,
        "TorchScript": load_exported(folder / "model.ts"),
        "ONNX Runtime": load_exported(folder / "model.onnx"),
        "OpenVINO": load_exported(folder / "model.onnx", "openvino"),
    }
    return {name: module.to(device).eval() for name, module in networks.items()}


def build_calls(networks: dict[str, nn.Module], image: Tensor) -> dict[str, Callable[[], Tensor]]:
    """A forward pass of each network in each precision it has: ONNX files float32 alone, bfloat16 where it is fast."""

    def call(network: nn.Module, dtype: torch.dtype) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            enabled = dtype != torch.float32
            with torch.inference_mode(), torch.autocast(image.device.type, torch.bfloat16, enabled=enabled):
                return network(image).float()

        return forward

    calls = {f"{name}, float32": call(network, torch.float32) for name, network in networks.items()}
    if best_precision(image.device) != "bfloat16":
        return calls
    half = {f"{name}, bf16": call(networks[name], torch.bfloat16) for name in ("PyTorch", "TorchScript")}
    return calls | half


def measure(networks: dict[str, nn.Module], batch: int, rounds: int, device: str) -> list[dict]:
    """A row per network and precision: seconds, ratio to PyTorch in float32, largest difference of the logits to it."""
    backbone = networks["PyTorch"].backbone
    torch.manual_seed(0)
    image = torch.rand(batch, backbone.in_channels, *backbone.image_size, device=device)
    calls = build_calls(networks, image)
    turns = seconds_in_turns(calls, rounds, device, warm_up=2)  # TorchScript compiles in its first two calls
    seconds = {name: statistics.median(values) for name, values in turns.items()}
    expected = calls[REFERENCE]()
    return [
        {
            "network": name,
            "batch": batch,
            "seconds": seconds[name],
            "to_pytorch": seconds[name] / seconds[REFERENCE],
            "largest_difference": (call() - expected).abs().max().item(),
        }
        for name, call in calls.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Exported networks beside PyTorch.")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; in each, every network runs once")
    parser.add_argument("--threads", type=int, help="on a CPU (default: PyTorch's own choice)")
    parser.add_argument("--device", default=default_device(), choices=["cpu", "cuda"])
    parser.add_argument("--output", help="JSON file to write")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    machine = machine_facts(arguments.device)
    print_machine(machine)
    with tempfile.TemporaryDirectory() as folder:
        networks = load_networks(Path(folder), arguments.device)
        rows = [row for n in arguments.batches for row in measure(networks, n, arguments.rounds, arguments.device)]
    print_table(
        "One forward pass of the shipped network",
        ["network", "batch", "seconds", "to PyTorch float32", "largest difference"],
        [list(row.values()) for row in rows],
    )
    write_json(arguments.output, {"benchmark": "export", "machine": machine, "rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
