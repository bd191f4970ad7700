"""What a run learns from: one patient on one side of the split, kinds mixed by weight, samples drawn by seed alone."""

import csv
import logging
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from digar.data.datalists import split_cases
from digar.data.phantom_studies import write_lesions, write_studies
from digar.data.sequences import Contrast, RandPrefixd, Semantic, Sequenced, SequenceDataset, Spatial, join_samples
from digar.data.sequences.dataset import divide
from digar.data.sources import left_out_cases, pretraining_cases, split_by_patient
from digar.volumes.prepared import VolumeStore, prepare_volumes
from monai.data import DataLoader
from monai.transforms import Compose

MODALITIES = ("t1n", "t1c", "t2w", "t2f")
KINDS = ("spatial", "contrast", "semantic")
EQUAL = dict.fromkeys(KINDS, 1.0)
SIZE = (8, 8, 16)


def make_kinds(scans: object = None, studies: object = None, lesions: object = None) -> dict:
    kinds = Spatial(SIZE, scans), Contrast(SIZE, studies, MODALITIES), Semantic(SIZE, lesions)
    return dict(zip(KINDS, kinds, strict=True))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Three studies of four contrasts; 8 scans of 4 patients with 8 lesions of each of four types."""
    folder = tmp_path_factory.mktemp("kinds")
    write_studies(folder / "studies", 3)
    write_lesions(folder / "lesions", 4)
    return folder


@pytest.fixture(scope="module")
def cases(phantoms, task) -> list[dict]:
    return pretraining_cases(make_kinds(task, phantoms / "studies", phantoms / "lesions/lesions.csv"))


@pytest.fixture(scope="module")
def store(cases, tmp_path_factory) -> VolumeStore:
    folder = tmp_path_factory.mktemp("store")
    return prepare_volumes(cases, (6, 6, 6), str(folder / "cache"), 1, str(folder / "unreadable.csv"), 0.0, 2)


def make_dataset(
    cases: list[dict], store: VolumeStore, seed: int = 0, weights: dict = EQUAL, **options: int
) -> SequenceDataset:
    kinds = make_kinds()
    transform = Compose([Sequenced(kinds), RandPrefixd("image", 4)])
    return SequenceDataset(cases, kinds, store, transform, seed, weights, **options)


# Where it comes from


def test_each_source_gives_cases_of_its_kind(cases):
    assert Counter(case["kind"] for case in cases) == {"spatial": 5, "contrast": 3, "semantic": 4 * 8}
    assert {case["type"] for case in cases if case["kind"] == "semantic"} == {"1", "2", "3", "4"}


def test_a_folder_of_scans_is_enough(task):
    assert [case["kind"] for case in pretraining_cases(make_kinds(task))] == ["spatial"] * 5


def test_without_a_source_the_options_are_named():
    with pytest.raises(ValueError, match="pass --dataset_dir, --studies_dir or --lesion_table"):
        pretraining_cases(make_kinds())


def test_incomplete_studies_are_told_where_studies_are_given(phantoms, tmp_path):
    assert left_out_cases(make_kinds(phantoms, phantoms / "studies")) == []
    lone = tmp_path / "lone/lone-t1n.nii.gz"
    lone.parent.mkdir()
    lone.touch()
    assert [folder for folder, _ in left_out_cases(make_kinds(studies=tmp_path))] == [str(lone.parent)]


# The split


def spatial(*names: str) -> list[dict]:
    return [{"kind": "spatial", "image": f"/scans/{name}.nii.gz"} for name in names]


def lesion(name: str, patient: str) -> dict:
    return {"kind": "semantic", "image": f"/scans/{name}.nii.gz", "patient": patient, "type": "1", "centre": [0, 0, 0]}


@pytest.mark.parametrize("count", [2, 5, 40])
@pytest.mark.parametrize("seed", [0, 7])
def test_plain_scans_are_split_as_fine_tuning_splits_them(seed, count):
    plain = spatial(*map(str, range(count)))
    for part in ("training", "validation", "all"):
        assert split_by_patient(plain, 0.2, seed, part) == split_cases(plain, 0.2, seed, part)


def test_other_kinds_do_not_change_the_split_of_the_scans():
    plain = spatial(*map(str, range(20)))
    others = [lesion(f"lesion{i}", f"P{i}") for i in range(9)] + [lesion("3", "3")]
    for part in ("training", "validation"):
        scans_alone = split_cases(plain, 0.3, 1, part)
        assert [
            case for case in split_by_patient(plain + others, 0.3, 1, part) if case["kind"] == "spatial"
        ] == scans_alone


def test_no_patient_is_on_both_sides_whatever_links_the_cases():
    cases = spatial(*map(str, range(12)))
    cases += [lesion(str(i), f"P{i // 3}") for i in range(12)]  # three scans of each patient
    cases += [{"kind": "contrast", "image": [f"/c/{i}{m}" for m in "abcd"], "patient": f"P{i}"} for i in range(4)]
    for seed in range(10):
        parts = {part: split_by_patient(cases, 0.4, seed, part) for part in ("training", "validation")}
        assert sum(map(len, parts.values())) == len(cases)
        patients = []
        for part in parts.values():
            scans = {case["image"][7:-7] for case in part if case["kind"] == "spatial"}
            patients.append(
                {case["patient"] for case in part if "patient" in case} | {f"P{int(s) // 3}" for s in scans}
            )
        assert not patients[0] & patients[1]
        assert all(patients)


def test_a_single_study_beside_scans_is_for_training():
    study = {"kind": "contrast", "image": ["a", "b", "c", "d"], "patient": "P"}
    cases = [*spatial(*map(str, range(9))), study]
    assert study in split_by_patient(cases, 0.2, 0, "training")


def test_a_wrong_share_is_refused_as_in_fine_tuning():
    with pytest.raises(ValueError, match="validation_share 1 must be"):
        split_by_patient(spatial("a", "b"), 1, 0, "training")


# The mixture


@pytest.mark.parametrize(
    ("total", "weights", "counts"),
    [(10, (1, 1, 1), (4, 3, 3)), (7, (3, 1, 0), (5, 2, 0)), (0, (1, 1, 1), (0, 0, 0)), (1, (1, 2, 1), (0, 1, 0))],
)
def test_a_total_is_divided_in_whole_numbers(total, weights, counts):
    assert tuple(divide(total, dict(zip(KINDS, weights, strict=True))).values()) == counts


def test_an_epoch_holds_each_kind_by_its_weight(cases, store):
    dataset = make_dataset(cases, store, weights={"spatial": 2, "contrast": 1, "semantic": 1}, samples_per_epoch=40)
    assert len(dataset) == 40
    kinds = Counter(KINDS[int(dataset[index]["kind"])] for index in range(40))
    assert kinds == {"spatial": 20, "contrast": 10, "semantic": 10}


def test_by_default_an_epoch_has_as_many_samples_as_cases_and_a_kind_without_weight_has_none(cases, store):
    assert len(make_dataset(cases, store)) == len(cases)
    dataset = make_dataset(cases, store, weights={"spatial": 1, "contrast": 0})
    assert [dataset.case(index)["kind"] for index in range(len(dataset))] == ["spatial"] * 5


def test_a_kind_that_no_weight_is_given_for_is_left_out_with_a_word(cases, store, caplog):
    with caplog.at_level(logging.WARNING):
        make_dataset(cases, store, weights={"spatial": 1, "semantic": 0})
    assert "contrast sequences are left out: kind_weights names no weight for them" in caplog.text
    assert "semantic sequences" not in caplog.text


@pytest.mark.parametrize("samples_per_epoch", [None, 2, 12])
def test_over_the_epochs_every_scan_is_drawn_equally_often(samples_per_epoch, cases, store):
    dataset = make_dataset(cases, store, weights={"spatial": 1}, samples_per_epoch=samples_per_epoch)
    drawn = Counter()
    for epoch in range(5):
        dataset.set_epoch(epoch)
        drawn.update(dataset.case(index)["image"] for index in range(len(dataset)))
    assert len(drawn) == 5
    assert len(set(drawn.values())) == 1


@pytest.mark.parametrize("weights", [{"spatial": -1.0}, {"temporal": 1.0}])
def test_weights_that_make_no_sense_are_refused(weights, cases, store):
    with pytest.raises(ValueError, match="weights of spatial, contrast, semantic, at least 0"):
        make_dataset(cases, store, weights=weights)


def test_an_index_beyond_the_epoch_is_refused(cases, store):
    with pytest.raises(IndexError):
        make_dataset(cases, store)[len(cases)]


# The samples


def test_a_semantic_sample_joins_four_lesions_of_one_class_the_first_its_own(cases, store):
    dataset = make_dataset(cases, store, weights={"semantic": 1})
    for index in range(len(dataset)):
        case, joined, _ = dataset.draw(index)
        assert joined[0] is case
        assert len({id(lesion) for lesion in joined}) == 4
        assert {lesion["type"] for lesion in joined} == {case["type"]}


def test_a_lesions_centre_is_found_in_the_prepared_scan(phantoms, tmp_path):
    cases = pretraining_cases(make_kinds(lesions=phantoms / "lesions/lesions.csv"))
    store = prepare_volumes(cases, (2, 2, 2), str(tmp_path / "cache"), 1, str(tmp_path / "report.csv"), 0.0, 2)
    landmarks = [case for case in cases if case["type"] == "4"]  # the brightest organ
    dataset = make_dataset(landmarks, store, weights={"semantic": 1})
    assert len(dataset) == len(landmarks) == 8
    for lesion in dataset.draw(0)[1]:
        volume = store.open(lesion["image"])
        x, y, z = np.round(store.voxel(lesion["image"], lesion["centre"])).astype(int)
        assert volume[0, x, y, z] > np.percentile(volume, 97)


def test_classes_too_small_for_a_sequence_are_left_out_with_a_word(cases, store, caplog):
    lesions = {name: [case for case in cases if case.get("type") == name] for name in "12"}
    with caplog.at_level(logging.WARNING):
        dataset = make_dataset(lesions["1"][:3] + lesions["2"][:4], store)
    assert [dataset.case(index)["type"] for index in range(len(dataset))] == ["2"] * 4
    assert "semantic cases of type 1 are left out: 3, and a sequence joins 4" in caplog.text


def test_cases_with_a_scan_that_could_not_be_prepared_are_left_out(cases, store):
    gone = {cases[0]["image"], next(case["image"][2] for case in cases if case["kind"] == "contrast")}
    partial = VolumeStore(store.spacing, store.cache_dir)
    partial.copies, partial.dtypes = store.copies, store.dtypes
    partial.grids = {path: grid for path, grid in store.grids.items() if path not in gone}
    dataset = make_dataset(cases, partial)
    assert len(dataset) == len(cases) - 2
    assert not any(path in entry["image"] for entry in dataset.data for path in gone)


def test_of_a_scan_with_many_channels_a_network_of_one_sees_one_at_a_time(tmp_path):
    array = np.random.default_rng(0).random((9, 9, 17, 3)).astype(np.float32)
    path = str(tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    store = VolumeStore((1, 1, 1), tmp_path / "cache")
    store.prepare(path)
    dataset = make_dataset([{"kind": "spatial", "image": path}], store, samples_per_epoch=20)
    copy = store.open(path)
    volumes = [dataset.open(path, np.random.default_rng(seed)) for seed in range(20)]
    seen = [int(np.argmax([np.array_equal(volume, copy[c : c + 1]) for c in range(3)])) for volume in volumes]
    assert set(seen) == {0, 1, 2}
    assert dataset[0]["image"].shape == (1, *SIZE)


def samples(dataset: SequenceDataset, num_workers: int = 0) -> dict[str, torch.Tensor]:
    batches = list(DataLoader(dataset, batch_size=4, num_workers=num_workers, collate_fn=join_samples))
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "prefix", "kind")}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_samples_of_all_kinds_are_the_same_whatever_the_workers(num_workers, cases, store):
    dataset = make_dataset(cases, store, samples_per_epoch=12)
    dataset.set_epoch(3)
    one, other = samples(dataset), samples(dataset, num_workers)
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def test_order_of_access_and_global_generators_change_nothing(cases, store):
    dataset = make_dataset(cases, store, samples_per_epoch=12)
    expected = samples(dataset)["image"]
    for index in (11, 0, 5, 11):
        np.random.seed(index)
        torch.manual_seed(index)
        assert torch.equal(dataset[index]["image"], expected[index])


def test_epochs_and_seeds_draw_other_samples_and_an_epoch_can_be_drawn_again(cases, store):
    drawn = []
    for seed, epoch in ((0, 1), (0, 2), (1, 1), (0, 1)):
        dataset = make_dataset(cases, store, seed=seed, samples_per_epoch=12)
        dataset.set_epoch(epoch)
        drawn.append(samples(dataset)["image"])
    assert torch.equal(drawn[0], drawn[3])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not any(torch.equal(drawn[one][index], drawn[other][index]) for index in range(12))


def test_the_files_of_every_sample_are_told(cases, store):
    dataset = make_dataset(cases, store, samples_per_epoch=9)
    for index, entry in enumerate(dataset.data):
        case, joined, _ = dataset.draw(index)
        count = 1 if case["kind"] == "spatial" else 4
        assert len(entry["image"].split(", ")) == count
        assert entry["image"].startswith(case["image"] if isinstance(case["image"], str) else case["image"][0])


def test_the_phantom_table_is_as_documented(phantoms):
    with (phantoms / "lesions/lesions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert Counter(row["type"] for row in rows) == {name: 8 for name in ("1", "2", "3", "4", "-1")}
    assert len({row["patient"] for row in rows}) == 4
    assert all((phantoms / "lesions" / row["file"]).is_file() for row in rows)
