"""The example runs and says what the documentation shows."""

import math

import pytest

from examples.build_models import main


def run(capsys: pytest.CaptureFixture, *options: str) -> str:
    main(["--size", "tiny", "--image", "64", "--finetune-image", "32", *options])
    return capsys.readouterr().out


def test_both_models_run_and_print_their_shapes(capsys) -> None:
    printed = run(capsys)
    assert "(1, 66, 4096): start, 64 patches, end" in printed  # predicted pixels of 16^3 patches
    assert "(1, 2, 32, 32, 32)" in printed  # logits of two classes
    assert "behind a prefix of 16 patches" in printed


def test_each_model_has_a_gate_of_its_own(capsys) -> None:
    printed = run(capsys, "--gate-init", "0.01", "--finetune-gate-init", "0.2")
    pretraining, finetuning = printed.split("Fine-tuning")
    assert "6 gates, dilated share 0.0100 to 0.0100" in pretraining
    assert "6 gates, dilated share 0.2000 to 0.2000" in finetuning


def test_score_counts_follow_from_the_grid_and_the_dilation(capsys) -> None:
    printed = run(capsys, "--dilation", "4")
    tokens, ends = 4**3 + 2, 2
    in_groups = 4**3 * (4**3 // 4**3 + ends) + ends * tokens
    assert f"{tokens**2:,}" in printed
    assert f"{math.ceil(tokens / 4) ** 2:,}" in printed
    assert f"{in_groups:,}" in printed


def test_an_impossible_dilation_is_refused_with_both_numbers(capsys) -> None:
    with pytest.raises(ValueError, match="sequence dilation 66 must be from 1 to 65"):
        run(capsys, "--dilation", "66")
