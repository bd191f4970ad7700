"""A label corrected by a few strokes: what is it, and what is not, painted over the image.

The network's probabilities and the strokes are joined by a graph cut (Wang et al., Interactive medical image
segmentation using deep learning with image-specific fine tuning, IEEE TMI 2018): painted voxels are held, and
neighbours of like intensity are kept together, so that a stroke in one slice also corrects the ones beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from digar.inference.inverting import InvertToMaskd
from digar.volumes.checks import read_label
from digar.volumes.reading import read_header
from fastapi import HTTPException
from masks import Masks
from monai.data import MetaTensor
from monai.transforms import MapTransform, SqueezeDimd
from monailabel.interfaces.tasks.infer_v2 import InferType
from numpymaxflow import maxflow
from scipy.ndimage import distance_transform_edt

BACKGROUND, FOREGROUND = 1, 2
STROKES = {"background_scribbles": BACKGROUND, "foreground_scribbles": FOREGROUND}  # segments as viewers name them
REACH = 8  # voxels of the working grid: how far from a stroke the mask may change
LEAST = 0.05  # where the probability is below this and nothing is painted, there is background
MARGIN = 8  # voxels around the rest
NEIGHBOURS = 6  # of a voxel, that are kept together
SMALLEST = float(np.finfo(np.float32).eps)


class Scribbles(Masks):
    """Strokes for one label at a time: the one that is selected in the viewer, which the mask's value 1 means then."""

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf, type=InferType.SCRIBBLES, load_strict=True)
        self.description = "Strokes that correct the selected label, joined to the network's probabilities by GraphCut"
        self._config |= {"lamda": 1.0, "sigma": 0.1}

    def __call__(self, request: dict[str, Any], callbacks: Mapping | None = None) -> tuple[str | None, dict[str, Any]]:
        if not request.get("label"):
            raise HTTPException(400, "paint first: there are no strokes in the request")
        mask, result = super().__call__({**request, "selected": self.selected(request)}, callbacks)
        return mask, {**result, "label_names": {self.selected(request): 1}}

    def selected(self, request: Mapping[str, Any]) -> str:
        """The network's name of the label that the strokes are meant for.

        Raises:
            HTTPException: there is none of this name.
        """
        name = request.get("selected_label_name", next(iter(self.labels))).lower()
        if name not in self.labels:
            raise HTTPException(400, f"there is no label {name[:50]}: select a segment of {', '.join(self.labels)}")
        return name

    def pre_transforms(self, data: dict[str, Any] | None = None) -> list[Callable]:
        numbers = {"background_scribbles": len(self.labels) + 1, "foreground_scribbles": len(self.labels) + 2}
        numbers |= {s["name"]: s["id"] for s in data.get("label_info", []) if s.get("name") in STROKES and "id" in s}
        strokes = StrokesOnGridd("label", {number: STROKES[name] for name, number in numbers.items()})
        return [*super().pre_transforms(data), strokes]

    def post_transforms(self, data: dict[str, Any] | None = None) -> list[Callable]:
        channel = self.labels[data["selected"]]
        cut = GraphCutd("pred", "label", channel, data["lamda"], data["sigma"])
        return [cut, InvertToMaskd("pred"), SqueezeDimd("pred")]


class StrokesOnGridd(MapTransform):
    """Bring the voxels that were painted from the image's own grid to the working grid; none of them is lost.

    Args:
        keys: of the path of the painted labels, which lie in the grid that the image was read with. Where the data
            hold a box ``roi`` (first and last voxel along each axis), what lies outside is background.
        strokes: painted value to ``BACKGROUND`` or ``FOREGROUND``; other values are the segmentation so far.

    Raises:
        HTTPException: nothing is painted.
    """

    def __init__(self, keys: str, strokes: Mapping[int, int]) -> None:
        super().__init__(keys)
        self.strokes = strokes

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        painted = dict(data)
        image: MetaTensor = painted["image"]
        header = read_header(painted["image_path"])
        to_working = np.linalg.inv(image.affine.numpy()) @ header.affine
        for key in self.key_iterator(painted):
            values = read_label(painted[key], header)
            strokes = np.zeros(image.shape[1:], np.uint8)
            if len(painted.get("roi", [])) == 6:
                strokes[...] = BACKGROUND
                corners = _nearest_voxels(to_working, np.reshape(painted["roi"], (3, 2)).T, strokes.shape)
                strokes[_box(corners, strokes.shape)] = 0
            for value, kind in sorted(self.strokes.items(), key=lambda item: item[1]):
                strokes[tuple(_nearest_voxels(to_working, np.argwhere(values == value), strokes.shape).T)] = kind
            if not strokes.any():
                raise HTTPException(400, "nothing is painted: mark some of the label, or some of what is not it")
            painted[key] = strokes
        return painted


class GraphCutd(MapTransform):
    """Logits ``(classes, X, Y, Z)`` and strokes ``(X, Y, Z)`` to scores of background and label, ``(2, X, Y, Z)``.

    The cut holds near the strokes; farther away the network's mask stays as it is.

    Args:
        keys: of the logits.
        strokes_key: of the strokes.
        channel: of the label.
        lamda: weight of the boundary against the probabilities.
        sigma: difference of scaled intensities (0 to 1) that counts as a boundary.
    """

    def __init__(self, keys: str, strokes_key: str, channel: int, lamda: float, sigma: float) -> None:
        super().__init__(keys)
        self.strokes_key = strokes_key
        self.channel = channel
        self.lamda, self.sigma = lamda, sigma

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        corrected = dict(data)
        strokes = corrected[self.strokes_key]
        image = corrected["image"][0].cpu().numpy()
        for key in self.key_iterator(corrected):
            logits = torch.as_tensor(corrected[key]).float().cpu()
            share = torch.softmax(logits, 0)[self.channel].numpy()
            mask = (logits.argmax(0) == self.channel).numpy()
            share[strokes == FOREGROUND] = 1
            share[strokes == BACKGROUND] = 0
            box = _box(np.argwhere(share > LEAST), share.shape, MARGIN)
            likely = share[box].clip(SMALLEST, 1 - SMALLEST)
            shown = np.ascontiguousarray(image[box])[None]
            cut = maxflow(shown, np.stack([1 - likely, likely]), self.lamda, self.sigma, NEIGHBOURS)[0] > 0
            near = distance_transform_edt(strokes[box] == 0) <= REACH
            mask[box] = np.where(near, cut, mask[box])
            mask &= strokes != BACKGROUND  # outside of the box, too
            label = torch.from_numpy(mask.astype(np.float32))
            corrected[key] = torch.stack([1 - label, label])
        return corrected


def _nearest_voxels(affine: np.ndarray, points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Points ``(n, 3)`` of one grid as voxels of another one."""
    places = points @ affine[:3, :3].T + affine[:3, 3]
    return np.clip(np.rint(places), 0, np.array(shape) - 1).astype(int)


def _box(points: np.ndarray, shape: Sequence[int], margin: int = 0) -> tuple[slice, ...]:
    """The smallest box that holds voxels ``(n, 3)``, and a margin around it; all where there are none."""
    if not len(points):
        return tuple(slice(0, n) for n in shape)
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin + 1
    return tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(low, high, shape, strict=True))
