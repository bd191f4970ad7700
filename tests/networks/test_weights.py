"""Weights go into a network whole or not at all: published ones, this bundle's, and files that are something else."""

import gzip
import io
import json
import logging
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from digar.networks import Backbone, BackboneSettings, ClassificationNetwork, PretrainingNetwork, SegmentationNetwork
from digar.networks.weights import (
    convert_published,
    count_parameters,
    is_published,
    is_whole,
    load_pretrained,
    load_weights,
    read_checkpoint,
)
from torch import Tensor, nn

HIDDEN, LAYERS, PATCH, GRID = 24, 2, 4, 2
SIZE = {"hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": 2}
Weights = dict[str, Tensor]


def published(separate: bool = False, learned: bool = False, decoder: bool = True, share: float = 0.25) -> Weights:
    """A pretraining state dict under the names of AR-SSL4M; ``separate``: of AR-SSL4M-DEMO."""
    torch.manual_seed(0)
    weights = {
        "embed_tokens.weight": torch.randn(4, HIDDEN),
        "patchifier.proj.weight": torch.randn(HIDDEN, 1, PATCH, PATCH, PATCH),
        "patchifier.proj.bias": torch.randn(HIDDEN),
        "norm.weight": torch.randn(HIDDEN),
        "norm.bias": torch.randn(HIDDEN),
    }
    if decoder:
        weights["decoder_pred.weight"] = torch.randn(PATCH**3, HIDDEN)
        weights["decoder_pred.bias"] = torch.randn(PATCH**3)
    if learned:
        weights["pos_embed_learn"] = torch.randn(1, GRID**3 + 2, HIDDEN)
    for layer in range(LAYERS):
        shapes = {
            "mlp.linear1": (4 * HIDDEN, HIDDEN),
            "mlp.linear2": (HIDDEN, 4 * HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
        }
        for letter in "qkv":
            weights[f"layers.{layer}.self_attn.{letter}_proj.weight"] = torch.randn(HIDDEN, HIDDEN)
        if separate:
            shapes["self_attn.dilated_attention.o_proj"] = (HIDDEN, HIDDEN)
            for letter in "qkv":
                name = f"layers.{layer}.self_attn.dilated_attention.{letter}_proj.weight"
                weights[name] = torch.randn(HIDDEN, HIDDEN)
            weights[f"layers.{layer}.self_attn.residual_gating.dilated_weight"] = torch.tensor(share)
            weights[f"layers.{layer}.self_attn.residual_gating.original_weight"] = torch.tensor(1 - share)
        for stem, shape in shapes.items():
            weights[f"layers.{layer}.{stem}.weight"] = torch.randn(shape)
            weights[f"layers.{layer}.{stem}.bias"] = torch.randn(shape[0])
        for stem in ("input_layernorm", "post_attention_layernorm"):
            weights[f"layers.{layer}.{stem}.weight"] = torch.randn(HIDDEN)
            weights[f"layers.{layer}.{stem}.bias"] = torch.randn(HIDDEN)
    return weights


def pretraining(image_size: int | tuple = PATCH * GRID, **arguments) -> PretrainingNetwork:
    return PretrainingNetwork(image_size, PATCH, size=SIZE, **arguments)


def segmentation(image_size: int | tuple = PATCH * GRID, **arguments) -> SegmentationNetwork:
    return SegmentationNetwork(image_size, PATCH, size=SIZE, feature_size=4, **arguments)


def saved(weights: object, folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    torch.save(weights, path)
    return path


def copied(network: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same_weights(actual: Weights, expected: Weights) -> None:
    assert set(actual) == set(expected)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


# Converting published weights


def test_published_names_become_the_names_of_the_network_and_its_numbers_stay():
    source = published()
    converted, notes = convert_published(source)
    assert set(converted) == set(pretraining().state_dict())
    assert notes == ["rows 0 and 3 of embed_tokens are unused and left out"]

    assert torch.equal(converted["backbone.start_token"][0, 0], source["embed_tokens.weight"][1])
    assert torch.equal(converted["backbone.end_token"][0, 0], source["embed_tokens.weight"][2])
    for position, letter in enumerate("qkv"):
        rows = converted["backbone.blocks.1.attention.qkv.weight"][position * HIDDEN : (position + 1) * HIDDEN]
        assert torch.equal(rows, source[f"layers.1.self_attn.{letter}_proj.weight"])
    renamed = {
        "backbone.patch_embedding.weight": "patchifier.proj.weight",
        "backbone.blocks.0.attention.out.bias": "layers.0.self_attn.o_proj.bias",
        "backbone.blocks.0.mlp.0.weight": "layers.0.mlp.linear1.weight",
        "backbone.blocks.1.mlp.2.weight": "layers.1.mlp.linear2.weight",
        "backbone.blocks.0.attention_norm.weight": "layers.0.input_layernorm.weight",
        "backbone.blocks.0.mlp_norm.weight": "layers.0.post_attention_layernorm.weight",
        "backbone.norm.weight": "norm.weight",
        "head.weight": "decoder_pred.weight",
        "head.bias": "decoder_pred.bias",
    }
    assert [own for own, theirs in renamed.items() if not torch.equal(converted[own], source[theirs])] == []


def test_separate_projections_and_the_gate_share_of_the_published_code_are_converted(tmp_path):
    source = published(separate=True, share=0.25)
    network = pretraining(attention="full+sequence", projections="separate", gate_learnable=False)
    load_weights(network, saved(source, tmp_path))
    assert network.backbone.gate_shares() == pytest.approx([0.25, 0.25])
    attention = network.backbone.blocks[0].attention
    dilated_key = source["layers.0.self_attn.dilated_attention.k_proj.weight"]
    assert torch.equal(attention.dilated_qkv.weight[HIDDEN : 2 * HIDDEN], dilated_key)
    assert torch.equal(attention.dilated_out.bias, source["layers.0.self_attn.dilated_attention.o_proj.bias"])
    assert torch.equal(attention.out.bias, source["layers.0.self_attn.o_proj.bias"])


def test_learned_positions_of_a_published_checkpoint_are_loaded(tmp_path):
    source = published(learned=True)
    network = load_weights(pretraining(position="learned"), saved(source, tmp_path))
    assert torch.equal(network.backbone.position, source["pos_embed_learn"][0])


def test_a_published_checkpoint_without_one_projection_is_refused_with_its_layer():
    source = published()
    del source["layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match=r"q, k or v projection for backbone\.blocks\.1\.attention\.qkv"):
        convert_published(source)


def test_published_names_are_told_from_this_bundles():
    assert is_published(published())
    assert not is_published(pretraining().state_dict())


def renamed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def sharded(weights: Weights) -> dict:
    """As FSDP and DDP name what they wrap, layers included."""
    return {"state_dict": {f"module.model._fsdp_wrapped_module.{n}": t for n, t in weights.items()}}


WRAPPERS: dict[str, Callable[[Weights], dict]] = {
    "bare": renamed(""),
    "model": renamed("model."),
    "vit": renamed("vit."),
    "ddp": renamed("module."),
    "ddp-model": renamed("module.model."),
    "fsdp": renamed("_fsdp_wrapped_module."),
    "fsdp-layers": lambda weights: {
        f"model.{name}".replace("layers.0.", "layers.0._fsdp_wrapped_module."): t for name, t in weights.items()
    },
    "compiled": renamed("_orig_mod."),
    "state-dict": lambda weights: {"state_dict": renamed("model.")(weights), "epoch": 3},
    "state-dict-sharded": sharded,
}


@pytest.mark.parametrize("wrap", [pytest.param(wrap, id=name) for name, wrap in WRAPPERS.items()])
def test_published_weights_load_whatever_wraps_them(wrap, tmp_path):
    source = published()
    network = load_weights(pretraining(), saved(wrap(source), tmp_path))
    assert_same_weights(network.state_dict(), convert_published(source)[0])


def test_a_published_encoder_loads_without_its_end_token(tmp_path, caplog):
    encoder = nn.Module()
    encoder.backbone = Backbone(BackboneSettings(PATCH * GRID, PATCH, size=SIZE))
    with caplog.at_level(logging.INFO):
        load_weights(encoder, saved(renamed("vit.")(published(decoder=False)), tmp_path))
    assert torch.equal(encoder.backbone.norm.weight, published()["norm.weight"])
    assert "rows 0 and 3 of embed_tokens are unused" in caplog.text
    assert "the end token is left out" in caplog.text


def test_published_weights_compute_the_same_under_plain_and_gated_attention_of_no_share(tmp_path):
    path = saved(published(), tmp_path)
    plain = load_weights(pretraining(), path)
    gated = pretraining(attention="full+sequence", gate_init=1e-9)
    gated.load_state_dict(plain.state_dict(), strict=False)
    image, prefix = torch.randn(1, 1, 8, 8, 8), torch.tensor([3])
    with torch.no_grad():
        torch.testing.assert_close(gated(image, prefix), plain(image, prefix))


# Loading all weights of a network


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "network"])
def test_a_checkpoint_of_this_bundle_loads_back(wrapper, tmp_path):
    source = pretraining(attention="full+sequence", gate_init=0.4)
    content = source.state_dict() if wrapper is None else {wrapper: source.state_dict(), "epoch": 1}
    network = pretraining(attention="full+sequence")
    assert load_weights(network, saved(content, tmp_path)) is network
    assert_same_weights(network.state_dict(), source.state_dict())


def without(weights: Weights, name: str) -> Weights:
    return {n: t for n, t in weights.items() if n != name}


MISFITS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "missing": (
        lambda w: without(without(w, "head.bias"), "backbone.blocks.1.mlp.0.bias"),
        r"2 missing: backbone\.blocks\.1\.mlp\.0\.bias, head\.bias",
    ),
    "unexpected": (
        lambda w: {**w, "backbone.blocks.2.mlp.0.bias": torch.zeros(3)},
        r"1 unexpected: backbone\.blocks\.2\.mlp\.0\.bias",
    ),
    "shape": (
        lambda w: {**w, "head.weight": torch.zeros(5, HIDDEN)},
        r"1 of another shape: head\.weight \(5, 24\) instead of \(64, 24\)",
    ),
    "all-three": (
        lambda w: {**without(w, "head.bias"), "extra": torch.zeros(1), "head.weight": torch.zeros(2)},
        r"1 missing: head\.bias; 1 unexpected: extra; 1 of another shape: head\.weight",
    ),
}


@pytest.mark.parametrize(("change", "message"), [pytest.param(*case, id=name) for name, case in MISFITS.items()])
def test_weights_that_do_not_fit_are_named_and_the_network_stays_as_it_was(change, message, tmp_path):
    path = saved(change(pretraining().state_dict()), tmp_path)
    network = pretraining()
    before = copied(network)
    with pytest.raises(ValueError, match=message) as refusal:
        load_weights(network, path)
    assert str(path) in str(refusal.value)
    assert_same_weights(network.state_dict(), before)


def test_published_weights_of_another_width_are_refused(tmp_path):
    network = PretrainingNetwork(8, PATCH, size={**SIZE, "hidden_size": 48})
    with pytest.raises(ValueError, match=r"backbone\.norm\.weight \(24,\) instead of \(48,\)"):
        load_weights(network, saved(published(), tmp_path))


def test_no_file_is_refused_with_its_path(tmp_path):
    path = tmp_path / "none.pt"
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.pt"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        read_checkpoint(tmp_path)


NO_CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello world\n"),
    "csv": lambda path: path.write_text("a,b\n1,2\n"),
    "json": lambda path: path.write_text(json.dumps({"weights": 1})),
    "git-lfs-pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "nifti": lambda path: path.write_bytes(gzip.compress(bytes(400))),
    "torchscript": lambda path: torch.jit.script(nn.Linear(1, 1)).save(path),
    "list": lambda path: torch.save([torch.zeros(2)], path),
    "tensor": lambda path: torch.save(torch.zeros(2), path),
    "no-weights": lambda path: torch.save({}, path),
    "no-weights-in-wrapper": lambda path: torch.save({"state_dict": {}}, path),
    "numbers": lambda path: torch.save({"epoch": 3}, path),
    "numbered-tensors": lambda path: torch.save({0: torch.zeros(2)}, path),
    "optimizer": lambda path: torch.save(torch.optim.AdamW(nn.Linear(1, 1).parameters()).state_dict(), path),
}


@pytest.mark.parametrize("write", [pytest.param(write, id=name) for name, write in NO_CHECKPOINTS.items()])
@pytest.mark.filterwarnings("ignore:.*looks like a TorchScript archive:UserWarning")
def test_a_file_that_is_no_checkpoint_is_refused_with_its_path(write, tmp_path):
    path = tmp_path / "something.pt"
    write(path)
    with pytest.raises(ValueError, match=r"something\.pt (contains|holds|cannot be read)"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old-format"])
def test_a_checkpoint_cut_short_anywhere_is_refused_with_its_path(zipped, tmp_path):
    path = tmp_path / "something.pt"
    torch.save({"weight": torch.zeros(4000), "bias": torch.zeros(4)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    read_checkpoint(path)
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"something\.pt (contains|holds|cannot be read)"):
            read_checkpoint(path)


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def write_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, write_pickle], ids=["torch", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_checkpoint_with_code_is_refused_and_the_code_never_runs(write, tmp_path):
    folder = tmp_path / "made-by-the-checkpoint"
    path = tmp_path / "attack.pt"
    write({"state_dict": {"weight": torch.zeros(2)}, "note": Attack(folder)}, path)
    with pytest.raises(ValueError, match=r"attack\.pt holds more than weights") as refusal:
        read_checkpoint(path)
    assert not folder.exists()
    assert "weights_only=False" not in str(refusal.value)


def test_a_whole_pickled_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds more than weights"):
        read_checkpoint(saved(nn.Linear(1, 1), tmp_path))


# Starting from pretrained weights


# Damaged files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of the weights of a network."""
    path = tmp_path_factory.mktemp("whole") / "weights.pt"
    torch.manual_seed(0)
    torch.save(segmentation().state_dict(), path)
    assert is_whole(path)
    return path.read_bytes()


def test_a_file_cut_short_anywhere_is_not_whole(whole, tmp_path):
    for length in range(0, len(whole), 997):
        (tmp_path / "weights.pt").write_bytes(whole[:length])
        assert not is_whole(tmp_path / "weights.pt"), length


@pytest.mark.parametrize("content", [b"", b"no archive at all", bytes(4096)])
def test_junk_is_not_whole(content, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    assert not is_whole(tmp_path / "weights.pt")


@pytest.mark.parametrize("load", [load_weights, load_pretrained])
def test_weights_with_flipped_bytes_are_refused_that_torch_would_load_silently(load, whole, tmp_path):
    start = whole.index(torch.load(io.BytesIO(whole), weights_only=True)["backbone.blocks.0.mlp.0.weight"].numpy())
    damaged = tmp_path / "weights.pt"
    damaged.write_bytes(
        whole[:start] + bytes(byte ^ 0x11 for byte in whole[start : start + 400]) + whole[start + 400 :]
    )
    assert set(torch.load(damaged, weights_only=True)) == set(segmentation().state_dict())
    network = segmentation()
    before = copied(network)
    with pytest.raises(ValueError, match=r"weights.pt is damaged \(a checksum in it does not fit\): copy it again"):
        load(network, damaged)
    assert_same_weights(network.state_dict(), before)


@pytest.mark.parametrize("load", [load_weights, load_pretrained])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused_by_name(value, load, tmp_path):
    weights = copied(segmentation())
    weights["backbone.blocks.1.mlp.0.bias"][3] = value
    network = segmentation()
    before = copied(network)
    with pytest.raises(
        ValueError, match=r"holds NaN or infinite weights \(\S*blocks.1.mlp.0.bias\): take another file"
    ):
        load(network, saved(weights, tmp_path))
    assert_same_weights(network.state_dict(), before)


def test_the_backbone_starts_from_pretraining_and_the_head_anew(tmp_path, caplog):
    source = pretraining()
    network = segmentation()
    before = copied(network)
    with caplog.at_level(logging.INFO):
        report = load_pretrained(network, saved(source.state_dict(), tmp_path))
    after = network.state_dict()
    given = source.state_dict()
    assert [n for n in after if n.startswith("backbone.") and not torch.equal(after[n], given[n])] == []
    assert [n for n in after if n.startswith("head.") and not torch.equal(after[n], before[n])] == []
    assert "backbone.end_token" in given
    assert "backbone.end_token" not in after
    count = sum(name.startswith("backbone.") for name in after)
    assert report.startswith(f"{count} backbone weights start from {tmp_path / 'checkpoint.pt'}; ")
    assert "the end token is left out" in report
    assert "2 weights of the checkpoint's head are left out, this network's head starts anew" in report
    assert "gate" not in report
    assert report in caplog.text


def test_without_a_checkpoint_the_network_stays_as_it_was_built():
    network = segmentation()
    before = copied(network)
    assert load_pretrained(network, None) == "from scratch"
    assert_same_weights(network.state_dict(), before)


def test_a_published_checkpoint_starts_a_classification_network(tmp_path):
    source = published()
    network = ClassificationNetwork(8, PATCH, attention="full+sequence", size=SIZE)
    report = load_pretrained(network, saved(sharded(source), tmp_path))
    assert torch.equal(network.backbone.start_token[0, 0], source["embed_tokens.weight"][1])
    assert torch.equal(network.backbone.blocks[1].mlp[2].weight, source["layers.1.mlp.linear2.weight"])
    assert "rows 0 and 3 of embed_tokens are unused" in report
    assert "2 gates start at the network's own gate_init" in report


@pytest.mark.parametrize(("inherit_gate", "share"), [(False, 0.05), (True, 0.4)], ids=["own-gate", "inherited-gate"])
@pytest.mark.parametrize("gate_learnable", [True, False], ids=["learnable", "fixed"])
def test_gates_keep_their_own_start_unless_inherited(inherit_gate, share, gate_learnable, tmp_path):
    source = pretraining(attention="full+sequence", gate_init=0.4)
    network = segmentation(attention="full+sequence", gate_init=0.05, gate_learnable=gate_learnable)
    report = load_pretrained(network, saved(source.state_dict(), tmp_path), inherit_gate)
    assert network.backbone.gate_shares() == pytest.approx([share, share])
    assert ("2 gates start at the network's own gate_init" in report) is not inherit_gate


@pytest.mark.parametrize("inherit_gate", [False, True], ids=["own-gate", "inherit-gate"])
def test_a_plain_checkpoint_starts_a_gated_network_at_its_own_gates(inherit_gate, tmp_path):
    source = pretraining()
    network = segmentation(attention="local+grid", gate_init=0.05)
    report = load_pretrained(network, saved(source.state_dict(), tmp_path), inherit_gate)
    assert network.backbone.gate_shares() == pytest.approx([0.05, 0.05])
    assert torch.equal(network.backbone.blocks[0].attention.qkv.weight, source.backbone.blocks[0].attention.qkv.weight)
    assert "2 gates start at the network's own gate_init" in report


def test_learned_positions_of_the_same_grid_are_taken_as_they_are(tmp_path, caplog):
    source = pretraining(position="learned")
    network = segmentation(position="learned")
    load_pretrained(network, saved(source.state_dict(), tmp_path))
    assert torch.equal(network.backbone.position, source.backbone.position[:-1])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "grid", [(2, 2, 2), (4, 2, 1), (3, 3, 1), (2, 2, 7)], ids=["8-patches", "8-in-a-plane", "9-patches", "28-patches"]
)
def test_learned_positions_of_a_fine_tuned_network_of_the_same_grid_are_taken_as_they_are(grid, tmp_path, caplog):
    image_size = tuple(PATCH * n for n in grid)
    source = segmentation(image_size, position="learned")
    network = segmentation(image_size, position="learned")
    load_pretrained(network, saved(source.state_dict(), tmp_path))
    assert torch.equal(network.backbone.position, source.backbone.position)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_learned_positions_of_another_grid_are_interpolated_with_a_warning(tmp_path, caplog):
    source = pretraining(position="learned")
    rows = torch.zeros(10, HIDDEN)
    rows[0], rows[9] = 7.0, 9.0  # start and end
    for patch in range(8):
        rows[1 + patch, 0] = patch // 4  # its coordinate along x, of 0 and 1
        rows[1 + patch, 1] = patch % 2  # along z
        rows[1 + patch, 2] = 5.0
    source.backbone.position.data.copy_(rows)
    network = segmentation((4 * PATCH, 2 * PATCH, 2 * PATCH), position="learned")
    load_pretrained(network, saved(source.state_dict(), tmp_path))

    position = network.backbone.position.detach()
    assert position.shape == (17, HIDDEN)
    assert torch.equal(position[0], rows[0])
    patches = position[1:].reshape(4, 2, 2, HIDDEN)
    halved_steps = torch.tensor([0.0, 0.25, 0.75, 1.0])  # centres of four cells seen from the centres of two
    torch.testing.assert_close(patches[..., 0], halved_steps[:, None, None].expand(4, 2, 2))
    torch.testing.assert_close(patches[..., 1], torch.tensor([0.0, 1.0]).expand(4, 2, 2))
    torch.testing.assert_close(patches[..., 2], torch.full((4, 2, 2), 5.0))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "checkpoint.pt: learned positions of a 2^3 grid are interpolated to [4, 2, 2]" in warning


def test_learned_positions_of_an_unknown_grid_are_refused(tmp_path):
    source = pretraining((2 * PATCH, 3 * PATCH, 2 * PATCH), position="learned")
    with pytest.raises(ValueError, match=r"14 learned positions belong neither to .* \[2, 2, 2\] nor to a cubic"):
        load_pretrained(segmentation(position="learned"), saved(source.state_dict(), tmp_path))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        pytest.param({"size": {**SIZE, "num_layers": 3}}, {}, r"unexpected: blocks\.2\.", id="deeper"),
        pytest.param({"size": {**SIZE, "num_layers": 1}}, {}, r"missing: blocks\.1\.", id="shallower"),
        pytest.param({"size": {**SIZE, "hidden_size": 48}}, {}, r"\(48,\) instead of \(24,\)", id="wider"),
        pytest.param({"in_channels": 2}, {}, r"patch_embedding\.weight \(24, 2, 4, 4, 4\)", id="channels"),
        pytest.param({"position": "learned"}, {}, "unexpected: position", id="learned-into-fixed"),
        pytest.param({}, {"position": "learned"}, "missing: position", id="fixed-into-learned"),
        pytest.param(
            {"attention": "full+sequence", "projections": "separate"},
            {"attention": "full+sequence"},
            r"unexpected: blocks\.0\.attention\.dilated_qkv\.weight",
            id="projections",
        ),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_and_the_network_stays_as_it_was(source, target, message, tmp_path):
    path = saved(PretrainingNetwork(8, PATCH, **{"size": SIZE, **source}).state_dict(), tmp_path)
    network = segmentation(**target)
    before = copied(network)
    with pytest.raises(ValueError, match=message):
        load_pretrained(network, path)
    assert_same_weights(network.state_dict(), before)


def test_a_checkpoint_without_a_backbone_is_refused_with_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match="contains no backbone: its weights begin with weight, bias"):
        load_pretrained(segmentation(), saved(nn.Linear(1, 1).state_dict(), tmp_path))


def test_only_trainable_numbers_are_counted():
    layer = nn.Linear(3, 5)
    assert count_parameters(layer) == 20
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 15
