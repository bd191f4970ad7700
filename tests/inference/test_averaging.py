"""Averages at test time: equal to the mean that a loop over images or networks gives."""

import pytest
import torch
from digar.inference.averaging import EnsembleInferer, MirroringInferer
from monai.inferers import SimpleInferer
from torch import Tensor, nn

IMAGE = torch.rand(1, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))


class Ramp(nn.Module):
    """Depends on where a voxel lies, so that mirroring shows."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([slope]))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.slope * torch.arange(1.0, 4)[:, None, None] * torch.arange(1.0, 6)


def test_mirroring_averages_all_combinations_of_axes():
    result = MirroringInferer(SimpleInferer(), [0, 2])(IMAGE, Ramp())
    # the ramps 1..3 and 1..5 average to 2 and 3, whatever the image
    torch.testing.assert_close(result, IMAGE * 2 * 3)


def test_without_axes_or_weights_nothing_changes():
    inferer = EnsembleInferer(MirroringInferer(SimpleInferer(), []), Ramp(), [])
    torch.testing.assert_close(inferer(IMAGE, Ramp(2.0)), Ramp(2.0)(IMAGE))


@pytest.mark.parametrize("axes", [[3], [0, 0], [-1]])
def test_other_axes_are_refused(axes):
    with pytest.raises(ValueError, match="mirroring"):
        MirroringInferer(SimpleInferer(), axes)


def test_an_ensemble_is_the_mean_of_its_networks(tmp_path):
    for name, slope in (("a", 2.0), ("b", 6.0)):
        torch.save(Ramp(slope).state_dict(), tmp_path / f"{name}.pt")
    network = Ramp(1.0)
    inferer = EnsembleInferer(SimpleInferer(), network, [tmp_path / "a.pt", tmp_path / "b.pt"])
    torch.testing.assert_close(inferer(IMAGE, network), Ramp(3.0)(IMAGE))
    assert network.slope.item() == 1.0
    assert not inferer(IMAGE, network.requires_grad_(False)).requires_grad


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"other": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt does not fit the network"):
        EnsembleInferer(SimpleInferer(), Ramp(), [tmp_path / "a.pt"])
