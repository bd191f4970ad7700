"""The average of networks: equal to the mean that a loop over them gives."""

import pytest
import torch
from digar.inference.averaging import Ensemble
from torch import Tensor, nn

IMAGE = torch.rand(1, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))


class Ramp(nn.Module):
    """Depends on where a voxel lies, so that an order shows."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([slope]))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.slope * torch.arange(1.0, 4)[:, None, None] * torch.arange(1.0, 6)


def test_alone_a_network_gives_what_it_gives():
    network = Ramp(2.0)
    assert torch.equal(Ensemble(network)(IMAGE), network(IMAGE))


def test_an_ensemble_is_the_mean_of_its_networks_and_leaves_the_first_as_it_is(tmp_path):
    for name, slope in (("a", 2.0), ("b", 6.0)):
        torch.save(Ramp(slope).state_dict(), tmp_path / f"{name}.pt")
    network = Ramp(1.0)
    ensemble = Ensemble(network, [tmp_path / "a.pt", tmp_path / "b.pt"])
    torch.testing.assert_close(ensemble(IMAGE), Ramp(3.0)(IMAGE))
    assert network.slope.item() == 1.0


def test_the_first_network_may_get_its_weights_afterwards(tmp_path):
    torch.save(Ramp(2.0).state_dict(), tmp_path / "a.pt")
    network = Ramp(1.0)
    ensemble = Ensemble(network, [tmp_path / "a.pt"])
    network.load_state_dict(Ramp(4.0).state_dict())
    torch.testing.assert_close(ensemble(IMAGE), Ramp(3.0)(IMAGE))


def test_half_precision_of_the_networks_is_averaged_in_single(tmp_path):
    torch.save(Ramp(1.0).state_dict(), tmp_path / "a.pt")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Ensemble(Ramp(1.0), [tmp_path / "a.pt"])(IMAGE).dtype == torch.float32


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"other": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt does not fit the network"):
        Ensemble(Ramp(), [tmp_path / "a.pt"])
