"""The task file: what it may hold, errors that name the key, and what weights of one task do in another."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from digar.data.task import (
    Network,
    Task,
    TrainedWith,
    check_models,
    compare_with_pretraining,
    contradictions,
    find_task,
    model_file,
    parse_task,
    read_task,
    task_file,
    with_overrides,
    write_task,
)

CODE = "$__import__('os').system('touch ran')"
ODD_NAMES = (CODE, "@network", "%file", "no", "a: b", "# c", "two\nlines", "'", '"', "é\u2028", "{}", "- x", "\ud800")
PLAIN = {
    "name": "Liver",
    "channels": ["CT"],
    "labels": {1: "liver", 2: "tumour"},
    "spacing": [1.0, 1.0, 2.5],
    "crop": [32, 32, 16],
    "patch": 8,
    "intensity": [-100, 300],
    "trained_with": {"images": 3, "flips": [0]},
}
TASK = parse_task(PLAIN)


def write(folder: Path, **keys: object) -> Path:
    file = folder / "task.yaml"
    file.write_text(yaml.safe_dump({**PLAIN, **keys}))
    return file


CODES = {
    1: {"category": ["91723000", "SCT", "Anatomical Structure"], "type": [10200004, "SCT", "Liver"]},
    2: {
        "category": ["49755003", "SCT", "Lesion"],
        "type": ["108369006", "SCT", "Tumor"],
        "modifier": ["1", "99X", "a"],
    },
}


# Reading and writing


def test_what_is_written_is_read_again(tmp_path):
    classes = dataclasses.replace(TASK, labels={}, classes=("a", "b"), trained_with=None)
    for task in (TASK, classes, parse_task({**PLAIN, "codes": CODES})):
        write_task(task, tmp_path / "task.yaml", {"": "two\nlines", "spacing": "a reason"})
        assert read_task(tmp_path / "task.yaml") == task
    assert "# a reason\nspacing:" in (tmp_path / "task.yaml").read_text()


def test_labels_may_have_codes(tmp_path):
    task = read_task(write(tmp_path, codes=CODES))
    assert task.codes[1]["type"] == ("10200004", "SCT", "Liver")
    assert with_overrides(task, 1, 3).codes == task.codes
    assert with_overrides(task, 1, 2).codes == {}
    assert contradictions(TASK, task) == []
    for codes in ({3: CODES[1]}, {1: {"type": ["a", "b", "c"]}}, {1: {**CODES[1], "type": ["a", "b"]}}, [1], {1: None}):
        with pytest.raises(ValueError, match="task.yaml: codes: "):
            read_task(write(tmp_path, codes=codes))


def test_any_name_is_written_as_letters_and_read_again(tmp_path):
    odd = dataclasses.replace(TASK, name=CODE, channels=ODD_NAMES, labels=dict(enumerate(ODD_NAMES, start=1)))
    write_task(odd, tmp_path / "task.yaml", {"": CODE, "labels": "x\nname: y\u2028name: z\x85name: z"})
    assert read_task(tmp_path / "task.yaml") == odd


def test_the_outputs_are_the_background_and_every_value_up_to_the_greatest():
    assert (TASK.in_channels, TASK.num_classes, TASK.patch) == (1, 3, (8, 8, 8))
    assert dataclasses.replace(TASK, labels={1: "a", 4: "b"}).num_classes == 5
    assert dataclasses.replace(TASK, labels={}, classes=("a", "b")).num_classes == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"spacing": [1, 1]}, r"spacing: \[1, 1\] must be a list of 3"),
        ({"spacing": [0, 1, 1]}, r"spacing: \[0, 1, 1\] must be above 0"),
        ({"spacing": float("inf")}, "spacing: inf must be a number"),
        ({"crop": [8, 8, 8.5]}, "crop: .* must be a whole number above 0"),
        ({"patch": True}, "patch: True must be a whole number above 0"),
        ({"labels": ["liver"]}, "labels: .* must be values with their names"),
        ({"labels": {"1": "liver"}}, "labels: .*'1' must be a whole number above 0"),
        ({"labels": {0: "background"}}, "labels: .*0 is always the background"),
        ({"labels": {1: False}}, "labels: .*must be a name; put a number or yes and no in quotes"),
        ({"labels": {1: "a", 2: "a"}}, "labels: .*two labels have the same name"),
        ({"labels": {70000: "a"}}, "labels: 70000 is too large"),
        ({"channels": "CT"}, "channels: 'CT' must be a list"),
        ({"intensity": "window"}, r"intensity: 'window' must be percentiles, or a window: \[low, high\]"),
        ({"intensity": [300, -100]}, "intensity: .*the first below the second"),
        ({"network": {"heads": 3}}, "network.heads is not a key of a task; the keys are size, attention"),
        ({"network": {"size": {"num_layers": 0}}}, "network.size: .* must be a whole number above 0"),
        ({"training": {"validation_share": 2}}, "training.validation_share: 2 must be a share"),
        ({"trained_with": {"flips": [0]}}, "trained_with.images is missing"),
        ({"spacings": 1}, "spacings is not a key of a task"),
        ({"classes": ["a"]}, "labels and classes cannot both be given"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_key(keys, message, tmp_path):
    file = write(tmp_path, **keys)
    with pytest.raises(ValueError, match=f"^{file}: {message}"):
        read_task(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a task must hold keys"),
        ("[1, 2]", "a task must hold keys"),
        ("name: [", "is not valid YAML"),
        ("name: !!python/object/apply:os.system ['touch ran']", "is not valid YAML"),
        ("labels: {1: a, 1: b}", "1 stands there twice"),
        ("name: x", "channels is missing"),
        (b"\xff\xfe\x00x", "is not valid YAML"),
        ("? [1, 2]\n: 3", "is not a key|is not valid YAML"),
    ],
)
def test_a_file_that_is_no_task_is_refused_by_name(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "task.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_task(file)
    assert str(file) in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]


# A model is a folder


def test_a_model_is_its_folder_or_its_weights(tmp_path):
    for name in ("model.pt", "other.pt"):
        (tmp_path / name).touch()
    assert model_file(tmp_path) == model_file(tmp_path / "model.pt") == tmp_path / "model.pt"
    assert task_file(tmp_path) == task_file(tmp_path / "other.pt") == tmp_path / "task.yaml"


def test_a_folder_with_other_weights_alone_is_their_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        model_file(tmp_path)
    (tmp_path / "pretrained.pt").touch()
    assert model_file(tmp_path) == tmp_path / "pretrained.pt"
    (tmp_path / "second.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"several weights \(pretrained.pt, second.pt\)"):
        model_file(tmp_path)


def test_the_task_that_is_given_comes_before_those_beside_weights(tmp_path):
    for name in ("given", "first", "second"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, name=name)
    places = [None, tmp_path / "first/model.pt", tmp_path / "second"]
    assert find_task(tmp_path / "given", places).name == "given"
    assert find_task(tmp_path / "given/task.yaml", places).name == "given"
    assert find_task(None, places).name == "first"
    (tmp_path / "first/task.yaml").unlink()
    assert find_task(None, places).name == "second"


def test_without_a_task_it_is_said_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no weights at"):
        find_task(None, [tmp_path / "model.pt"])
    (tmp_path / "model.pt").touch()
    with pytest.raises(FileNotFoundError, match="there is no task.yaml beside .*model.pt.*pass --task"):
        find_task(None, [tmp_path / "model.pt"])
    with pytest.raises(FileNotFoundError, match="there is no task file .*missing.yaml"):
        find_task(tmp_path / "missing.yaml")


def test_weights_without_a_task_are_taken_for_the_defaults_with_a_warning(tmp_path, caplog):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model.pt").touch()
    model = tmp_path / "shipped"
    model.mkdir()
    write_task(TASK, model / "task.yaml")
    assert find_task(None, [tmp_path / "other/model.pt"], default=model) == TASK
    assert f"there is no task.yaml beside {tmp_path}/other/model.pt: it is taken for weights of the task" in caplog.text
    with pytest.raises(FileNotFoundError, match="there are no weights at"):
        find_task(None, [tmp_path / "absent.pt"], default=model)


# Overrides


def test_overrides_replace_what_the_task_says_and_drop_names_that_no_longer_fit():
    same = with_overrides(TASK, in_channels=1, num_classes=3, crop=TASK.crop, attention="full+sequence")
    assert same == TASK
    other = with_overrides(TASK, in_channels=2, num_classes=2, spacing=2, size="base")
    assert other.channels == ("channel 0", "channel 1")
    assert other.labels == {1: "label 1"}
    assert other.spacing == (2.0, 2.0, 2.0)
    assert other.network == Network(size="base")
    classes = with_overrides(TASK, in_channels=1, num_classes=2, classes=["a", "b"])
    assert (classes.labels, classes.classes) == ({}, ("a", "b"))


def test_an_override_of_a_wrong_kind_is_refused_by_its_key():
    with pytest.raises(ValueError, match=r"spacing: \[1, 1\] must be a list of 3"):
        with_overrides(TASK, in_channels=1, spacing=[1, 1])


# Weights of one task in another


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"labels": {1: "tumour", 2: "liver"}}, "labels: trained for 1 liver, 2 tumour, not 1 tumour, 2 liver: values"),
        ({"labels": {1: "liver"}}, "labels: trained for 1 liver, 2 tumour, not 1 liver"),
        ({"channels": ("CT", "PET")}, "channels: trained for CT, not CT, PET: the network takes another number"),
        ({"spacing": (1.0, 1.0, 3.5)}, "spacing: trained for 1 x 1 x 2.5 mm, not 1 x 1 x 3.5 mm: structures"),
        ({"patch": (4, 4, 4)}, "patch: trained for 8 x 8 x 8, not 4 x 4 x 4"),
        (
            {"network": Network(attention="full", dilation=3)},
            "attention full.sequence.*, not .*full, dilation 3",
        ),
        ({"intensity": "percentiles"}, "intensity: trained for the window -100 to 300, not percentiles: tissues"),
        ({"intensity": (-1000, 300)}, "not the window -1000 to 300"),
    ],
)
def test_what_makes_masks_wrong_is_refused_with_what_it_would_do(keys, message, tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        check_models([tmp_path / "model.pt"], dataclasses.replace(TASK, **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"spacing": (1.1, 1.0, 2.5)}, "slightly another size"), ({"crop": (64, 32, 16)}, "masks may be worse")],
)
def test_what_may_make_masks_worse_is_warned_of(keys, message, tmp_path, caplog):
    write(tmp_path)
    check_models([tmp_path / "model.pt"], dataclasses.replace(TASK, **keys))
    assert message in caplog.text


def test_the_same_task_is_silent(tmp_path, caplog):
    write(tmp_path)
    rounded = dataclasses.replace(TASK, spacing=(1.0, 1.0, 2.501), trained_with=None)
    check_models([tmp_path / "model.pt"], rounded, mirroring=[0])
    assert caplog.text == ""


def test_mirroring_along_an_axis_that_was_not_mirrored_in_training_is_refused(tmp_path):
    write(tmp_path)
    check_models([tmp_path], TASK, mirroring=[0])
    with pytest.raises(ValueError, match=r"mirroring: .*without mirrored images along axes \[1, 2\]"):
        check_models([tmp_path], TASK, mirroring=[0, 1, 2])
    (other,) = contradictions(dataclasses.replace(TASK, trained_with=TrainedWith(3)), TASK, [0])
    assert other.wrong


def test_weights_whose_training_nobody_knows_are_warned_of(tmp_path, caplog):
    check_models([tmp_path / "model.pt"], TASK)
    assert "nothing tells whether these weights were trained for this task" in caplog.text
    write_task(dataclasses.replace(TASK, trained_with=None), tmp_path / "task.yaml")
    check_models([tmp_path / "model.pt"], TASK, mirroring=[0])
    assert "nothing tells whether the network was trained with mirrored images" in caplog.text


def test_a_task_is_written_as_plain_values():
    assert isinstance(TASK, Task)
    assert json.dumps(dataclasses.asdict(TASK))


def test_a_training_that_differs_from_its_pretraining_is_warned_of(tmp_path, caplog):
    write(tmp_path)
    compare_with_pretraining(tmp_path / "pretrained.pt", dataclasses.replace(TASK, crop=(16, 16, 16), labels={1: "x"}))
    compare_with_pretraining(None, TASK)
    compare_with_pretraining(tmp_path / "elsewhere/pretrained.pt", TASK)
    assert caplog.text == ""
    compare_with_pretraining(tmp_path / "pretrained.pt", dataclasses.replace(TASK, network=Network(attention="full")))
    assert "attention full+sequence" in caplog.text
