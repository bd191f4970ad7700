"""The time of a training is told in words, from a step that was made."""

import pytest
from digar.data.task import parse_task
from digar.training.pace import duration, seconds_per_step


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (754, "13 min"), (3600, "1 h"), (12_000, "3 h 20 min"),
     (86_400, "1 day"), (190_800, "2 days 5 h")],
)  # fmt: skip
def test_a_duration_is_told_in_its_two_largest_units(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize("labels", [{1: "a"}, {}], ids=["fine-tuning", "pretraining"])
def test_a_step_of_the_tasks_network_takes_time(labels):
    size = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}
    plain = {"name": "T", "channels": ["MR"], "labels": labels, "spacing": 1, "crop": 16, "patch": 8}
    task = parse_task(plain | {"network": {"size": size}})
    assert seconds_per_step(task, batch_size=1) > 0
