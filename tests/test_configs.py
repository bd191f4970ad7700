"""The configs fit each other, and the metadata tells what they hold."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from digar.data.task import read_task
from monai.bundle import ConfigParser

from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
WORKFLOWS = ("train.json", "pretrain.yaml", "inference.json", "evaluate.json", "classify.json", "evaluate_classes.json")
CLASSIFICATION = {"classes", "turn_probability"}  # ids that classify.json has beyond train.json
EVALUATION = {  # ids that an evaluation has beyond its training
    "part", "worst_pictures", "evaluated_cases", "dataset", "dataloader", "handlers", "evaluator", "key_metric",
    "progress",
}  # fmt: skip
SCHEMA = json.loads((ROOT / "tests/metadata_schema.json").read_text())
METADATA = json.loads((CONFIGS / "metadata.json").read_text())
ABSOLUTE = re.compile(r"^(/|~|[A-Za-z]:[\\/])|(?<!@bundle_root \+ )['\"](/|~|[A-Za-z]:[\\/])\w+/")
MACHINE = re.compile(r"/(home|root|work|tmp|mnt|Users|scratch|media)/")


def load(name: str) -> dict:
    return ConfigParser.load_config_file(str(CONFIGS / name))


def strings(value: object) -> Iterator[str]:
    """Every string in a config, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


# One task in all workflows

FROM_TASK = (  # ids that hold what the task says unless the command line says otherwise
    "in_channels", "num_classes", "spacing", "roi_size", "patch_size", "network_size", "attention", "dilation", "head",
    "feature_size", "intensity_rule",
)  # fmt: skip


@pytest.mark.parametrize("name", ["train.json", "inference.json", "pretrain.yaml"])
def test_the_numbers_of_the_network_come_from_the_task(name):
    config = load(name)
    values = {key: config[key] for key in FROM_TASK if key in config}
    assert len(values) >= 6
    assert all(str(value).startswith("$@task_def.") for value in values.values())


@pytest.mark.parametrize("key", ["overlap", "window_batch", "foreground", "mirroring", "largest_component", "inferer"])
def test_evaluation_and_inference_see_the_same_windows(key):
    assert load("train.json")[key] == load("inference.json")[key]
    assert key not in load("evaluate.json")


def test_evaluation_and_inference_bring_volumes_in_and_masks_out_in_one_way():
    """Beyond it inference takes 4D volumes, and gives labels other numbers."""
    trained, inferred = load("train.json"), load("inference.json")
    evaluated = {**trained["load"], **load("evaluate.json")["+load"]}
    assert evaluated | {"volumes_4d": "@volumes_4d", "keys": "image"} == inferred["load"]
    assert trained["keys"] == ["image", "label"]
    for key in ("preprocessing", "grid", "intensity"):
        assert trained[key] == inferred[key]
    *inverting, remapping = inferred["postprocessing"]["transforms"]
    assert trained["postprocessing"]["transforms"] == inverting
    assert remapping["_target_"] == "digar.inference.masks.RemapLabelsd"
    assert not {"preprocessing", "postprocessing", "intensity", "load"} & set(load("evaluate.json"))


def test_training_and_inference_declare_the_same_network():
    training, inference = load("train.json"), load("inference.json")
    for key in (*FROM_TASK, "intensity", "run_task"):
        assert training[key] == inference[key], key
    assert training["network_def"] == inference["network_def"] | {"gate_init": "@gate_init"}


@pytest.mark.parametrize("overlay", ["base.json", "exported.json"])
def test_every_id_of_an_overlay_exists_in_a_workflow(overlay):
    parsers = [ConfigParser(load(name)) for name in WORKFLOWS]
    unknown = [name for name in load(overlay) if not any(name in parser for parser in parsers)]
    assert unknown == []


def test_every_id_that_a_config_is_laid_over_exists_below_it():
    for files in (["train.json", "classify.json"], ["train.json", "classify.json", "evaluate_classes.json"]):
        names = {name.lstrip("+") for name in load(files[-1])}
        below = set(ConfigParser.load_config_files([str(CONFIGS / file) for file in files[:-1]]))
        new = {"classify.json": CLASSIFICATION}.get(files[-1], EVALUATION)
        assert names - below == new


# Paths


@pytest.mark.parametrize("file", sorted(CONFIGS.iterdir()), ids=lambda file: file.name)
def test_no_config_holds_an_absolute_path(file):
    text = file.read_text()
    assert MACHINE.search(text) is None
    if file.suffix in (".json", ".yaml"):
        assert [found for found in strings(load(file.name)) if ABSOLUTE.search(found)] == []


@pytest.mark.parametrize("path", ["/data/x", "~/x", "C:\\x", "D:/x", "$'/data/' + @name", '$open("/etc/hosts")'])
def test_the_search_for_absolute_paths_finds_them(path):
    assert ABSOLUTE.search(path)


# Metadata


def test_the_metadata_at_the_root_is_a_link_to_the_configs_one():
    link = ROOT / "metadata.json"
    assert link.is_symlink()
    assert link.readlink() == Path("configs/metadata.json")


def test_the_metadata_holds_what_the_model_zoo_requires():
    validator = jsonschema.Draft201909Validator(SCHEMA)
    assert [error.message for error in validator.iter_errors(METADATA)] == []


@pytest.mark.parametrize("key", SCHEMA["required"])
def test_metadata_without_a_required_field_is_not_valid(key):
    without = {name: value for name, value in METADATA.items() if name != key}
    with pytest.raises(jsonschema.ValidationError, match=f"'{key}' is a required property"):
        jsonschema.validate(without, SCHEMA)


@pytest.mark.parametrize("direction", ["inputs", "outputs"])
@pytest.mark.parametrize("key", SCHEMA["$defs"]["tensor"]["required"])
def test_metadata_without_a_field_of_a_tensor_is_not_valid(key, direction):
    without = copy.deepcopy(METADATA)
    for tensor in without["network_data_format"][direction].values():
        del tensor[key]
    with pytest.raises(jsonschema.ValidationError, match=f"'{key}' is a required property"):
        jsonschema.validate(without, SCHEMA)


def test_the_changelog_tells_of_the_version():
    assert METADATA["version"] in METADATA["changelog"]
    assert METADATA["changelog"][METADATA["version"]]


def test_the_metadata_tells_what_the_shipped_task_says():
    task = read_task(ROOT / "models/task.yaml")
    image, prediction = (METADATA["network_data_format"][key] for key in ("inputs", "outputs"))
    assert image["image"]["num_channels"] == task.in_channels
    assert prediction["pred"]["num_channels"] == task.num_classes
    assert image["image"]["spatial_shape"] == prediction["pred"]["spatial_shape"] == list(task.crop)
    named = {str(value): name for value, name in task.labels.items()}
    assert prediction["pred"]["channel_def"] == {"0": "background"} | named


@pytest.mark.parametrize("name", ["model.pt", "task.yaml"])
def test_the_default_model_is_a_copy_of_the_hippocampus_model(name):
    assert (ROOT / "models" / name).read_bytes() == (ROOT / "models/hippocampus" / name).read_bytes()


def test_every_channel_of_the_metadata_has_a_name():
    data_format = METADATA["network_data_format"]
    for tensor in (*data_format["inputs"].values(), *data_format["outputs"].values()):
        assert list(tensor["channel_def"]) == [str(channel) for channel in range(tensor["num_channels"])]


def test_the_metadatas_versions_are_those_that_ci_installs():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    current = [line.split(";")[0] for line in lines if "==" in line and not line.endswith('< "3.11"')]
    pinned = dict(line.split("==") for line in current)
    named = {name: METADATA[key] for name, key in (("monai", "monai_version"), ("torch", "pytorch_version"))}
    named |= {"numpy": METADATA["numpy_version"], **METADATA["required_packages_version"]}
    assert {name: pinned.get(name) for name in named} == named
    requirements = (ROOT / "requirements.txt").read_text()
    assert set(re.findall(r"^[\w-]+", requirements, re.MULTILINE)) == set(named)


@pytest.mark.parametrize("name", ["train.json", "inference.json", "pretrain.yaml"])
def test_the_base_network_is_one_overlay_away(name):
    files = [str(ROOT / "configs" / file) for file in (name, "base.json")]
    network = ConfigParser(ConfigParser.load_config_files(files)).get_parsed_content("network_def")
    assert network.backbone.hidden_size == 768
    assert network.backbone.grid_size == [8, 8, 8]
    assert len(network.backbone.gate_shares()) == 12
