"""What is checked of a file before the network sees it, and the transform that reads and checks."""

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.transforms import LoadImaged
from monai.utils.enums import MetaKeys

from digar.volumes.grids import working_shape
from digar.volumes.memory import GIB, available_memory, needed_memory
from digar.volumes.reading import FORM_TOLERANCE_MM, Header, VolumeError, read_header, read_volume

WARNINGS = "digar_warnings"  # where an image's metadata keep what was odd about it
FOUR_D = ("refuse", "each")
PERCENTILES = (1, 50, 99.9)  # of the intensities, compared with those of the training images
PERCENTILE_VOXELS = 1_000_000  # percentiles of larger volumes are taken from a regular sample of about this many voxels
RANGE_SLACK = 0.1  # beyond the training range by this share of it is not warned of


class TooLargeError(VolumeError):
    """The volume needs more memory than there is at the moment."""


class CheckedReader(ImageReader):
    """Reads a volume, or several files as its channels, and refuses what the network cannot make sense of.

    Args:
        in_channels: that the network takes.
        spacing, roi_size, num_classes: of the network; they tell how much memory a volume will need.
        volumes_4d: what to do with a fourth axis where the network takes one channel: ``refuse`` it, or take ``each``
            volume by itself.
        nonfinite_share: NaN and infinite voxels are replaced by the smallest finite one up to this share of a channel.
        training_range: what the network has seen; None warns of nothing.
        memory_share: of the memory there is, that a volume may need.

    Raises:
        VolumeError: from :meth:`read`, with the file and the reason.
        ValueError: ``volumes_4d`` is none of the two.
    """

    def __init__(
        self,
        in_channels: int,
        spacing: Sequence[float],
        roi_size: Sequence[int],
        num_classes: int,
        volumes_4d: str = "refuse",
        nonfinite_share: float = 0.01,
        training_range: Mapping[str, Any] | None = None,
        memory_share: float = 1.0,
    ) -> None:
        if volumes_4d not in FOUR_D:
            raise ValueError(f"volumes_4d {volumes_4d!r} must be one of {', '.join(FOUR_D)}")
        self.in_channels = in_channels
        self.spacing = spacing
        self.roi_size = roi_size
        self.num_classes = num_classes
        self.each = volumes_4d == "each" and in_channels == 1
        self.nonfinite_share = nonfinite_share
        self.training_range = training_range
        self.memory_share = memory_share

    def verify_suffix(self, filename: Sequence[str | Path] | str | Path) -> bool:
        """Every file is tried: what is no volume is refused when it is read."""
        return True

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> tuple[np.ndarray, dict]:
        """The volume ``(C, X, Y, Z)`` and its metadata."""
        paths = [data] if isinstance(data, str | Path) else list(data)
        headers = [read_header(path) for path in paths]
        _refuse_other_grids(headers)
        header = headers[0]
        channels = sum(h.channels for h in headers)
        self._refuse_channels(header, channels)
        warnings = list(dict.fromkeys(w for h in headers for w in h.warnings))
        warnings += grid_warnings(header, self.training_range)
        self._refuse_size(header, channels)
        volumes = [read_volume(path, h).numpy() for path, h in zip(paths, headers, strict=True)]
        volume = np.concatenate(volumes) if len(volumes) > 1 else volumes[0]
        warnings += self._mend(header.path, volume)
        warnings += intensity_warnings(volume, self.training_range)
        meta = {
            MetaKeys.AFFINE: header.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: header.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(header.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
            WARNINGS: warnings,
        }
        return volume, meta

    def get_data(self, img: tuple[np.ndarray, dict]) -> tuple[np.ndarray, dict]:
        """What :meth:`read` gave."""
        return img

    def _refuse_channels(self, header: Header, channels: int) -> None:
        if channels == self.in_channels or self.each:
            return
        if self.in_channels == 1:
            raise VolumeError(
                header.path,
                f"holds {channels} volumes (a fourth axis), the network takes one: split it, or pass --volumes_4d each",
            )
        raise VolumeError(header.path, f"has {channels} channels, the network takes {self.in_channels}")

    def _refuse_size(self, header: Header, channels: int) -> None:
        working = working_shape(header.shape, header.affine, self.spacing)
        if max(working) > 100_000:
            raise VolumeError(header.path, f"would be {working} voxels at the network's spacing: correct its spacing")
        need = needed_memory(
            header.shape, channels, header.dtype.itemsize, working, self.num_classes, self.roi_size
        )  # fmt: skip
        there_is = available_memory()
        if need > self.memory_share * there_is:
            raise TooLargeError(
                header.path,
                f"its {'x'.join(map(str, header.shape))} voxels need about {need / GIB:.1f} GiB of memory, there are "
                f"{there_is / GIB:.1f} GiB: use a machine with more, or crop it",
            )

    def _mend(self, path: str, volume: np.ndarray) -> list[str]:
        """Replace voxels that are no numbers, in place; refuse what holds nothing.

        Returns:
            What was replaced.
        """
        replaced = 0
        for channel in volume:
            low, high = channel.min(), channel.max()  # NaN where any is
            if not (math.isfinite(low) and math.isfinite(high)):
                finite = np.isfinite(channel)
                count = channel.size - int(finite.sum())
                if count > self.nonfinite_share * channel.size:
                    raise VolumeError(
                        path,
                        f"{100 * count / channel.size:.1f} % of its voxels are NaN or infinite, "
                        f"{100 * self.nonfinite_share:g} % are borne: repair it, or raise --nonfinite_share",
                    )
                low = channel[finite].min()
                channel[~finite] = low
                high = channel.max()
                replaced += count
            if low == high:
                raise VolumeError(path, f"is empty: every voxel is {low:g}")
        return [f"{replaced} NaN or infinite voxels were replaced by the smallest value"] if replaced else []


def _refuse_other_grids(headers: Sequence[Header]) -> None:
    first = headers[0]
    for other in headers[1:]:
        if other.shape != first.shape:
            raise VolumeError(other.path, f"has the shape {other.shape}, its first channel {first.path} {first.shape}")
        corners = np.array([[0, 0, 0, 1], [*first.shape, 1]])
        apart = float(np.abs(corners @ (other.affine - first.affine).T).max())
        if apart > FORM_TOLERANCE_MM:
            raise VolumeError(other.path, f"lies {apart:.1f} mm apart from its first channel {first.path}: resample it")


class LoadVolumed(LoadImaged):
    """MONAI's LoadImaged with a :class:`CheckedReader`, whose errors reach the caller as they are.

    Where the data hold a true ``beside_others``, a volume may need half of the memory there is at most.

    Args:
        keys: of the paths; a list of paths becomes the channels of one volume.
        reader_options: see :class:`CheckedReader`.
    """

    def __init__(self, keys: str | Sequence[str], **reader_options: Any) -> None:
        self.checked_reader = CheckedReader(**reader_options)
        self.modest_reader = CheckedReader(**reader_options, memory_share=0.5)
        super().__init__(keys, reader=self.checked_reader, image_only=True, ensure_channel_first=True)

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        return super().__call__(data, self.modest_reader if data.get("beside_others") else self.checked_reader)


# The training range


def grid_warnings(header: Header, known: Mapping[str, Any] | None) -> list[str]:
    """What is unlike the training images in spacing and extent."""
    if known is None:
        return []
    spacing = np.sort(header.spacing)
    extent = np.sort(header.spacing * header.shape)
    found = []
    for name, values in (("spacing", spacing), ("extent", extent)):
        low, high = (np.array(known[f"{name}_mm"][i]) for i in (0, 1))
        if (values < low / (1 + RANGE_SLACK)).any() or (values > high * (1 + RANGE_SLACK)).any():
            found.append(
                f"its {name} {_numbers(values)} mm lies outside that of the training images, "
                f"{_numbers(low)} to {_numbers(high)} (axes sorted)"
            )
    return found


def intensity_warnings(volume: np.ndarray, known: Mapping[str, Any] | None) -> list[str]:
    """What is unlike the training images in the percentiles of the intensities, channel by channel."""
    if known is None:
        return []
    found = []
    for number, channel in enumerate(volume):
        if number >= len(known["intensity_percentiles"]):
            break
        for (low, high), value, share in zip(
            known["intensity_percentiles"][number], intensity_percentiles(channel), PERCENTILES, strict=True
        ):
            slack = RANGE_SLACK * (high - low)
            if not low - slack <= value <= high + slack:
                found.append(
                    f"its {share:g} % intensity {value:g} lies outside that of the training images, "
                    f"{low:g} to {high:g}"
                )  # fmt: skip
    return found


def intensity_percentiles(channel: np.ndarray) -> list[float]:
    """The ``PERCENTILES`` of a channel ``(X, Y, Z)``."""
    step = max(round((channel.size / PERCENTILE_VOXELS) ** (1 / 3)), 1)
    return [float(v) for v in np.percentile(channel[::step, ::step, ::step], PERCENTILES)]


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in values)
