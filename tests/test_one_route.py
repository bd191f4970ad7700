"""Evaluation scores the masks that inference writes, and training sees image and label where they are stored."""

import gzip
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.volumes.errors import in_a_line
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from tests.conftest import ROOT, random_model
from tests.inference.standins import mask_of

CODES = [
    "".join(code)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for code in itertools.product(*axes)
]  # fmt: skip
TILT = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]]) @ np.diag([7.0, 9.0, 6.0])
SHAPE = (15, 13, 18)


def place(linear: np.ndarray = TILT) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = [-40, 25, 8]
    return affine


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image that shows its label: bright where the label is 1."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    x, y, z = rng.integers(2, 7, 3)
    label[x : x + 5, y : y + 4, z : z + 8] = 1
    return (rng.normal(100, 10, SHAPE) + 200 * label).astype(np.float32), label


def forms(values: np.ndarray, sform: np.ndarray | None, qform: np.ndarray | None, **header: object) -> nib.Nifti1Image:
    image = nib.Nifti1Image(values, None)
    image.set_sform(sform, 2 if sform is not None else 0)
    image.set_qform(qform, 1 if qform is not None else 0)
    for name, value in header.items():
        image.header[name] = value
    return image


def turned(values: np.ndarray, code: str) -> nib.Nifti1Image:
    source = nib.Nifti1Image(values, place())
    return source.as_reoriented(ornt_transform(io_orientation(source.affine), axcodes2ornt(code)))


def stale_pixdim(mm: float) -> Callable:
    return lambda values: forms(values, place(np.diag([-8.0, 8, 8])), None, pixdim=[1, mm, mm, mm, 1, 1, 1, 1])


def nan_in(values: np.ndarray) -> np.ndarray:
    broken = values.copy()
    broken[0, 0, :20] = np.nan
    return broken


STALE = place(np.diag([-8.0, 8, 8]))
ODD: dict[str, tuple[Callable, Callable]] = {  # how image and label are stored
    "pixdim against sform": (stale_pixdim(2.0), lambda label: forms(label, STALE, STALE)),
    "pixdim nearly as sform": (stale_pixdim(8.0005), lambda label: forms(label, STALE, STALE)),
    "qform alone": (lambda v: forms(v, None, place()), lambda v: forms(v, None, place())),
    "sform apart from qform": (lambda v: forms(v, place(), np.diag([9.0, 9, 9, 1])), lambda v: forms(v, place(), None)),
    "label off by rounding": (
        lambda v: forms(v, place(), place()),
        lambda v: forms(v, place(TILT * 1.0005), place(TILT * 1.0005)),
    ),
    "axes of one": (lambda v: forms(v[..., None, None], place(), None), lambda v: forms(v[..., None], place(), None)),
    "few voxels NaN": (lambda v: forms(nan_in(v), place(), None), lambda v: forms(v, place(), None)),
    "coarse and fine": (
        lambda v: forms(v, place(np.diag([3.0, -14.0, 5.0])), None),
        lambda v: forms(v, place(np.diag([3.0, -14.0, 5.0])), None),
    ),
}


@pytest.fixture(scope="module")
def odd_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of one case per odd header, and of one per axis order."""
    folder = tmp_path_factory.mktemp("odd")
    kinds = ODD | {code: (lambda v, c=code: turned(v, c),) * 2 for code in CODES}
    entries = []
    for seed, (kind, (store_image, store_label)) in enumerate(kinds.items()):
        entry = {"image": f"imagesTr/{kind}.nii.gz", "label": f"labelsTr/{kind}.nii.gz"}
        for file, store, values in zip(entry.values(), (store_image, store_label), scene(seed), strict=True):
            (folder / file).parent.mkdir(exist_ok=True)
            nib.save(store(values), folder / file)
        entries.append(entry)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "air", "1": "box"}, "training": entries}))
    return folder


def configured(names: list[str], kind: str, overlay: str, **options: object) -> ConfigWorkflow:
    files = [*(str(ROOT / "configs" / name) for name in names), overlay]
    return ConfigWorkflow(files, str(ROOT / "configs/metadata.json"), None, workflow_type=kind, **{
        "bundle_root": str(ROOT), "num_classes": 2, "validation_share": 0.5, **options,
    })  # fmt: skip


@pytest.fixture(scope="module")
def weights(small_overlay: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Random weights of two small networks."""
    folders = [tmp_path_factory.mktemp("weights") for _ in range(2)]
    return [str(random_model(folder, small_overlay, seed, num_classes=2)) for seed, folder in enumerate(folders)]


@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "mirrored ensemble"])
def test_evaluation_scores_the_masks_of_the_folder_inference_voxel_for_voxel(
    averaged, odd_task, weights, small_overlay, tmp_path
):
    options = {"weights_file": weights[0], "overlap": 0.4}
    options |= {"mirroring": [0, 2], "ensemble": weights[1:], "largest_component": True} if averaged else {}
    images = odd_task / "imagesTr"
    inference = configured(
        ["inference.json"], "inference", small_overlay, dataset_dir=str(images), output_dir=str(tmp_path / "out"),
        **options,
    )  # fmt: skip
    inference.initialize()
    inference.run()
    evaluation = configured(
        ["train.json", "evaluate.json"], "evaluation", small_overlay, dataset_dir=str(odd_task), part="all",
        output_dir=str(tmp_path / "scores"), worst_pictures=0, **options,
    )  # fmt: skip
    evaluation.initialize()
    scored = {}

    def keep(engine: Engine) -> None:
        for case in engine.state.output:
            scored[Path(case["image"].meta["filename_or_obj"]).name] = case["pred"][0].numpy()

    evaluation.evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    evaluation.run()
    assert [outcome.reason for outcome in inference.evaluator.outcomes if outcome.status != "done"] == []
    assert len(scored) == len(ODD) + len(CODES)
    for name, prediction in scored.items():
        mask = mask_of(tmp_path / "out" / name.replace(".nii.gz", "_mask.nii.gz"))
        np.testing.assert_array_equal(prediction, mask, err_msg=name)
    assert sum(mask.any() and not mask.all() for mask in scored.values()) > 20


def test_training_and_validation_see_every_label_on_its_image(odd_task, small_overlay, tmp_path):
    training = configured(
        ["train.json"], "training", small_overlay, dataset_dir=str(odd_task), output_dir=str(tmp_path),
        weights_file=str(tmp_path / "model.pt"),
    )  # fmt: skip
    training.parser["train#augment"] = {}
    training.initialize()
    seen = 0
    for part in ("train", "validate"):
        for case in training.parser.get_parsed_content(f"{part}#dataset"):
            image, label = case["image"], case["label"]
            if part == "train":
                assert image.shape == label.shape
                bright = image[0].numpy()
                inside = label[0].numpy() > 0
                assert np.corrcoef(bright.ravel(), inside.ravel())[0, 1] > 0.75, image.meta["filename_or_obj"]
            else:
                stored = nib.load(image.meta["filename_or_obj"].replace("imagesTr", "labelsTr"))
                np.testing.assert_array_equal(label[0].numpy(), np.asarray(stored.dataobj).reshape(stored.shape[:3]))
            seen += 1
    assert seen == len(ODD) + len(CODES)


def far(mm: float) -> np.ndarray:
    return place(np.diag([mm, mm, mm]))


REFUSED: dict[str, tuple[Callable, str]] = {  # how the image is stored (the label alike), and what every workflow says
    "4D": (lambda v: forms(np.stack([v, v], -1), place(), None), r"holds 2 volumes \(a fourth axis\)"),
    "times 20": (lambda v: forms(v, far(160), None), "its spacing is 160 x 160 x 160 mm"),
    "times 0.001": (lambda v: forms(v, far(0.008), None), "its spacing is 0.008 x 0.008 x 0.008 mm, 0.001 times"),
    "metres": (lambda v: forms(v, far(8e-6), None), "its spacing is 8e-06 x 8e-06 x 8e-06 mm"),
    "pixdim 0": (lambda v: forms(v, None, place()), "its spacing is 0 x 9 x 6 mm"),
    "constant": (lambda v: forms(np.full_like(v, 5), place(), None), "is empty: every voxel is 5"),
    "all NaN": (lambda v: forms(np.full_like(v, np.nan), place(), None), "100 % of its voxels are NaN or infinite"),
    "a slice NaN": (
        lambda v: forms(np.where(np.arange(15)[:, None, None] == 3, np.inf, v), place(), None),
        "6.67 % of",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_one_workflow_refuses_all_refuse_with_the_files_name_and_the_same_words(
    kind, weights, small_overlay, tmp_path
):
    store, reason = REFUSED[kind]
    image, label = scene(0)
    for folder, values in (("imagesTr", image), ("labelsTr", label)):
        (tmp_path / folder).mkdir()
        keep = folder == "labelsTr" and kind not in ("times 20", "times 0.001", "metres", "pixdim 0")
        content = bytearray((forms(values, place(), None) if keep else store(values)).to_bytes())
        if kind == "pixdim 0" and not keep:
            content[80:84] = bytes(4)  # where pixdim[1] stands; nibabel would not write it so
        (tmp_path / folder / "odd.nii.gz").write_bytes(gzip.compress(content))
    entry = {"image": "imagesTr/odd.nii.gz", "label": "labelsTr/odd.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "air", "1": "box"}, "training": [entry]}))
    out = {"output_dir": str(tmp_path / "out"), "dataset_dir": str(tmp_path)}
    share = {"validation_share": 0}
    workflows = {
        "check_data": configured(["train.json"], "training", small_overlay, **out, **share),
        "initialize": configured(
            ["train.json", "evaluate.json"],
            "evaluation",
            small_overlay,
            **out,
            **share,
            weights_file=weights[0],
            part="all",
        ),
        "volumes": configured(["pretrain.yaml"], "training", small_overlay, **out, **share),
    }
    for item, workflow in workflows.items():
        if item == "volumes" and kind == "4D":
            continue  # a pretraining sample takes one of the volumes
        with pytest.raises(RuntimeError) as caught:
            workflow.parser.get_parsed_content(item)
        assert re.search(rf"odd.nii.gz: {reason}", in_a_line(caught.value)), item
    inference = configured(
        ["inference.json"], "inference", small_overlay, dataset_dir=str(tmp_path / "imagesTr"),
        output_dir=str(tmp_path / "masks"), weights_file=weights[0],
    )  # fmt: skip
    inference.initialize()
    inference.run()
    (outcome,) = inference.evaluator.outcomes
    assert outcome.status == "failed"
    assert re.match(reason, outcome.reason)
