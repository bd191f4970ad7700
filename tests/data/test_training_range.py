"""The range of the training images in the metadata."""

import json

import pytest
from digar.data.training_range import main, read_training_range, with_training_range

from tests.conftest import ROOT

METADATA = (ROOT / "configs/metadata.json").read_text(encoding="utf-8")


def test_another_range_leaves_the_rest_of_the_file_as_it_was():
    found = json.loads(METADATA)["training_range"]
    assert with_training_range(METADATA, found) == METADATA
    other = with_training_range(METADATA, {"weights": "abc", "images": 3})
    assert json.loads(other) == json.loads(METADATA) | {"training_range": {"weights": "abc", "images": 3}}
    assert other.startswith(METADATA[: METADATA.index('"training_range"')])


@pytest.mark.parametrize("metadata", ['{"a": [1, 2]}\n', '{\n    "training_range": null,\n    "b": {"c": "}"}\n}\n'])
def test_a_range_is_added_where_there_is_none(metadata):
    found = {"weights": "abc", "images": 3}
    assert json.loads(with_training_range(metadata, found)) == json.loads(metadata) | {"training_range": found}


def test_the_command_names_the_weights_it_was_written_for(task, tmp_path):
    metadata, weights = tmp_path / "metadata.json", tmp_path / "model.pt"
    metadata.write_text(METADATA, encoding="utf-8")
    weights.write_bytes(b"weights")
    main(["--dataset_dir", str(task), "--weights", str(weights), "--metadata", str(metadata)])
    assert read_training_range(metadata, weights)["images"] == 5
    weights.write_bytes(b"others")
    assert read_training_range(metadata, weights) is None
