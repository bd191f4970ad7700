"""The bundle in MONAI Label's own app, over HTTP and through its client: the tests run in order and share a server."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.label.conftest import NUM_CASES, ORIENTATIONS, Server

pytestmark = pytest.mark.label
InferFolder = Callable[[Path, Path, Path], Path]
IMAGES = ["case_0", "case_1", *(f"turned_{codes}" for codes in ORIENTATIONS[1:]), "oblique", "whole_numbers"]
SLICER = {  # what 3D Slicer sends with its default options
    "device": "cpu", "pretrained": True, "multi_gpu": True, "gpus": "all", "tracking": "None", "tracking_uri": "",
    "tracking_experiment_name": "", "run_id": "", "model_filename": "model.pt",
}  # fmt: skip


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def former(server: Server) -> list[Path]:
    return sorted((server.bundle / "models" / "former").glob("*.pt"))


@pytest.fixture(scope="module")
def masks(stock: Server, infer_folder: InferFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return infer_folder(stock.bundle, stock.studies, tmp_path_factory.mktemp("masks"))


def test_the_server_names_model_labels_and_trainer(stock: Server) -> None:
    info = stock.get("/info/")
    assert info["labels"] == ["anterior", "posterior"]
    assert info["models"]["digar"]["labels"] == {"anterior": 1, "posterior": 2}
    assert "digar" in info["trainers"]


@pytest.mark.parametrize("image", IMAGES)
def test_a_mask_is_that_of_the_folder_inference(image: str, stock: Server, masks: Path, tmp_path: Path) -> None:
    mask = stock.infer(image, tmp_path)
    expected = nib.load(masks / f"{image}_mask.nii.gz")
    source = nib.load(stock.studies / f"{image}.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
    assert set(np.unique(mask.dataobj)) == {0, 1, 2}


@pytest.mark.parametrize("codes", ORIENTATIONS[1:])
def test_the_mask_of_a_turned_image_is_the_turned_mask(codes: str, stock: Server, tmp_path: Path) -> None:
    canonical = stock.infer("case_0", tmp_path)
    turned = nib.as_closest_canonical(stock.infer(f"turned_{codes}", tmp_path))
    np.testing.assert_array_equal(np.asarray(turned.dataobj), np.asarray(canonical.dataobj))


def test_the_client_of_monai_label_gets_the_same_mask(stock: Server, masks: Path, tmp_path: Path) -> None:
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(stock.url, tmpdir=str(tmp_path))
    file, params = client.infer("digar", "case_0", {"device": "cpu"})
    np.testing.assert_array_equal(nib.load(file).dataobj, nib.load(masks / "case_0_mask.nii.gz").dataobj)
    assert params["label_names"] == {"anterior": 1, "posterior": 2}
    assert client.next_sample("first", {})["id"] in {
        path.name.removesuffix(".nii.gz") for path in stock.studies.iterdir()
    }


@pytest.mark.parametrize(
    "request_",
    [
        "/infer/no_such_model?image=case_0",
        "/infer/digar?image=no_such_image",
        "/infer/digar",
        "/activelearning/no_such_strategy",
    ],
)
def test_a_bad_request_is_an_error_and_the_server_goes_on(request_: str, stock: Server) -> None:
    assert stock.post(request_).status_code >= 400
    assert stock.is_serving()


def test_parameters_that_are_no_json_are_an_error_and_the_server_goes_on(stock: Server) -> None:
    assert stock.post("/infer/digar?image=case_0", data={"params": "{not json"}).status_code >= 400
    assert stock.is_serving()


@pytest.mark.parametrize("content", ["truncated", "text", "empty"])
def test_a_broken_image_is_an_error_and_the_server_goes_on(content: str, stock: Server, masks: Path) -> None:
    whole = (stock.studies / "case_0.nii.gz").read_bytes()
    data = {"truncated": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}[content]
    answer = stock.post("/infer/digar?output=image", files={"file": ("upload.nii.gz", data)})
    assert answer.status_code >= 400
    whole_again = stock.post("/infer/digar?output=image", files={"file": ("upload.nii.gz", whole)})
    assert whole_again.status_code == 200


@pytest.mark.parametrize(
    ("num_labels", "request_"),
    [
        (1, {"max_epochs": 1}),
        (2, {"max_epochs": 1, "val_split": 0}),
        (3, {"max_epochs": 1, "val_split": 0.2, **SLICER}),
    ],
    ids=["1 label", "2 labels, no validation", "3 labels, one of them for validation, from 3D Slicer"],
)
def test_training_on_saved_labels_changes_the_masks_and_keeps_the_former_weights(
    num_labels: int, request_: dict, stock: Server, infer_folder: InferFolder, tmp_path: Path
) -> None:
    weights = stock.bundle / "models" / "model.pt"
    before, kept = digest(weights), former(stock)
    for number in range(num_labels):
        assert stock.save_label(f"case_{number}").status_code == 200
    assert stock.get("/datastore/")["completed"] == num_labels
    task = stock.train(**request_)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert digest(weights) != before
    (new,) = set(former(stock)) - set(kept)
    assert digest(new) == before
    assert re.fullmatch(r"model_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.pt", new.name)

    assert stock.post("/reload/").status_code == 200
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(stock.studies / "case_3.nii.gz", images)
    expected = infer_folder(stock.bundle, images, tmp_path / "masks") / "case_3_mask.nii.gz"
    mask = stock.infer("case_3", tmp_path)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(nib.load(expected).dataobj))


def test_a_label_with_a_wrong_value_stops_the_training_and_is_named(stock: Server, tmp_path: Path) -> None:
    label = nib.load(stock.labels / "case_3.nii.gz")
    wrong = tmp_path / "case_3.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj) * 4, label.affine), wrong)
    assert NUM_CASES == 4
    before = digest(stock.bundle / "models" / "model.pt")
    assert stock.save_label("case_3", wrong).status_code == 200
    assert stock.train(max_epochs=1)["status"] == "ERROR"
    assert "holds the values 4, 8, num_classes is 3" in stock.log.read_text()
    assert digest(stock.bundle / "models" / "model.pt") == before
    assert stock.is_serving()
