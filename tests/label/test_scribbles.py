"""Strokes that correct the network's mask of one label, as 3D Slicer sends them."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from scipy.ndimage import distance_transform_edt

from tests.conftest import ROOT
from tests.label.conftest import Server, hippocampus_like, save

pytestmark = pytest.mark.label
SEGMENTS = ["anterior", "posterior", "background_scribbles", "foreground_scribbles"]
SHAPE = (36, 50, 34)


def ask(server: Server, image: str, painted: Path, **values: object) -> requests.Response:
    params = {"label_info": [{"name": name, "id": number + 1} for number, name in enumerate(SEGMENTS)], "roi": []}
    with painted.open("rb") as file:
        files, data = {"label": (painted.name, file)}, {"params": json.dumps(params | values)}
        return server.post(f"/infer/digar%2BGraphCut?image={image}&output=image", files=files, data=data)


def read(answer: requests.Response, folder: Path) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    (folder / "mask.nii.gz").write_bytes(answer.content)
    return np.asarray(nib.load(folder / "mask.nii.gz").dataobj)


@pytest.fixture(scope="module")
def mask(own: Server, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The network's mask of ``case_0``."""
    return np.asarray(own.infer("case_0", tmp_path_factory.mktemp("plain")).dataobj)


@pytest.fixture
def strokes(mask: np.ndarray) -> np.ndarray:
    """Foreground just outside of the posterior part, background inside of it, in one slice; the rest is the mask."""
    painted = mask.copy()
    x, y, z = (int(round(v)) for v in np.argwhere(mask == 2).mean(axis=0))
    column = np.flatnonzero(mask[x, :, z] == 2)
    painted[x - 3 : x + 4, column.min() - 1, z] = 4
    painted[x - 2 : x + 3, column.max(), z] = 3
    return painted


@pytest.mark.parametrize("codes", ["RAS", "ASL"])
def test_what_is_painted_is_held_and_the_rest_of_the_mask_stays(
    codes: str, own: Server, mask: np.ndarray, strokes: np.ndarray, tmp_path: Path
) -> None:
    save(tmp_path / "painted.nii.gz", strokes, np.eye(4), codes)
    image = "case_0" if codes == "RAS" else "stroked_ASL"
    if image != "case_0":
        save(own.studies / f"{image}.nii.gz", hippocampus_like(0, SHAPE)[0], np.eye(4), codes)
        own.wait_for_images(image)
    answer = ask(own, image, tmp_path / "painted.nii.gz", selected_label_name="posterior")
    read(answer, tmp_path)
    corrected = np.asarray(nib.as_closest_canonical(nib.load(tmp_path / "mask.nii.gz")).dataobj)
    assert set(np.unique(corrected)) == {0, 1}
    assert (corrected[strokes == 4] == 1).all()
    assert (corrected[strokes == 3] == 0).all()
    changed = (corrected == 1) != (mask == 2)
    assert changed.any()
    assert distance_transform_edt(strokes < 3)[changed].max() < 10


def test_a_stroke_in_one_slice_decides_a_doubtful_region_of_like_intensity() -> None:
    sys.path.append(str(ROOT / "apps" / "digar"))
    from scribbles import FOREGROUND, GraphCutd

    inside, doubtful, far = np.zeros((3, 24, 16, 16), bool)
    inside[2:8, 4:12, 4:12] = True
    doubtful[8:11, 4:12, 4:12] = True  # beside it, as bright, and a little less likely than not
    far[21:24, 4:12, 4:12] = True
    probability = np.select([inside, doubtful | far], [0.95, 0.4], 0.02)
    logits = torch.from_numpy(np.log([1 - probability, probability])).float()
    image = torch.from_numpy(np.where(inside | doubtful | far, 0.8, 0.2)).float()[None]
    strokes = np.zeros(inside.shape, np.uint8)
    strokes[8:11, 5:11, 8] = FOREGROUND
    cut = GraphCutd("pred", "label", channel=1, lamda=1.0, sigma=0.1)
    corrected = cut({"image": image, "pred": logits, "label": strokes})["pred"].argmax(0).numpy()
    np.testing.assert_array_equal(corrected == 1, inside | doubtful)


def test_each_label_is_corrected_by_itself(own: Server, mask: np.ndarray, strokes: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "painted.nii.gz", strokes, np.eye(4))
    for name, value in (("anterior", 1), ("posterior", 2)):
        corrected = read(ask(own, "case_0", tmp_path / "painted.nii.gz", selected_label_name=name), tmp_path)
        near = distance_transform_edt(strokes < 3) < 10
        np.testing.assert_array_equal((corrected == 1)[~near], (mask == value)[~near])
        assert (corrected[strokes == 4] == 1).all()


def test_outside_of_a_box_there_is_background(own: Server, mask: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "painted.nii.gz", mask, np.eye(4))
    place = np.argwhere(mask == 1)
    middle = int(np.median(place[:, 0]))
    roi = [0, middle, 0, SHAPE[1] - 1, 0, SHAPE[2] - 1]
    corrected = read(ask(own, "case_0", tmp_path / "painted.nii.gz", roi=roi), tmp_path)
    assert corrected[: middle + 1].any()
    assert not corrected[middle + 1 :].any()


@pytest.mark.parametrize(
    ("values", "reason"),
    [({}, "nothing is painted"), ({"selected_label_name": "tumour"}, "there is no label tumour: select a segment of")],
)
def test_what_cannot_be_meant_is_refused(values: dict, reason: str, own: Server, mask, tmp_path: Path) -> None:
    save(tmp_path / "painted.nii.gz", mask, np.eye(4))
    answer = ask(own, "case_0", tmp_path / "painted.nii.gz", **values)
    assert answer.status_code == 400
    assert reason in answer.json()["detail"]


def test_without_strokes_it_says_so(own: Server) -> None:
    answer = own.post("/infer/digar%2BGraphCut?image=case_0")
    assert (answer.status_code, answer.json()["detail"]) == (400, "paint first: there are no strokes in the request")
