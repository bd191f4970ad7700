"""The conversion command: published weights come out under this bundle's names, and it says what it did."""

import pytest
import torch
from digar.cli.convert import main
from digar.networks import PretrainingNetwork
from digar.networks.weights import load_weights

from tests.networks.test_weights import GRID, PATCH, SIZE, published, saved


def test_converted_weights_fill_the_pretraining_network(tmp_path):
    checkpoint = saved({"state_dict": {f"module.model.{k}": v for k, v in published().items()}}, tmp_path)
    assert main([str(checkpoint), str(tmp_path / "out" / "converted.pt")]) == 0
    network = PretrainingNetwork(PATCH * GRID, PATCH, size=SIZE)
    load_weights(network, tmp_path / "out" / "converted.pt")
    expected = published()["embed_tokens.weight"][2]
    assert torch.equal(network.backbone.end_token.flatten(), expected)


def test_it_says_what_it_did_and_which_network_fits(tmp_path, capsys):
    checkpoint = saved(published(separate=True, learned=True), tmp_path)
    main([str(checkpoint), str(tmp_path / "converted.pt")])
    printed = capsys.readouterr().out
    assert "rows 0 and 3 of embed_tokens are unused" in printed
    assert "q, k and v of 4 attention layers joined" in printed
    assert f"patch_size {PATCH}; network_size hidden_size 24, num_layers 2, num_heads not stored" in printed
    assert "projections separate; position learned, 10 rows" in printed


@pytest.mark.parametrize("content", [{"head.weight": torch.zeros(1)}, {"self_attn.q_proj.weight": torch.zeros(1)}])
def test_other_weights_are_refused_and_nothing_is_written(content, tmp_path, capsys):
    checkpoint = saved(content, tmp_path)
    assert main([str(checkpoint), str(tmp_path / "converted.pt")]) == 1
    assert "ERROR ValueError" in capsys.readouterr().err
    assert not (tmp_path / "converted.pt").exists()


def test_an_existing_output_is_kept(tmp_path, capsys):
    checkpoint = saved(published(), tmp_path)
    (tmp_path / "converted.pt").write_text("mine")
    assert main([str(checkpoint), str(tmp_path / "converted.pt")]) == 1
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "converted.pt").read_text() == "mine"
