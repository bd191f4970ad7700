"""The command line: mistyped options are refused before anything starts, and errors end in their first cause."""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from digar.cli.command import (
    finish_command,
    is_bundle_command,
    prepare_command,
    refuse_unknown_options,
)
from digar.cli.failure import explain_error
from digar.volumes.reading import VolumeError
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from tests.conftest import ROOT

PROGRAM = "/usr/lib/python3/site-packages/monai/bundle/__main__.py"
CONFIG = {
    "dataset_dir": "data",
    "max_epochs": 1,
    "spacing": [1.0, 1.0, 1.0],
    "train": {"trainer": {"max_epochs": 1}, "handlers": [{"log": True}]},
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "train.json"
    file.write_text(json.dumps(CONFIG))
    return str(file)


@pytest.fixture
def overlay(tmp_path: Path) -> str:
    file = tmp_path / "small.yaml"
    file.write_text("roi_size: [16, 16, 16]\ntrain#trainer#amp: true\n")
    return str(file)


def refusal(*options: str) -> str | None:
    """What the command line is refused with, or None."""
    try:
        refuse_unknown_options([PROGRAM, "run", "training", *options])
    except ValueError as error:
        return str(error)
    return None


# Which options there are


def test_a_mistyped_option_is_refused_with_its_file_and_the_nearest_id(config):
    message = refusal("--config_file", config, "--dataset_dri", "/data")
    assert message.startswith(f"option --dataset_dri is neither an id of {config} nor an option of the command")
    assert message.endswith("did you mean --dataset_dir?")


def test_a_mistyped_option_of_the_command_is_refused_with_the_right_one(config):
    assert refusal("--config_file", config, "--meta_flie", "m.json").endswith("did you mean --meta_file?")


@pytest.mark.parametrize("option", ["--max_epochs=5", "--dataset_dir=/a=b", "--spacing=[2.0,2.0,2.0]"])
def test_the_form_with_an_equals_sign_is_understood(option, config):
    assert refusal(f"--config_file={config}", option) is None


def test_a_mistyped_option_with_an_equals_sign_is_refused(config):
    message = refusal(f"--config_file={config}", "--max_epoch=5")
    assert message.startswith("option --max_epoch is")
    assert message.endswith("did you mean --max_epochs?")


@pytest.mark.parametrize(
    "option",
    ["train#trainer#max_epochs", "train::trainer::max_epochs", "train#trainer#amp", "train#handlers#0", "train#new"],
)
def test_parts_of_an_id_may_be_set_or_added_where_their_parent_exists(option, config):
    assert refusal("--config_file", config, f"--{option}", "1") is None


@pytest.mark.parametrize("option", ["trian#trainer#amp", "train#traner#amp", "optimizer#lr"])
def test_a_part_of_an_unknown_parent_is_refused(option, config):
    assert refusal("--config_file", config, f"--{option}", "1").startswith(f"option --{option} is neither")


@pytest.mark.parametrize("form", ["['{}','{}']", "['{}', '{}']", '["{}","{}"]', "{},{}", "('{}','{}')"])
def test_ids_of_all_config_files_are_known(form, config, overlay):
    files = form.format(config, overlay)
    assert refusal("--config_file", files, "--roi_size", "[8,8,8]", "--train#trainer#amp", "False") is None
    message = refusal("--config_file", files, "--roi_sise", "[8,8,8]")
    assert config in message
    assert overlay in message
    assert message.endswith("did you mean --roi_size?")


def test_an_id_of_a_file_that_is_not_given_is_refused(config):
    assert refusal("--config_file", config, "--roi_size", "[8,8,8]") is not None


@pytest.mark.parametrize(
    "option", ["run_id", "init_id", "final_id", "meta_file", "logging_file", "tracking", "args_file"]
)
def test_options_of_the_command_itself_are_accepted(option, config, tmp_path):
    value = tmp_path / "arguments.json"
    value.write_text("{}")
    assert refusal("--config_file", config, f"--{option}", str(value)) is None


def test_config_files_named_in_an_arguments_file_are_read(config, tmp_path):
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"config_file": config}))
    assert refusal("--args_file", str(arguments), "--max_epochs", "3") is None
    assert refusal("--args_file", str(arguments), "--max_epoch", "3").endswith("did you mean --max_epochs?")


def test_override_is_no_option(config):
    assert refusal("--config_file", config, "--override", "1") is not None


def test_values_and_options_without_a_value_are_no_options(config):
    assert refusal("--config_file", config, "--train#new", "-1", "--dataset_dir", "--train#newer") is None


@pytest.mark.parametrize(
    ("files", "options"),
    [
        (["train.json"], ["--dataset_dir", "--pretrained", "--train#trainer#amp", "--network_def#head"]),
        (["train.json", "multi_gpu_train.json", "base.json"], ["--label_ratio", "--device"]),
        (["train.json", "evaluate.json"], ["--part", "--weights_file"]),
        (["pretrain.yaml", "base.json"], ["--slab_offset", "--norm_pixel"]),
        (["inference.json"], ["--overlap", "--output_dir", "--probabilities", "--inferer#window_batch"]),
    ],
)
def test_options_of_the_shipped_configs_are_accepted(files, options):
    names = ",".join(f"'{ROOT}/configs/{name}'" for name in files)
    words = [word for option in options for word in (option, "$1")]
    assert refusal("--config_file", f"[{names}]", *words) is None


def test_a_value_that_an_option_cannot_take_is_refused(config):
    assert refusal("--config_file", config, "--max_epochs", "two") == (
        "--max_epochs two: it takes a whole number from 1 on"
    )
    assert refusal("--config_file", config, "--spacing", "[0,1,1]").startswith("--spacing [0, 1, 1]: it takes three")


# When options are checked


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([PROGRAM, "run", "training"], True),
        (["C:\\python\\monai\\bundle\\__main__.py", "run"], True),
        ([PROGRAM, "verify_metadata"], False),
        ([PROGRAM], False),
        (["/usr/bin/pytest", "run"], False),
        ([], False),
    ],
)
def test_only_the_bundles_run_is_a_command(arguments: Sequence[str], expected):
    assert is_bundle_command(arguments) is expected


@pytest.fixture
def restored_hook(monkeypatch: pytest.MonkeyPatch) -> object:
    """The interpreter's exception hook, put back after the test."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return sys.excepthook


def test_as_a_command_options_are_checked_and_errors_explained(restored_hook, config, monkeypatch):
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--config_file", config, "--dataset_dri", "x"])
    with pytest.raises(ValueError, match="did you mean --dataset_dir"):
        prepare_command()
    assert sys.excepthook is explain_error


def test_as_a_library_nothing_is_checked_or_changed(restored_hook, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook.py", "--config_file", "absent.json", "--dataset_dri", "x"])
    prepare_command()
    assert sys.excepthook is restored_hook


@pytest.mark.parametrize(("failed", "code"), [(0, None), (2, 3)])
def test_a_command_over_many_files_ends_with_3_if_some_failed(failed, code, monkeypatch):
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run"])
    if code is None:
        finish_command(failed)
    else:
        with pytest.raises(SystemExit) as caught:
            finish_command(failed)
        assert caught.value.code == code


def test_as_a_library_nothing_ends_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook.py", "run"])
    finish_command(2)


# Errors


def raised_in_a_config(expression: str) -> Exception:
    """The error that MONAI's parser makes of one in a config."""
    parser = ConfigParser({"inner": {"_target_": "pathlib.Path", "_x": "$" + expression}, "outer": "$@inner"})
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever MONAI raises
        parser.get_parsed_content("outer")
    return caught.value


def explained(error: BaseException, capsys: pytest.CaptureFixture) -> list[str]:
    explain_error(type(error), error, error.__traceback__)
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.strip().splitlines()


def test_an_error_is_one_line_without_monais_wrapping(capsys, monkeypatch):
    monkeypatch.delenv("DIGAR_DEBUG", raising=False)
    error = raised_in_a_config("open('/absent.json')")
    assert explained(error, capsys) == ["ERROR FileNotFoundError: [Errno 2] No such file or directory: '/absent.json'"]


def test_the_message_that_names_file_and_cure_is_not_hidden_by_the_error_below_it(capsys):
    error = ValueError("dataset.json is not valid JSON: correct it")
    error.__cause__ = json.JSONDecodeError("Expecting property name", "{", 1)
    assert explained(error, capsys)[-1] == "ERROR ValueError: dataset.json is not valid JSON: correct it"


def broken_item(index: int) -> int:
    raise VolumeError("scan.nii.gz", "is empty: leave it out")


def test_an_error_in_a_data_worker_is_told_as_it_was_raised_there(capsys):
    loader = DataLoader(Dataset([0, 1], transform=Compose([broken_item])), num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    assert explained(caught.value, capsys)[-1] == "ERROR VolumeError: scan.nii.gz: is empty: leave it out"


def test_the_traceback_is_shown_where_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("DIGAR_DEBUG", "1")
    lines = explained(raised_in_a_config("1 / 0"), capsys)
    assert lines[-1] == "ERROR ZeroDivisionError: division by zero"
    assert "Traceback (most recent call last):" in lines


def test_a_commands_log_file_holds_the_traceback_and_what_was_logged(restored_hook, config, tmp_path, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--config_file", config])
    prepare_command(tmp_path / "run")
    logging.getLogger("ignite").warning("Engine run resuming from iteration 0, epoch 0")
    logging.getLogger("digar").warning("a slice is missing")
    error = raised_in_a_config("1 / 0")
    explain_error(type(error), error, error.__traceback__)
    root.handlers[-1].close()
    written = (tmp_path / "run/log.txt").read_text()
    assert "WARNING - a slice is missing" in written
    assert "ZeroDivisionError: division by zero" in written
    assert "resuming" not in written


def test_ctrl_c_is_one_line_without_a_traceback(capsys):
    explain_error(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err.split("\n") == ["", "stopped by Ctrl-C", ""]
