"""The bundle's own app: which case to label next, labels drawn in another order, gentle retraining."""

import json
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
    own.wait_for_images("broken")
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


def final_label(server: Server, image: str) -> Path:
    return server.studies / "labels" / "final" / f"{image}.nii.gz"


def write_label(folder: Path, source: Path, change) -> Path:
    """A label whose voxels are those of another one, changed."""
    label, path = nib.load(source), folder / source.name
    nib.save(nib.Nifti1Image(change(np.asarray(label.dataobj)), label.affine), path)
    return path


def test_a_label_with_an_unknown_segment_is_refused(own: Server) -> None:
    answer = own.save_label("case_3", label_info=[{"name": "Segment_1", "idx": 1}, {"name": "anterior", "idx": 2}])
    assert answer.status_code == 400
    assert "segments segment_1 are not among anterior, posterior" in answer.json()["detail"]
    assert not final_label(own, "case_3").exists()


@pytest.mark.parametrize("tag", ["final", "original"])
def test_a_junk_label_is_refused_and_the_former_one_stays(tag: str, own: Server, tmp_path: Path) -> None:
    assert own.save_label("case_2", tag=tag).status_code == 200
    kept = own.studies / "labels" / tag / "case_2.nii.gz"
    before = kept.read_bytes()
    junk = tmp_path / "case_2.nii.gz"
    junk.write_bytes(b"junk")
    wrong = write_label(tmp_path, own.labels / "case_0.nii.gz", lambda label: label * 4)
    other_grid = own.labels / "case_1.nii.gz"
    for path, reason in (
        (junk, "cannot be read"),
        (wrong, "holds the values 4, 8"),
        (other_grid, "has 20x24x18 voxels"),
    ):
        answer = own.save_label("case_2", path, tag=tag)
        assert answer.status_code == 400
        assert "the label of case_2 is not taken" in answer.json()["detail"]
        assert reason in answer.json()["detail"]
    assert kept.read_bytes() == before
    own.delete_label("case_2", tag)


def test_retraining_is_gentle_and_a_failure_says_why(own: Server, tmp_path: Path) -> None:
    before = np.asarray(own.infer("case_3", tmp_path).dataobj)
    assert own.save_label("case_0").status_code == 200
    task = own.train(max_epochs=1, val_split=0)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert "the learning rate is 0.0001" in own.log.read_text()
    after = np.asarray(own.infer("case_3", tmp_path).dataobj)
    assert (before != after).any()

    wrong = write_label(tmp_path, own.labels / "case_3.nii.gz", lambda label: label * 4)
    final_label(own, "case_3").write_bytes(wrong.read_bytes())  # past the server
    while "final" not in own.get("/datastore/?output=all")["objects"]["case_3"]["labels"]:
        time.sleep(0.5)  # the server watches the folder
    task = own.train(max_epochs=1)
    assert task["status"] == "ERROR"
    assert "holds the values 4, 8, num_classes is 3" in "\n".join(task["details"])
    own.delete_label("case_3")


def test_a_training_from_nothing_works_too(own: Server) -> None:
    task = own.train(max_epochs=1, val_split=0, pretrained=False)
    assert task["status"] == "DONE", "\n".join(task["details"])


# Security: what the gate refuses is in tests/cli/test_gate.py; here, that it stands before the server


def test_other_pages_and_other_hosts_are_refused(own: Server) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
        for method, path in (("GET", "/info/"), ("POST", "/train/digar"), ("OPTIONS", "/train/digar")):
            answer = own.ask(method, path, headers=headers, json={"max_epochs": 1})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
    assert own.ask("GET", "/info/", headers={"Origin": own.url}).status_code == 200


@pytest.mark.parametrize(
    "values",
    [{"max_epochs": -1}, {"val_split": 5}, {"device": "$open('/tmp/x', 'w')"}, {"max_epochs": "$1"}, {"run_id": "@x"}],
)
def test_a_training_with_other_values_does_not_start(values: dict, own: Server) -> None:
    tasks = len(own.get("/train/?all=true"))
    for path, body in (("/train/digar", values), ("/train/", {"digar": values})):
        answer = own.post(path, json=body)
        assert answer.status_code == 400
        assert next(iter(values)) in answer.json()["detail"]
    assert len(own.get("/train/?all=true")) == tasks


def test_weights_are_not_replaced_over_http(own: Server) -> None:
    weights = own.bundle / "models" / "model.pt"
    before = weights.read_bytes()
    assert own.ask("PUT", "/model/digar", files={"file": ("model.pt", b"junk")}).status_code == 405
    assert own.ask("DELETE", "/model/digar").status_code == 405
    assert weights.read_bytes() == before


def test_paths_are_refused_where_names_are_meant(own: Server, tmp_path: Path) -> None:
    outside = tmp_path / "outside.nii.gz"
    outside.write_bytes((own.studies / "case_0.nii.gz").read_bytes())
    whole = outside.read_bytes()
    before = sorted(own.studies.parent.rglob("*"))
    requests = [
        ("POST", f"/infer/digar?image={outside}&output=image", {}),
        ("POST", "/infer/digar?image=case_0&output=image", {"data": {"params": json.dumps({"image": str(outside)})}}),
        ("POST", "/infer/digar?image=case_0&output=image", {"data": {"params": '{"device": "$1"}'}}),
        ("POST", "/batch/infer/digar", {"json": {"images": [str(outside)]}}),
        ("PUT", "/datastore/image?image=../escaped", {"files": {"file": ("case.nii.gz", whole)}}),
        ("PUT", "/datastore/image?image=case_0", {"files": {"file": ("case.nii.gz", whole)}}),
        ("PUT", "/datastore/image?image=junk", {"files": {"file": ("case.nii.gz", b"junk")}}),
        ("PUT", "/datastore/label?image=case_0&tag=../../escaped", {"files": {"label": ("case.nii.gz", whole)}}),
        ("GET", "/datastore/image?image=../server.log", {}),
        ("POST", f"/infer/digar?session_id=../{own.studies.name}", {}),
    ]
    for method, path, options in requests:
        assert own.ask(method, path, **options).status_code in (400, 409), (method, path, options)
    assert sorted(own.studies.parent.rglob("*")) == before
    assert own.is_serving()


def test_an_image_is_added_under_its_name(own: Server) -> None:
    whole = (own.studies / "case_0.nii.gz").read_bytes()
    answer = own.ask("PUT", "/datastore/image?image=added", files={"file": ("x.nii.gz", whole)})
    assert answer.json() == {"image": "added"}
    own.ask("DELETE", "/datastore/image?id=added").raise_for_status()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/infer/no_such_model?image=case_0", "there is no model 'no_such_model'; digar"),
        ("/infer/digar?image=no_such_image", "there is no image 'no_such_image'"),
        ("/infer/digar?session_id=no_such_session", "there is no session no_such_session"),
        ("/infer/digar?image=broken", "cannot be read"),
    ],
)
def test_a_viewer_is_told_what_is_wrong(path: str, reason: str, own: Server) -> None:
    (own.studies / "broken.nii.gz").write_bytes(b"not an image")
    own.wait_for_images("broken")
    answer = own.post(path)
    assert answer.status_code in (404, 500)
    assert reason in answer.json()["detail"]


def test_a_reloaded_app_is_guarded_and_scores_as_before(own: Server) -> None:
    assert own.post("/reload/").status_code == 200
    assert own.post("/activelearning/first", json={}).status_code == 200
    assert own.ask("GET", "/info/", headers={"Origin": "http://evil.example"}).status_code == 403
    assert own.save_label("case_2", own.labels / "case_1.nii.gz").status_code == 400
