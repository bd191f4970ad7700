"""Slabs of sliding windows add up to MONAI's sliding windows, and a full GPU slows a run but does not end it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from digar.inference.windows import WindowInferer
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

ROI = (8, 12, 10)


class Standin(nn.Module):
    """Three classes that depend on the voxel, its neighbours in a direction, and its place in the window."""

    def forward(self, windows: Tensor) -> Tensor:
        x = windows[:, :1]
        place = torch.linspace(-1, 1, windows.shape[2]).view(1, 1, -1, 1, 1).expand_as(x)
        return torch.cat([x, x.roll(1, dims=3) - x, x * place], dim=1)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(20, 30, 25), (8, 12, 10), (5, 7, 31), (33, 4, 4), (9, 12, 10)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_slabs_add_up_to_monais_sliding_windows(shape, overlap):
    image = random(2, 1, *shape)
    expected = SlidingWindowInferer(ROI, sw_batch_size=3, overlap=overlap, mode="gaussian")(image, Standin())
    found = WindowInferer(ROI, window_batch=3, overlap=overlap)(image, Standin())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_slabs_come_in_order_along_the_longest_axis_and_leave_nothing_out():
    slabs = list(WindowInferer(ROI, overlap=0.5).slabs(random(1, 9, 40, 11), Standin(), torch.device("cpu")))
    assert {slab.axis for slab in slabs} == {1}
    stops = [slab.start + slab.logits.shape[2] for slab in slabs]
    assert [slab.start for slab in slabs] == [0, *stops[:-1]]
    assert stops[-1] == 40
    assert max(slab.logits.shape[2] for slab in slabs) <= 12


def test_windows_without_foreground_are_background_unseen():
    image = torch.zeros(1, 1, 60, 24, 20)
    image[:, :, 30:40, 6:14, 6:12] = 1
    seen = []

    def network(windows: Tensor) -> Tensor:
        seen.extend(windows)
        return torch.cat([torch.zeros_like(windows), torch.ones_like(windows)], dim=1)

    mask = WindowInferer(ROI, foreground=0.05)(image, network).argmax(dim=1)
    assert all(window.max() > 0 for window in seen)
    everywhere = sum(len(windows) for _, windows in WindowInferer(ROI)._layers(image[0], 0))
    assert 0 < len(seen) < 0.6 * everywhere
    assert mask[image[:, 0] > 0].all()
    assert not mask[:, :16].any()
    assert not mask[:, 56:].any()


def test_an_image_without_any_foreground_is_looked_at_everywhere():
    logits = WindowInferer(ROI, foreground=0.05)(torch.zeros(1, 1, 20, 24, 20), Standin())
    assert logits.shape == (1, 3, 20, 24, 20)
    assert not logits.any()


def test_leaving_background_out_changes_nothing_where_windows_stand_alike():
    image = torch.zeros(1, 1, 64, 12, 10)
    image[:, :, 16:40] = random(1, 1, 24, 12, 10).abs() + 1

    def network(windows: Tensor) -> Tensor:
        return torch.cat([0.5 - windows, windows - 0.5], dim=1)

    plain = WindowInferer(ROI, overlap=0.0)(image, network).argmax(dim=1)
    sparing = WindowInferer(ROI, overlap=0.0, foreground=0.05)(image, network).argmax(dim=1)
    assert torch.equal(plain, sparing)


def test_mirroring_averages_over_all_combinations_of_axes():
    image = random(1, 1, *ROI)
    found = WindowInferer(ROI, mirroring=[0, 2])(image, Standin())
    views = [Standin()(image.flip(dims)).flip(dims) if dims else Standin()(image) for dims in ([], [2], [4], [2, 4])]
    torch.testing.assert_close(found, torch.stack(views).mean(0))


@pytest.mark.parametrize(
    ("option", "value"),
    [("overlap", 1.0), ("precision", "float16"), ("mirroring", [3]), ("mirroring", [0, 0]), ("mirroring", [-1])],
)
def test_an_option_that_is_none_is_refused(option, value):
    with pytest.raises(ValueError, match=option):
        WindowInferer(ROI, **{option: value})


class SmallDevice:
    """A network on a device that holds few windows at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.batches: list[int] = []

    def __call__(self, windows: Tensor) -> Tensor:
        self.batches.append(len(windows))
        if len(windows) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        return Standin()(windows)


def test_where_memory_runs_out_fewer_windows_go_at_once_and_the_result_is_the_same():
    image, small = random(1, 1, 20, 30, 25), SmallDevice(limit=2)
    inferer = WindowInferer(ROI, window_batch=8)
    inferer.threads = 1
    torch.testing.assert_close(inferer(image, small), WindowInferer(ROI)(image, Standin()))
    assert small.batches[:3] == [8, 4, 2]
    assert set(small.batches[2:]) <= {1, 2}
    assert inferer.window_batch == 2


def test_windows_computed_at_the_same_time_give_the_same_bit_by_bit():
    image, several = random(1, 1, 20, 30, 25), WindowInferer(ROI, overlap=0.5)
    alone = WindowInferer(ROI, overlap=0.5)
    several.threads, alone.threads = 3, 1
    several.pool = ThreadPoolExecutor(3)
    assert torch.equal(several(image, Standin()), alone(image, Standin()))


def test_where_not_even_one_window_fits_memory_is_named():
    with pytest.raises(torch.OutOfMemoryError):
        WindowInferer(ROI)(random(1, 1, 20, 30, 25), SmallDevice(limit=0))


def test_sums_move_to_the_cpu_where_one_window_at_once_is_too_much_beside_them():
    inferer = WindowInferer(ROI, window_batch=1)

    class Sums:
        device = torch.device("cuda")

        def to_cpu(self) -> None:
            self.device = torch.device("cpu")

    sums = Sums()
    assert inferer._take_less(sums)
    assert sums.device.type == "cpu"
    assert not inferer._take_less(sums)
