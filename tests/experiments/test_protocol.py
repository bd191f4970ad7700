"""Plans: what they define, who is scored, and that they fit the configs they replace ids in."""

import pytest
import yaml
from monai.bundle import ConfigParser

from benchmarks.experiments.patients import Case, draw_labelled, split_patients
from benchmarks.experiments.protocol import Split, names, read_protocol
from tests import conftest
from tests.experiments.test_runs import PLAN

COHORT = [Case(f"{p}_{phase}", {}, f"p{p:02d}", "abcde"[p % 5]) for p in range(75) for phase in ("ed", "es")]


def groups_of(patients: list[str]) -> list[int]:
    return [sum(int(p[1:]) % 5 == group for p in patients) for group in range(5)]


def test_patients_are_split_class_by_class_and_never_stand_in_two_parts() -> None:
    parts = split_patients(COHORT, Split(seed=0, score=15, tune=10))
    assert (groups_of(parts.score), groups_of(parts.tune), groups_of(parts.learn)) == ([3] * 5, [2] * 5, [10] * 5)
    assert len({*parts.score, *parts.tune, *parts.learn}) == 75
    assert parts == split_patients(COHORT, Split(seed=0, score=15, tune=10))
    assert parts != split_patients(COHORT, Split(seed=1, score=15, tune=10))


def test_in_folds_every_patient_is_scored_once() -> None:
    parts = [split_patients(COHORT, Split(seed=0, folds=5, tune=5), fold) for fold in range(5)]
    assert sorted(p for part in parts for p in part.score) == sorted({case.patient for case in COHORT})
    assert all(groups_of(part.score) == [3] * 5 for part in parts)
    assert all(not {*part.score} & {*part.learn, *part.tune} for part in parts)


def test_a_draw_of_few_patients_is_part_of_a_larger_one_and_draws_differ() -> None:
    split = Split(score=15, tune=10)
    three, six = (draw_labelled(COHORT, split, number, draw=1) for number in (3, 6))
    assert three == six[:3]
    assert min(groups_of(six)) == 1
    assert set(six) != set(draw_labelled(COHORT, split, 6, draw=2))
    assert set(draw_labelled(COHORT, split, None, draw=0)) == set(split_patients(COHORT, split).learn)


def test_in_folds_a_draw_is_a_fold() -> None:
    split = Split(folds=5, tune=10)
    for fold in range(5):
        assert set(draw_labelled(COHORT, split, None, fold)) == set(split_patients(COHORT, split, fold).learn)


def test_a_plan_that_uses_what_it_does_not_define_is_refused(tmp_path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "runs": [{"labels": 2, "arms": ["scratsh"]}]}))
    with pytest.raises(ValueError, match="plan uses scratsh, which it does not define"):
        read_protocol("plan", tmp_path)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "stepps": 3}))
    with pytest.raises(TypeError, match="stepps"):
        read_protocol("plan", tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no experiment plam; there are plan"):
        read_protocol("plam", tmp_path)


def test_a_pretraining_that_would_see_scored_patients_is_refused(tmp_path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "split": {"folds": 5, "tune": 1}}))
    with pytest.raises(ValueError, match="plan: next would see the patients that other folds score"):
        read_protocol("plan", tmp_path)


@pytest.mark.parametrize("name", names())
def test_what_a_job_needs_stands_before_it(name) -> None:
    jobs = list(read_protocol(name).jobs.values())
    for place, job in enumerate(jobs):
        assert set(job.needs) <= {before.name for before in jobs[:place]}


@pytest.mark.parametrize("name", names())
def test_a_plan_replaces_ids_that_its_configs_have(name) -> None:
    protocol = read_protocol(name)
    replaced = [(plan.config, plan.ids) for plan in protocol.pretraining.values()]
    replaced += [(protocol.config, {**protocol.ids, **arm.ids}) for arm in protocol.arms.values()]
    for files, ids in replaced:
        config = ConfigParser(ConfigParser.load_config_files([str(conftest.ROOT / file) for file in files]))
        assert [key for key in ids if key.replace("#", "::") not in config] == []
