"""Largest components, other label values, volumes."""

import dataclasses

import numpy as np
import pytest
import torch
from digar.data.task import parse_task
from digar.inference.masks import LargestComponentd, RemapLabelsd, volumes_ml, written_codes, written_labels
from monai.data import MetaTensor


def test_of_each_label_the_largest_component_is_kept():
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[0:3, 0:3, 0:3], mask[6:8, 6:8, 6:8], mask[9, 9, 9] = 1, 1, 2
    mask[3, 3, 3] = 1  # touches the first cube at a corner
    kept = LargestComponentd("pred")({"pred": MetaTensor(torch.from_numpy(mask)[None])})["pred"][0].numpy()
    assert (kept == 1).sum() == 28
    assert not kept[6:8, 6:8, 6:8].any()
    assert kept[9, 9, 9] == 2


def test_labels_get_the_values_asked_for_and_others_stay():
    mask = MetaTensor(torch.tensor([[[[0, 1, 2, 3]]]], dtype=torch.uint8))
    mapped = RemapLabelsd("pred", {"1": 17, 2: 1})({"pred": mask})["pred"]
    assert mapped.flatten().tolist() == [0, 17, 1, 3]
    assert mapped.dtype == torch.uint8
    assert RemapLabelsd("pred", {1: 300})({"pred": mask})["pred"].flatten().tolist() == [0, 300, 2, 3]
    assert RemapLabelsd("pred", {})({"pred": mask})["pred"] is mask
    with pytest.raises(ValueError, match="from 0 to 65535"):
        RemapLabelsd("pred", {1: -1})


@pytest.mark.parametrize(
    ("names", "mapping", "expected"),
    [
        ({1: "a", 2: "b"}, {}, {1: "a", 2: "b"}),
        ({1: "a", 2: "b"}, {"1": 17}, {2: "b", 17: "a"}),
        ({1: "a", 2: "b"}, {1: 5, 2: 5}, {5: "a + b"}),
        ({1: "a", 2: "b"}, {1: 0}, {2: "b"}),
        ({2: "b"}, {}, {1: "label 1", 2: "b"}),
    ],
)
def test_written_values_have_names(names, mapping, expected):
    task = parse_task({"name": "T", "channels": ["MR"], "labels": names, "spacing": 1, "crop": 8, "patch": 4})
    assert written_labels(task, mapping) == expected


def test_volumes_are_in_millilitres():
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[:5] = 1
    assert volumes_ml(mask, np.diag([2.0, -2, 2, 1]), {1: "a", 2: "b"}) == {"a": 4.0, "b": 0.0}


def test_codes_follow_their_labels_to_the_written_values():
    one, two, three = ({"type": (str(number), "SCT", "a")} for number in range(3))

    labels = {1: "a", 2: "b", 3: "c"}
    task = parse_task({"name": "T", "channels": ["MR"], "labels": labels, "spacing": 1, "crop": 8, "patch": 4})

    def written(codes: dict, mapping: dict) -> dict:
        return written_codes(dataclasses.replace(task, codes=codes), mapping)

    assert written({1: one, 2: two}, {}) == {1: one, 2: two}
    assert written({1: one, 2: two, 3: three}, {1: 7, 2: 3, 3: 0}) == {7: one, 3: two}
    assert written({1: one, 2: two}, {1: 3}) == {2: two}  # 1 and 3 are one value now
