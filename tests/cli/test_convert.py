"""The conversion command: published weights come out under this bundle's names, and it says what it did."""

from pathlib import Path

import pytest
import torch
from click.testing import Result
from digar.cli.app import app
from digar.networks import PretrainingNetwork
from digar.networks.weights import load_weights
from typer.testing import CliRunner

from tests.networks.test_weights import GRID, PATCH, SIZE, published, saved


def convert(checkpoint: Path, output: Path) -> Result:
    return CliRunner().invoke(app, ["convert", str(checkpoint), str(output)])


def test_converted_weights_fill_the_pretraining_network(tmp_path):
    checkpoint = saved({"state_dict": {f"module.model.{k}": v for k, v in published().items()}}, tmp_path)
    assert convert(checkpoint, tmp_path / "out" / "converted.pt").exit_code == 0
    network = PretrainingNetwork(PATCH * GRID, PATCH, size=SIZE)
    load_weights(network, tmp_path / "out" / "converted.pt")
    expected = published()["embed_tokens.weight"][2]
    assert torch.equal(network.backbone.end_token.flatten(), expected)


def test_it_says_what_it_did_and_which_network_fits(tmp_path):
    checkpoint = saved(published(separate=True, learned=True), tmp_path)
    printed = convert(checkpoint, tmp_path / "converted.pt").output
    assert "rows 0 and 3 of embed_tokens are unused" in printed
    assert "q, k and v of 4 attention layers joined" in printed
    assert f"patch_size {PATCH}; network_size hidden_size 24, num_layers 2, num_heads not stored" in printed
    assert "projections separate; position learned, 10 rows" in printed


@pytest.mark.parametrize("content", [{"head.weight": torch.zeros(1)}, {"self_attn.q_proj.weight": torch.zeros(1)}])
def test_other_weights_are_refused_and_nothing_is_written(content, tmp_path):
    checkpoint = saved(content, tmp_path)
    result = convert(checkpoint, tmp_path / "converted.pt")
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)
    assert not (tmp_path / "converted.pt").exists()


def test_an_existing_output_is_kept(tmp_path):
    checkpoint = saved(published(), tmp_path)
    (tmp_path / "converted.pt").write_text("mine")
    result = convert(checkpoint, tmp_path / "converted.pt")
    assert result.exit_code == 1
    assert "exists" in str(result.exception)
    assert (tmp_path / "converted.pt").read_text() == "mine"
