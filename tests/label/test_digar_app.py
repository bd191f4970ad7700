"""The bundle's own app: which case to label next, labels drawn in another order, gentle retraining."""

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.label.conftest import Server

pytestmark = pytest.mark.label


def entropies(server: Server) -> dict[str, float]:
    objects = server.get("/datastore/?output=all")["objects"]
    return {name: item["image"]["info"].get("epistemic_entropy", 0.0) for name, item in objects.items()}


@pytest.fixture(scope="module")
def scored(own: Server) -> Server:
    """The server after its first scoring, one of its images broken."""
    (own.studies / "broken.nii.gz").write_bytes(b"not an image")
    while "broken" not in own.get("/datastore/?output=all")["objects"]:
        time.sleep(0.5)  # the server watches the folder
    while own.post("/scoring/epistemic", json={"simulation_size": 2}).status_code == 429:
        time.sleep(0.5)  # the scoring that the server begins with
    task = own.wait_for("/scoring/")
    assert task["status"] == "DONE", "\n".join(task["details"])
    return own


def test_every_image_that_can_be_read_is_scored(scored: Server) -> None:
    scores = entropies(scored)
    assert scores.pop("broken") == 0.0
    assert len(scores) == len(list(scored.studies.glob("*.nii.gz"))) - 1
    assert all(score > 0 for score in scores.values())
    assert len(set(scores.values())) > 1


def test_the_next_case_is_the_least_sure_one_that_has_no_label(scored: Server, tmp_path: Path) -> None:
    ranking = sorted(entropies(scored), key=entropies(scored).get, reverse=True)
    first = scored.post("/activelearning/epistemic", json={}).json()
    assert first["id"] == ranking[0]
    scored.wait_for("/scoring/")
    image = nib.load(scored.studies / f"{first['id']}.nii.gz")
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), label)
    assert scored.save_label(first["id"], label).status_code == 200
    assert scored.post("/activelearning/epistemic", json={}).json()["id"] == ranking[1]


def test_a_label_drawn_in_another_order_gets_the_networks_values(own: Server) -> None:
    names = [{"name": "posterior", "idx": 1}, {"name": "anterior", "idx": 2}]
    drawn = np.asarray(nib.load(own.labels / "case_2.nii.gz").dataobj)
    assert own.save_label("case_2", label_info=names).status_code == 200
    saved = nib.load(own.studies / "labels" / "final" / "case_2.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), np.array([0, 2, 1])[drawn])
    assert own.save_label("case_2", label_info=names[::-1]).status_code == 200
    saved = nib.load(own.studies / "labels" / "final" / "case_2.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), drawn)


def test_a_label_with_an_unknown_segment_is_refused(own: Server) -> None:
    answer = own.save_label("case_3", label_info=[{"name": "Segment_1", "idx": 1}, {"name": "anterior", "idx": 2}])
    assert answer.status_code == 400
    assert "segments segment_1 are none of anterior, posterior" in answer.json()["detail"]
    assert not (own.studies / "labels" / "final" / "case_3.nii.gz").exists()


def test_retraining_is_gentle_and_a_failure_says_why(own: Server, tmp_path: Path) -> None:
    before = np.asarray(own.infer("case_3", tmp_path).dataobj)
    assert own.save_label("case_0").status_code == 200
    task = own.train(max_epochs=1, val_split=0)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert "the learning rate is 0.0001" in own.log.read_text()
    after = np.asarray(own.infer("case_3", tmp_path).dataobj)
    assert (before != after).any()

    label = nib.load(own.labels / "case_3.nii.gz")
    wrong = tmp_path / "case_3.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj) * 4, label.affine), wrong)
    assert own.save_label("case_3", wrong).status_code == 200
    task = own.train(max_epochs=1)
    assert task["status"] == "ERROR"
    assert "holds the values 4, 8, num_classes is 3" in "\n".join(task["details"])


def test_a_training_from_nothing_works_too(own: Server) -> None:
    own.delete_label("case_3")
    task = own.train(max_epochs=1, val_split=0, pretrained=False)
    assert task["status"] == "DONE", "\n".join(task["details"])
