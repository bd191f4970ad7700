"""A picture of a pretraining sample as the network reads it: its parts, its patches, and their order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from monai.bundle import ConfigParser

from digar.data.sequences import SequenceDataset, scale_samples
from digar.training.losses import patch_order
from digar.volumes.pictures import save_figure


def draw_sequence(
    path: str | Path,
    image: np.ndarray,
    prefix: int,
    patch_size: Sequence[int],
    token_order: str,
    title: str,
    part_names: Sequence[str],
) -> None:
    """Write a PNG of the middle x-z plane of a sample: its parts; its patches numbered in token order, prefix bright.

    Args:
        path: the PNG file.
        image: ``(X, Y, Z)``, from 0 to 1.
        prefix: length of the bidirectional prefix.
        patch_size: patch in voxels.
        token_order: see :class:`digar.networks.Backbone`.
        title: of the picture.
        part_names: of the parts along z, or none.
    """
    (x, y, z), (p, q, r) = image.shape, patch_size
    grid = x // p, y // q, z // r
    place = patch_order(image.shape, patch_size, token_order).argsort().reshape(grid).numpy()
    row = grid[1] // 2
    plane = image[:, row * q + q // 2]  # (X, Z)
    figure = Figure(figsize=(11, 5.4 * x / z + 0.9), layout="constrained")
    parts, tokens = figure.subplots(1, 2)
    for ax in (parts, tokens):
        ax.imshow(plane, cmap="gray", vmin=0, vmax=1, extent=(0, z, x, 0), interpolation="nearest")
        ax.set_axis_off()
    for part, name in enumerate(part_names):
        colour = matplotlib.colormaps["tab10"](part)
        width = z / len(part_names)
        parts.add_patch(Rectangle((part * width, 0), width, x, fill=False, edgecolor=colour, linewidth=3))
        parts.text((part + 0.5) * width, -0.02 * x, name, color=colour, ha="center", va="bottom", fontsize=7)
    last = place.max()
    for i in range(grid[0]):
        for k in range(grid[2]):
            number = place[i, row, k]
            colour = matplotlib.colormaps["viridis"](number / last)
            shade = 0.15 if number < prefix else 0.6
            box = (k * r, i * p), r, p
            tokens.add_patch(Rectangle(*box, facecolor=(*colour[:3], shade), edgecolor="white", linewidth=0.6))
            weight = "bold" if number < prefix else "normal"
            tokens.text(
                (k + 0.5) * r, (i + 0.5) * p, str(number + 1), color="white", ha="center", va="center",
                fontsize=6, weight=weight,
            )  # fmt: skip
    tokens.set_title(
        f"token order {token_order}: places of these patches in the sequence of {place.size}\n"
        f"clear: the prefix (1 to {prefix}), veiled: to be predicted",
        fontsize=8,
        loc="left",
    )
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def find_sample(dataset: SequenceDataset, kind: str, index: int) -> int:
    """The place of the ``index``-th sample of a kind in an epoch.

    Raises:
        ValueError: the epoch holds fewer.
    """
    places = [place for place in range(len(dataset)) if dataset.case(place)["kind"] == kind]
    if index >= len(places):
        raise ValueError(f"an epoch of these data holds {len(places)} {kind} sequences: there is no number {index}")
    return places[index]


def draw_sample(config_file: str | Path, ids: Mapping[str, Any], kind: str, index: int, picture: Path) -> None:
    """Draw a sample that a run of a pretraining config would see.

    Args:
        config_file: ``configs/pretrain.yaml``.
        ids: of the config to replace, and their values.
        kind: of the sequence.
        index: which sample of this kind in an epoch, from 0.
        picture: the PNG to write.

    Raises:
        ValueError: an id or a kind that the config lacks, or no such sample.
    """
    config = ConfigParser(ConfigParser.load_config_file(config_file))
    for name, value in ids.items():
        if name not in config:
            raise ValueError(f"{name} is not an id of {config_file}")
        config[name] = value
    dataset = config.get_parsed_content("train#dataset")
    if kind not in dataset.kinds:
        raise ValueError(f"there are no {kind} sequences in {config_file}: {', '.join(dataset.kinds)}")
    place = find_sample(dataset, kind, index)
    sample = dataset[place]
    _, joined, _ = dataset.draw(place)
    draw_sequence(
        picture,
        scale_samples(sample["image"][None], sample["extents"][None])[0, 0].numpy(),
        int(sample["prefix"]),
        np.broadcast_to(config.get_parsed_content("patch_size"), 3).tolist(),
        config.get_parsed_content("token_order"),
        f"{kind}: {dataset.kinds[kind].description}",
        dataset.kinds[kind].part_names(joined),
    )
