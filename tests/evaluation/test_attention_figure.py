"""The weights shown are those that the layer computes with."""

import pytest
import torch
from digar.evaluation.attention_figure import attention_weights
from digar.networks import Backbone, BackboneSettings
from digar.networks.attention import MODES

SIZE = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}


@pytest.mark.parametrize("mode", MODES)
def test_the_weights_times_the_values_are_what_each_branch_gives(mode: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneSettings(16, 4, size={**SIZE, "num_heads": 1}, attention=mode)).eval()
    image = torch.rand(2, 1, 16, 16, 16)
    weights = attention_weights(backbone, image, 0)
    taken = []
    attention = backbone.blocks[0].attention
    attention.register_forward_hook(lambda module, arguments, output: taken.extend([arguments[0], output]))
    backbone(image)
    tokens, output = taken
    values = attention.qkv(tokens).chunk(3, dim=-1)[2]
    mixed = weights[0] @ values
    if attention.gated:
        mixed = torch.lerp(mixed, weights[1] @ values, attention.gate.share())
    torch.testing.assert_close(attention.out(mixed), output)


def test_a_local_window_and_its_sub_grid_meet_in_the_patch_itself() -> None:
    backbone = Backbone(BackboneSettings(16, 4, size=SIZE, attention="local+grid")).eval()
    local, grid = attention_weights(backbone, torch.rand(1, 1, 16, 16, 16), 1)[:, 0, 1:, 1:]
    seen_local, seen_grid = (set(torch.nonzero(weights[21]).flatten().tolist()) for weights in (local, grid))
    assert len(seen_local) == len(seen_grid) == 8
    assert seen_local & seen_grid == {21}
