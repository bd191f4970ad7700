"""Masks of all images at once, by the bundle's own app."""

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.label.conftest import Server, hippocampus_like, save

pytestmark = pytest.mark.label
NUM_IMAGES = 8


@pytest.fixture(scope="module")
def many(own: Server) -> Iterator[list[str]]:
    """Eight images, and a broken one."""
    images = [f"many_{number}" for number in range(NUM_IMAGES)]
    for number, name in enumerate(images):
        save(own.studies / f"{name}.nii.gz", hippocampus_like(number, (30, 34, 28))[0], np.eye(4))
    (own.studies / "many_broken.nii.gz").write_bytes(b"not an image")
    own.wait_for_images(*images, "many_broken")
    yield images
    for name in (*images, "many_broken"):
        own.ask("DELETE", f"/datastore/image?id={name}").raise_for_status()


@pytest.fixture(scope="module")
def masks(own: Server, many: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("single")
    return {name: np.asarray(own.infer(name, folder).dataobj) for name in many}


def saved(server: Server, image: str, tag: str = "original") -> Path:
    return server.studies / "labels" / tag / f"{image}.nii.gz"


def check_masks(server: Server, masks: dict[str, np.ndarray]) -> None:
    """Every image has the mask that it gets alone; then the masks are taken away."""
    objects = server.get("/datastore/?output=all")["objects"]
    assert "original" not in objects["many_broken"]["labels"]
    for name, mask in masks.items():
        assert "original" in objects[name]["labels"], name
        np.testing.assert_array_equal(np.asarray(nib.load(saved(server, name)).dataobj), mask)
        server.delete_label(name, "original")


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_every_image_gets_its_mask_whatever_the_number_of_workers(
    workers: int, turn: int, own: Server, many, masks
) -> None:
    values = {"max_workers": workers, "images": [*many, "many_broken"], "device": "cuda", "multi_gpu": True}
    answer = own.post("/batch/infer/digar?run_sync=true", json=values)
    assert answer.status_code == 200
    results = answer.json()
    assert set(results) == {*many, "many_broken"}
    assert {name for name, result in results.items() if "error" in result} == {"many_broken"}
    assert "cannot be read" in results["many_broken"]["error"]
    check_masks(own, masks)


def test_a_broken_image_is_named_when_the_task_has_ended(own: Server, many, masks) -> None:
    values = {"max_workers": 2, "images": [*many, "many_broken"]}
    assert own.post("/batch/infer/digar", json=values).status_code == 200
    task = own.wait_for("/batch/infer")
    said = "\n".join(task["details"])
    assert task["status"] == "DONE", said
    assert "8 images done, 1 failed: many_broken (" in said
    check_masks(own, masks)


def test_the_masks_are_there_when_a_viewer_loads_the_image(own: Server, many, masks, tmp_path: Path) -> None:
    answer = own.post("/batch/infer/digar?images=unlabeled&run_sync=true", json={"max_workers": 2})
    assert set(many) <= {name for name, result in answer.json().items() if "error" not in result}
    info = own.get("/datastore/?output=all")["objects"][many[0]]["labels"]["original"]["info"]
    assert info["params"]["label_names"] == {"anterior": 1, "posterior": 2}  # what 3D Slicer asks for
    file = tmp_path / "mask.nii.gz"
    file.write_bytes(own.ask("GET", f"/datastore/label?label={many[0]}&tag=original").content)
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), masks[many[0]])
