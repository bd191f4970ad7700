"""An experiment as it was planned, read from its YAML file, and the jobs that follow from the plan."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

PROTOCOLS = Path(__file__).parent / "protocols"
TASKS = ("segmentation", "classification", "features")


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", text)


@dataclass(frozen=True)
class Pretraining:
    """A pretraining: the config files in the bundle, the ids replaced in them, and its length in steps.

    ``data``: a folder to learn from instead of the experiment's own patients, the scored ones left out. ``of``: the
    experiment that has a pretraining of this name, whose weights are taken; its split must be this one's.
    """

    config: list[str] = field(default_factory=list)
    steps: int = 0
    ids: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    of: str | None = None


@dataclass(frozen=True)
class Arm:
    """One of the ways that are compared: ids replaced in the configs.

    ``pretrained``: the pretraining that its backbone starts from. ``tuned_as``: the arm whose rate it takes, instead of
    one of its own. ``steps``: of this arm, where the budget is time and not steps.
    """

    ids: dict[str, Any]
    pretrained: str | None = None
    tuned_as: str | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Stage:
    """Runs of some arms with a number of labelled patients, ``None`` for all; in folds, a draw is a fold."""

    arms: list[str]
    labels: int | None
    draws: int = 1
    seeds: int = 1


@dataclass(frozen=True)
class Comparison:
    """A main comparison: is ``arm`` better than ``other`` with this number of labelled patients?

    With a ``margin`` the question is whether it is not worse by more: whether its interval's lower end is above that.
    """

    arm: str
    other: str
    labels: int | None
    margin: float | None = None


@dataclass(frozen=True)
class Split:
    """How many patients are scored, and with how many the rates are tuned; the others are learned from.

    Drawn class by class where the data have classes. With ``folds`` every patient is scored once. ``given``: the data
    bring their own three parts (a MedMNIST archive).
    """

    seed: int = 0
    score: int = 0
    tune: int = 0
    folds: int = 0
    given: bool = False


@dataclass(frozen=True)
class Job:
    """One piece of work with one result: a pretraining, a training at one rate, or a training with its scores."""

    kind: str  # pretraining, tuning, run
    arm: str  # or the name of the pretraining
    labels: int | None = None
    draw: int = 0
    seed: int = 0
    rate: float | None = None  # of a tuning
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Names the result's file: letters, digits, dots, underscores and hyphens."""
        words = [self.kind, self.arm]
        if self.kind != "pretraining":
            words += ["all" if self.labels is None else str(self.labels), f"draw{self.draw}", f"seed{self.seed}"]
        words += [] if self.rate is None else [f"rate{self.rate:g}"]
        return "_".join(slug(word) for word in words)


@dataclass(frozen=True)
class Protocol:
    """A planned experiment.

    Args:
        name: of the file, without its ending.
        title, question, expected, stop, chosen: for the page: what is asked, the effect that is expected, when to stop
            spending on it, and why the sizes are what they are.
        task: ``segmentation``, ``classification``, or ``features``: classification by frozen features.
        data: path of the data within the folder of all data.
        table: a file of ``data`` with the columns ``file``, ``class`` and ``patient``; without it each case is a
            patient.
        split: see :class:`Split`.
        config: files in the bundle of the training; ``evaluate`` those of the scoring.
        ids: replaced in the training's and the scoring's configs of every arm.
        steps: of every training.
        rates: values of ``learning_rate``; of several, each arm takes the one that scores best on the tuning patients.
        tuned_with: labelled patients of the tuning.
        pretraining, arms, runs: by name; the stages of ``runs`` in the order in which they are worked on.
        main: the main comparisons, corrected together.
        normalise_tokens: of ``features``: every token is normalised before the mean.
        identity_test: score every run again with the transformer's blocks replaced by the identity.
        twins: pairs of label values that only their place tells apart: the share of their voxels given the twin's label
            is scored too.

    Raises:
        ValueError: a name is used that is not defined, or a pretraining would see patients that are scored.
    """

    name: str
    title: str
    question: str
    expected: str
    stop: str
    chosen: str
    task: str
    data: str
    split: Split
    config: list[str]
    evaluate: list[str]
    ids: dict[str, Any]
    steps: int
    rates: list[float]
    arms: dict[str, Arm]
    runs: list[Stage]
    main: list[Comparison]
    tuned_with: int | None = None
    pretraining: dict[str, Pretraining] = field(default_factory=dict)
    table: str | None = None
    identity_test: bool = False
    normalise_tokens: bool = False
    twins: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"{self.name}: task {self.task!r} must be one of {', '.join(TASKS)}")
        arms = [name for stage in self.runs for name in stage.arms]
        arms += [name for pair in self.main for name in (pair.arm, pair.other)]
        arms += [arm.tuned_as for arm in self.arms.values() if arm.tuned_as]
        pretrained = [arm.pretrained for arm in self.arms.values() if arm.pretrained]
        unknown = set(arms) - set(self.arms) | set(pretrained) - set(self.pretraining)
        if unknown:
            raise ValueError(f"{self.name} uses {', '.join(sorted(unknown))}, which it does not define")
        own = [name for name, plan in self.pretraining.items() if not plan.data]
        if self.split.folds and own:
            raise ValueError(f"{self.name}: {', '.join(own)} would see the patients that other folds score")

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """All jobs by name, in order: what a job needs stands before it."""
        found: dict[str, Job] = {}
        for stage in self.runs:
            for name in stage.arms:
                found.update((job.name, job) for job in self._before(name))
            for draw in range(stage.draws):
                for seed in range(stage.seeds):
                    for name in stage.arms:
                        needs = tuple(job.name for job in self._before(name))
                        job = Job("run", name, stage.labels, draw, seed, needs=needs)
                        found[job.name] = job
        return found

    def _before(self, name: str) -> Iterator[Job]:
        """The jobs that an arm's runs need: its pretraining, and the tuning of its rate."""
        arm = self.arms[name]
        pretraining = [Job("pretraining", arm.pretrained)] if arm.pretrained else []
        yield from pretraining
        if arm.tuned_as:
            yield from self._before(arm.tuned_as)
        elif len(self.rates) > 1:
            needs = tuple(job.name for job in pretraining)
            for rate in self.rates:
                yield Job("tuning", name, self.tuned_with, rate=rate, needs=needs)


def read_protocol(name: str, folder: Path = PROTOCOLS) -> Protocol:
    """The experiment of a file ``NAME.yaml``; plain values, nothing is evaluated.

    Raises:
        FileNotFoundError: there is no such experiment; names those there are.
        TypeError, ValueError: a field is missing, unknown or contradicts another.
    """
    file = folder / f"{name}.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"there is no experiment {name}; there are {', '.join(names(folder))}")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["split"] = Split(**content["split"])
    content["arms"] = {arm: Arm(**fields) for arm, fields in content["arms"].items()}
    content["pretraining"] = {key: Pretraining(**fields) for key, fields in content.get("pretraining", {}).items()}
    content["runs"] = [Stage(**fields) for fields in content["runs"]]
    content["main"] = [Comparison(**fields) for fields in content["main"]]
    return Protocol(name, **content)


def names(folder: Path = PROTOCOLS) -> list[str]:
    """The experiments there are."""
    return sorted(file.stem for file in folder.glob("*.yaml"))
