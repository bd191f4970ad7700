"""A picture of a pretraining sample as the network reads it: its parts, its patches, and their order.

    python -m digar.training.sequence_figure --config_file configs/pretrain.yaml --kind spatial --output sequence.png \
        --dataset_dir DATA/Task04_Hippocampus --token_order volume

Whatever a run of that config would see is drawn; further options are ids of the config.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import yaml
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


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default="configs/pretrain.yaml")
    parser.add_argument("--kind", default="spatial", help="one of the config's kinds (default: %(default)s)")
    parser.add_argument("--index", type=int, default=0, help="which sample of this kind (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    options, rest = parser.parse_known_args()
    config = ConfigParser(ConfigParser.load_config_file(options.config_file))
    for name, value in zip(rest[::2], rest[1::2], strict=True):
        if not name.startswith("--") or name[2:] not in config:
            raise ValueError(f"option {name} is not an id of {options.config_file}")
        config[name[2:]] = yaml.safe_load(value)
    dataset = config.get_parsed_content("train#dataset")
    if options.kind not in dataset.kinds:
        raise ValueError(f"there are no {options.kind} sequences in {options.config_file}: {', '.join(dataset.kinds)}")
    kind = dataset.kinds[options.kind]
    place = find_sample(dataset, options.kind, options.index)
    sample = dataset[place]
    _, joined, _ = dataset.draw(place)
    patch_size = np.broadcast_to(config.get_parsed_content("patch_size"), 3).tolist()
    draw_sequence(
        options.output,
        scale_samples(sample["image"][None], sample["extents"][None])[0, 0].numpy(),
        int(sample["prefix"]),
        patch_size,
        config.get_parsed_content("token_order"),
        f"{options.kind}: {kind.description}",
        kind.part_names(joined),
    )
    print(options.output)


if __name__ == "__main__":
    _main()
