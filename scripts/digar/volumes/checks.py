"""What is checked of a file before a network sees it, and the transform that reads and checks, in every workflow."""

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImaged
from monai.utils import ensure_tuple
from monai.utils.enums import MetaKeys

from digar.volumes.grids import working_shape
from digar.volumes.header import Header, VolumeError, refuse_other_grid
from digar.volumes.memory import BUFFERS, GIB, available_memory, needed_memory
from digar.volumes.reading import read_header, read_volume

WARNINGS = "digar_warnings"  # where an image's metadata keep what was odd about it
NEED = "digar_need"  # where they keep the memory that it takes on its way, in bytes
MEMORY_LEFT = "memory_left"  # key of a case: the bytes that it may need, where others are on their way beside it
PLACEMENT = "digar_placement"  # where those of a NIfTI image keep the fields that place it
FOUR_D = ("refuse", "each")
OUT_OF_RANGE = ("warn", "refuse")
COARSEST, FINEST = 8, 1 / 20  # voxels (edge of the cube of their volume) as multiples of the network's spacing
SEEN = 5  # how many times coarser or finer than all training images a voxel may be
PERCENTILES = (1, 50, 99.9)  # of the intensities, compared with those of the training images
PERCENTILE_VOXELS = 1_000_000  # percentiles of larger volumes are taken from a regular sample of about this many voxels
RANGE_SLACK = 0.1  # beyond the training range by this share of it is not warned of


class TooLargeError(VolumeError):
    """The volume needs more memory than there is at the moment."""


class CheckedReader(ImageReader):
    """Reads a volume, or several files as its channels, and refuses what a network cannot make sense of.

    Args:
        in_channels: that the network takes; None for any number.
        spacing: of the network in mm; None where volumes are not resampled to one.
        roi_size, num_classes: of the network; with the spacing they tell how much memory a volume will need. None
            classes: a label may hold any.
        volumes_4d: what to do with a fourth axis where the network takes one channel: ``refuse`` it, or take ``each``
            volume by itself.
        nonfinite_share: NaN and infinite voxels are replaced by the smallest finite one up to this share of a channel.
        training_range: what the network has seen; None compares with nothing.
        out_of_range: ``warn`` of a volume that is unlike all training images, or ``refuse`` it.

    Raises:
        VolumeError: from :meth:`read`, with the file and the reason.
        ValueError: ``volumes_4d`` or ``out_of_range`` has an unknown value, or there is no training range to
            refuse by.
    """

    def __init__(
        self,
        in_channels: int | None = None,
        spacing: Sequence[float] | None = None,
        roi_size: Sequence[int] = (1, 1, 1),
        num_classes: int | None = 1,
        volumes_4d: str = "refuse",
        nonfinite_share: float = 0.01,
        training_range: Mapping[str, Any] | None = None,
        out_of_range: str = "warn",
    ) -> None:
        if out_of_range not in OUT_OF_RANGE:
            raise ValueError(f"out_of_range {out_of_range!r} must be one of {', '.join(OUT_OF_RANGE)}")
        if out_of_range == "refuse" and training_range is None:
            raise ValueError("out_of_range refuse: what these weights were trained on is not known: pass warn")
        if volumes_4d not in FOUR_D:
            raise ValueError(f"volumes_4d {volumes_4d!r} must be one of {', '.join(FOUR_D)}")
        self.in_channels = in_channels
        self.spacing = spacing
        self.roi_size = roi_size
        self.num_classes = num_classes
        self.each = in_channels is None or (volumes_4d == "each" and in_channels == 1)
        self.nonfinite_share = nonfinite_share
        self.training_range = training_range
        self.out_of_range = out_of_range

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Every file is tried: what is no volume is refused when it is read."""
        return True

    def read(
        self, data: Sequence[PathLike] | PathLike, memory_left: float = math.inf, **kwargs: Any
    ) -> tuple[np.ndarray, dict]:
        """The volume ``(C, X, Y, Z)`` and its metadata.

        Args:
            data: path of a file, or of several that are its channels.
            memory_left: bytes that the volume may need at most; never more than there are.
        """
        paths = [str(path) for path in ensure_tuple(data)]
        headers = [read_header(path) for path in paths]
        header = headers[0]
        for other in headers[1:]:
            refuse_other_grid(other, header, "its first channel")
        channels = sum(h.channels for h in headers)
        self._refuse_channels(header, channels)
        self._refuse_spacing(header)
        need = self._needed_memory(header, channels, len(paths), memory_left)
        warnings = list(dict.fromkeys(w for h in headers for w in h.warnings))
        warnings += self._outside(header, grid_warnings(header, self.training_range))
        volumes = [read_volume(path, h).numpy() for path, h in zip(paths, headers, strict=True)]
        for path, own in zip(paths, volumes, strict=True):
            warnings += mend(path, own, self.nonfinite_share)
        volume = np.concatenate(volumes) if len(volumes) > 1 else volumes[0]
        warnings += self._outside(header, intensity_warnings(volume, self.training_range))
        meta = {
            MetaKeys.AFFINE: header.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: header.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(header.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
            "filename_or_obj": header.path,
            WARNINGS: warnings,
            PLACEMENT: header.placement,
            NEED: need,
        }
        return volume, meta

    def get_data(self, img: tuple[np.ndarray, dict]) -> tuple[np.ndarray, dict]:
        """What :meth:`read` gave."""
        return img

    def _outside(self, header: Header, found: list[str]) -> list[str]:
        """What is unlike the training images, unless that is refused."""
        if found and self.out_of_range == "refuse":
            raise VolumeError(header.path, f"{'; '.join(found)}: use a network for such images, or --out_of_range warn")
        return found

    def _refuse_channels(self, header: Header, channels: int) -> None:
        if channels == self.in_channels or self.each:
            return
        if self.in_channels == 1:
            raise VolumeError(
                header.path,
                f"holds {channels} volumes (a fourth axis), the network takes one: split it, or, for masks of each, "
                "infer with --volumes_4d each",
            )
        raise VolumeError(header.path, f"has {channels} channels, the network takes {self.in_channels}")

    def _refuse_spacing(self, header: Header) -> None:
        """Refuse voxels that the network cannot have been made for: a wrong spacing or unit in the header."""
        edge = float(header.spacing.prod() ** (1 / 3))
        own = f"its spacing is {_numbers(header.spacing)} mm"
        if self.spacing is not None:
            wanted = math.prod(self.spacing) ** (1 / 3)
            if not FINEST < edge / wanted < COARSEST:
                raise VolumeError(
                    header.path,
                    f"{own}, {edge / wanted:.3g} times the network's {_numbers(self.spacing)} mm: correct its header",
                )
        if self.training_range is not None:
            low, high = (math.prod(axes) ** (1 / 3) for axes in self.training_range["spacing_mm"])
            if not low / SEEN < edge < high * SEEN:
                seen = " to ".join(_numbers(axes) for axes in self.training_range["spacing_mm"])
                raise VolumeError(
                    header.path, f"{own}, that of the training images {seen} mm (axes sorted): correct its header"
                )

    def _needed_memory(self, header: Header, channels: int, files: int, memory_left: float) -> float:
        """Bytes that the volume takes on its way; it is refused where there are fewer."""
        working = header.shape if self.spacing is None else working_shape(header.shape, header.affine, self.spacing)
        need = needed_memory(header, channels, files, working, self.num_classes or 1, self.roi_size)
        there_is = min(available_memory(), memory_left)
        if need + BUFFERS > there_is:
            raise TooLargeError(
                header.path,
                f"its {'x'.join(map(str, header.shape))} voxels need about {(need + BUFFERS) / GIB:.1f} GiB of memory, "
                f"there are {there_is / GIB:.1f} GiB: use a machine with more, or crop it",
            )
        return need


def mend(path: str | Path, volume: np.ndarray, nonfinite_share: float) -> list[str]:
    """Replace NaN and infinite voxels, in place; refuse a volume without content.

    Args:
        path: for the error.
        volume: ``(C, X, Y, Z)``.
        nonfinite_share: up to this share of a channel, NaN and infinite voxels take its smallest finite value.

    Returns:
        What was replaced, or nothing.

    Raises:
        VolumeError: a larger share, or a channel whose every voxel is the same.
    """
    replaced = 0
    for channel in volume:
        low, high = channel.min(), channel.max()  # NaN where any is
        if not (math.isfinite(low) and math.isfinite(high)):
            wrong = ~np.isfinite(channel)
            count = int(wrong.sum())
            if count > nonfinite_share * channel.size or count == channel.size:
                raise VolumeError(
                    path,
                    f"{100 * count / channel.size:.3g} % of its voxels are NaN or infinite, more than "
                    f"{100 * nonfinite_share:g} %: repair it, or raise --nonfinite_share",
                )
            low = channel.min(where=~wrong, initial=np.inf)
            channel[wrong] = low
            high = channel.max()
            replaced += count
        if low == high:
            raise VolumeError(path, f"is empty: every voxel is {low:g}")
    return [f"{replaced} NaN or infinite voxels were replaced by the smallest value"] if replaced else []


def read_label(
    path: str | Path, reference: Header, num_classes: int | None = None, role: str = "its image"
) -> np.ndarray:
    """The class numbers of a label, ``(X, Y, Z)`` uint8 or uint16.

    Args:
        path: of the label.
        reference: in whose grid it must lie.
        num_classes: the classes are 0 to ``num_classes - 1``; None: any up to 65535.
        role: what the reference is to the label.

    Raises:
        VolumeError: it cannot be read, has channels, lies in another grid, or holds other values.
    """
    header = read_header(path)
    if header.channels > 1:
        raise VolumeError(path, f"holds {header.channels} volumes (a fourth axis): one label per image is needed")
    refuse_other_grid(header, reference, role)
    values = read_volume(path, header)[0].numpy()
    last = 65535 if num_classes is None else num_classes - 1
    if not (values.min() >= 0 and values.max() <= last and np.array_equal(values, np.rint(values))):
        found = np.unique(values)
        wrong = ", ".join(f"{v:g}" for v in found[~np.isin(found, np.arange(last + 1))][:5])
        known = "labels are whole numbers" if num_classes is None else f"num_classes is {num_classes} (0 to {last})"
        raise VolumeError(path, f"holds the values {wrong}, {known}: correct the label or pass --num_classes")
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)


class CheckedLoadImaged(LoadImaged):
    """Reads an image by a :class:`CheckedReader` in the place of MONAI's, and its label, which is checked against it.

    The label becomes ``(1, X, Y, Z)`` of class numbers with the image's own affine: what differs by rounding in the two
    headers cannot part them any more. Errors reach the caller as they are. Data may hold ``memory_left``, see
    :meth:`CheckedReader.read`.

    MONAI Deploy leaves out transforms whose name contains ``LoadImage`` and brings its own image.

    Args:
        keys: of the image, and perhaps of its label; a list of paths becomes the channels of one image.
        reader_options: see :class:`CheckedReader`.
    """

    def __init__(self, keys: str | Sequence[str], **reader_options: Any) -> None:
        image_key, *label_keys = ensure_tuple(keys)
        self.label_keys = label_keys
        self.checked_reader = CheckedReader(**reader_options)
        # MONAI takes a reader itself too, though it does not say so
        super().__init__(image_key, reader=self.checked_reader, image_only=True, ensure_channel_first=True)  # type: ignore[arg-type]

    def __call__(self, data: Mapping[Any, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        (key,) = self.keys
        volume, meta = self.checked_reader.read(data[key], data.get(MEMORY_LEFT, math.inf))
        image = MetaTensor(volume, meta=meta)
        loaded = {**data, key: image}
        if not self._loader.image_only:  # as MONAI Label sets it
            loaded[f"{key}_{self.meta_key_postfix[0]}"] = image.meta
        for label_key in self.label_keys:
            loaded[label_key] = self._load_label(data[label_key], image)
        return loaded

    def _load_label(self, path: str | Path, image: MetaTensor) -> MetaTensor:
        affine = image.affine.numpy()
        x, y, z = image.shape[1:]
        grid = Header(str(image.meta["filename_or_obj"]), (x, y, z), 1, affine, np.dtype(np.float32))
        values = read_label(path, grid, self.checked_reader.num_classes)
        meta = {name: image.meta[name] for name in (MetaKeys.ORIGINAL_AFFINE, MetaKeys.SPATIAL_SHAPE)}
        return MetaTensor(
            torch.from_numpy(values[None]),
            affine=torch.from_numpy(affine.copy()),
            meta=meta | {"filename_or_obj": str(path)},
        )


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


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in values)
