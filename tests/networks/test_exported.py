"""Exported files compute what the PyTorch network does, and stand in its place."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from digar.networks.exported import load_exported
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, onnx_export
from monai.data import load_net_with_metadata
from torch import nn

from tests.conftest import ROOT, SMALL

CONFIGS = ROOT / "configs"
NETWORK = {
    key: SMALL[key] for key in SMALL.keys() & ConfigParser.load_config_file(str(CONFIGS / "inference.json")).keys()
}
FILES = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / "inference.json")}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    parser = ConfigParser({**ConfigParser.load_config_file(FILES["config_file"]), **NETWORK})
    torch.manual_seed(0)
    return parser.get_parsed_content("network_def").eval()


@pytest.fixture(scope="module")
def folder(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.pt``, and ``model.ts`` and ``model.onnx`` by the documented commands' argument files."""
    folder = tmp_path_factory.mktemp("exported")
    weights = str(folder / "model.pt")
    torch.save(network.state_dict(), weights)
    options = {"ckpt_file": weights, **FILES, **NETWORK}
    ckpt_export(args_file=str(CONFIGS / "export_torchscript.json"), filepath=str(folder / "model.ts"), **options)
    onnx_export(
        args_file=str(CONFIGS / "export_onnx.json"), filepath=str(folder / "model.onnx"),
        input_shape=[1, 1, *NETWORK["roi_size"]], **options,
    )  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.ts", "model.onnx"])
def test_an_exported_file_computes_what_the_network_does_for_any_batch(name: str, network, folder: Path) -> None:
    exported = load_exported(folder / name)
    for batch in (1, 2, 3):
        image = torch.rand(batch, 1, *NETWORK["roi_size"])
        with torch.inference_mode():
            torch.testing.assert_close(exported(image), network(image), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_torchscript_file_holds_metadata_and_config(folder: Path) -> None:
    _, metadata, files = load_net_with_metadata(folder / "model.ts", more_extra_files=["inference.json"])
    own = json.loads(Path(FILES["meta_file"]).read_text())
    assert {key: metadata[key] for key in own} == own
    assert json.loads(files["inference.json"]) == ConfigParser.load_config_file(FILES["config_file"])


@pytest.mark.slow
def test_the_onnx_file_names_its_tensors_and_refuses_another_size(folder: Path) -> None:
    exported = load_exported(folder / "model.onnx")
    assert [tensor.name for tensor in exported.model.get_inputs()] == ["image"]
    assert [tensor.name for tensor in exported.model.get_outputs()] == ["pred"]
    with pytest.raises(ValueError, match=r"size \[1, 24, 16, 16\], .* takes \[1, 16, 16, 16\]: give the roi_size"):
        exported(torch.rand(1, 1, 24, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.ts", "model.onnx"])
def test_the_folder_inference_gives_the_same_masks_on_an_exported_file(
    name: str, folder: Path, task: Path, small_overlay: str, tmp_path: Path
) -> None:
    masks = {}
    for weights, overlay in (("model.pt", []), (name, [str(CONFIGS / "exported.json")])):
        workflow = ConfigWorkflow(
            config_file=[str(CONFIGS / "inference.json"), small_overlay, *overlay],
            meta_file=FILES["meta_file"], workflow_type="inference", bundle_root=str(ROOT), precision="float32",
            dataset_dir=str(task / "imagesTs"), output_dir=str(tmp_path / weights), weights_file=str(folder / weights),
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        files = sorted((tmp_path / weights).glob("*_mask.nii.gz"))
        facts = json.loads((tmp_path / weights / "report.json").read_text())["run"]
        assert facts["backend"] == ("ONNX Runtime" if weights.endswith(".onnx") else "PyTorch")
        masks[weights] = [np.asanyarray(nib.load(file).dataobj) for file in files]
    for expected, mask in zip(masks["model.pt"], masks[name], strict=True):
        assert (mask == expected).mean() > 0.9999


@pytest.mark.parametrize("name", ["model.ts", "model.onnx"])
def test_a_damaged_export_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not an exported network")
    with pytest.raises(ValueError, match=f"{name} cannot be read as .*: export it again"):
        load_exported(tmp_path / name)


def test_a_torchscript_file_with_flipped_bytes_or_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    network = torch.nn.Linear(8, 8)
    torch.jit.script(network).save(str(tmp_path / "whole.TS"))
    assert torch.equal(load_exported(tmp_path / "whole.TS").weight, network.weight)
    content = (tmp_path / "whole.TS").read_bytes()
    (tmp_path / "model.ts").write_bytes(content.replace(network.weight.detach().numpy().tobytes(), bytes(256)))
    with pytest.raises(ValueError, match=r"model.ts is damaged \(a checksum"):
        load_exported(tmp_path / "model.ts")
    network.bias.data[0] = torch.nan
    torch.jit.script(network).save(str(tmp_path / "model.ts"))
    with pytest.raises(ValueError, match=r"model.ts holds NaN or infinite weights \(bias\)"):
        load_exported(tmp_path / "model.ts")


def test_a_missing_export_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no exported network at .*model.ts"):
        load_exported(tmp_path / "model.ts")


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.pt is not an exported network: .* \.ts .* \.onnx"):
        load_exported(tmp_path / "model.pt")
