"""Models on the Hugging Face hub, fetched only when a command names one."""

import re
from pathlib import Path

HUB = "hf:"
PLACES = ("", "models/")  # of a model in its repository: alone, or in a bundle


def fetch(name: str) -> Path:
    """Download a model's weights and task, and nothing else, into the hub's own cache; say so first.

    A repository that changes may change the model: a revision keeps to one. Weights are read as tensors alone
    (``weights_only``), so they cannot bring code.

    Args:
        name: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, a commit, tag or branch.

    Returns:
        The path of the weights; the task lies beside them.

    Raises:
        ValueError: it is not such a name.
        RuntimeError: ``huggingface_hub`` is not installed.
        FileNotFoundError: the repository has no model.pt with a task.yaml.
    """
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", name)
    if match is None:
        raise ValueError(
            f"{HUB}{name}: write {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION, a model on the Hugging Face hub"
        )
    repository, revision = match.groups()
    from digar.data.task import TASK_FILE, WEIGHTS_FILE

    try:
        import huggingface_hub
    except ImportError:
        raise RuntimeError(f"{HUB}{name} is on the Hugging Face hub: pip install huggingface_hub to fetch it") from None
    print(
        f"fetching {repository} ({revision or 'its newest revision'}) from {huggingface_hub.constants.ENDPOINT}",
        flush=True,
    )
    wanted = [place + file for place in PLACES for file in (WEIGHTS_FILE, TASK_FILE)]
    folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    for place in PLACES:
        if (folder / place / WEIGHTS_FILE).is_file() and (folder / place / TASK_FILE).is_file():
            return folder / place / WEIGHTS_FILE
    raise FileNotFoundError(f"{HUB}{name} has no {WEIGHTS_FILE} with a {TASK_FILE}: it is not a model of DiGAR")
