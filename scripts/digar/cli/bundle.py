"""Where the bundle's files are, and one run of its configs: in this process, or as the equivalent command line."""

import json
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from digar.cli.hub import HUB, fetch


def bundle_root() -> Path:
    """The folder with ``configs`` and ``models``: the clone around the package, or the copy installed with it."""
    package = Path(__file__).resolve().parents[1]
    clone = package.parents[1]
    return clone if (clone / "configs" / "train.json").is_file() else package / "bundle"


def shipped_models() -> list[str]:
    """Names of the models that come with the bundle."""
    return sorted(folder.name for folder in (bundle_root() / "models").iterdir() if (folder / "model.pt").is_file())


def find_weights(model: str | None) -> Path:
    """The weights that ``--model`` means: a shipped model by its name, a model's folder, or a file of weights.

    ``hf:OWNER/NAME`` is a model on the Hugging Face hub, see :func:`digar.cli.hub.fetch`.

    Args:
        model: None for the default model.

    Raises:
        FileNotFoundError: it is none of these; the shipped ones are named.
    """
    root = bundle_root() / "models"
    if model is None:
        return root / "model.pt"
    if model.startswith(HUB):
        return fetch(model.removeprefix(HUB))
    for place in (Path(model), root / model):
        if place.is_file():
            return place.absolute()
        if (place / "model.pt").is_file():
            return (place / "model.pt").absolute()
    raise FileNotFoundError(
        f"there is no model {model}: give a folder with model.pt and task.yaml, a file of weights, or the name of a "
        f"shipped one ({', '.join(shipped_models())})"
    )


@dataclass(frozen=True)
class BundleRun:
    """A run of the bundle's configs.

    Args:
        configs: names of files in ``configs/``, later ones over earlier ones.
        run_id: of the section to run.
        ids: id to value, what the command line sets; a value is part of a config, so a string that begins with ``$`` is
            evaluated.
    """

    configs: Sequence[str]
    run_id: str
    ids: Mapping[str, Any]

    @property
    def files(self) -> list[str]:
        return [str(bundle_root() / "configs" / name) for name in self.configs]

    def command(self) -> str:
        """The line that does the same through MONAI."""
        files = self.files[0] if len(self.files) == 1 else repr(self.files)
        words = ["python", "-m", "monai.bundle", "run", self.run_id, "--config_file", files]
        for name, value in self.all_ids.items():
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        return shlex.join(words)

    @property
    def all_ids(self) -> dict[str, Any]:
        return {"bundle_root": str(bundle_root()), **self.ids}

    def start(self) -> None:
        """Run it here. MONAI's word that a config is code is left out: these are the bundle's own."""
        from monai.bundle import ConfigWorkflow

        root = bundle_root() / "configs"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="parsing config_file")
            workflow = ConfigWorkflow(
                config_file=self.files,
                meta_file=str(root / "metadata.json"),
                logging_file=str(root / "logging.conf"),
                run_id=self.run_id,
                **self.all_ids,
            )
            workflow.initialize()
        workflow.run()
        workflow.finalize()


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``--set id=value`` as ids and values; a value is YAML.

    Raises:
        ValueError: a setting without ``=``, or a value that is not YAML.
    """
    ids: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {setting}: write --set id=value, for example --set max_epochs=50")
        try:
            ids[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {setting}: the value is not YAML ({error})") from None
    return ids
