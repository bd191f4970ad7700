"""The examples of CONTRIBUTING.md work as they stand: one file and one line of a registry each."""

import importlib
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from digar.data import layouts
from digar.data.sequences import Sequenced, SequenceDataset
from digar.data.sources import pretraining_cases
from digar.evaluation.folds import merge_folds
from digar.evaluation.metrics import METRICS, Metric
from digar.evaluation.segmentation import score_case
from digar.evaluation.tables import write_scores
from digar.networks import PretrainingNetwork, SegmentationNetwork
from digar.networks.attention import MODES
from digar.networks.attention.full import FullAttention
from digar.networks.heads import HEADS
from digar.volumes.prepared import prepare_volumes
from monai.bundle import ConfigParser
from monai.transforms import Compose

from tests.conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\S+)\.py\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
SIZE = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file of the page into a package of its own and imports it."""

    def load(name: str):
        module = Path(name).name
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"{module}.py").write_text(FILES[name], encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        for known in [known for known in sys.modules if known.partition(".")[0] == "own"]:
            monkeypatch.delitem(sys.modules, known)
        return importlib.import_module(f"own.{module}")

    return load


def test_an_attention_mode(example, monkeypatch) -> None:
    nearby = example("networks/attention/nearby").NearbyAttention
    assert '"full+nearby": (FullAttention, NearbyAttention),' in PAGE
    monkeypatch.setitem(MODES, "full+nearby", (FullAttention, nearby))
    monkeypatch.setitem(MODES, "nearby", (nearby,))
    gated = PretrainingNetwork(16, 8, size=SIZE, attention="full+nearby")
    gated(torch.rand(2, 1, 16, 16, 16), torch.tensor([0, 3])).square().sum().backward()
    assert all(block.attention.gate.logit.grad.abs() > 0 for block in gated.backbone.blocks)
    alone = PretrainingNetwork(16, 8, size={**SIZE, "num_layers": 1}, attention="nearby", dilation=2).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    other = image.clone()
    other[..., 8:, 8:, 8:] = torch.rand(8, 8, 8)  # the last patch, position 8
    with torch.no_grad():
        for prefix, reached in ((None, [6, 7, 8, 9]), (torch.tensor([0]), [8, 9])):
            changed = (alone(image, prefix) - alone(other, prefix)).abs().amax(dim=-1)[0]
            assert changed.nonzero().flatten().tolist() == reached


def test_a_segmentation_head(example, monkeypatch) -> None:
    head = example("networks/heads/linear").LinearHead
    assert '"linear": LinearHead,' in PAGE
    monkeypatch.setitem(HEADS, "linear", head)
    network = SegmentationNetwork((16, 16, 8), (8, 8, 4), 1, 3, head="linear", size=SIZE).eval()
    image = torch.rand(1, 1, 16, 16, 8)
    logits = network(image)
    assert logits.shape == (1, 3, 16, 16, 8)
    torch.testing.assert_close(torch.jit.script(network)(image), logits)


def test_a_kind_of_sequence(example, task: Path, tmp_path: Path) -> None:
    example("data/sequences/whole")
    (line,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/pretrain.yaml"))
    own = yaml.safe_load(line)["whole"] | {"_target_": "own.whole.Whole"}
    parser.update({"kinds#whole": own, "dataset_dir": str(task), "sample_size": [8, 8, 8]})
    kinds = parser.get_parsed_content("kinds")
    cases = pretraining_cases(kinds)
    store = prepare_volumes(cases, (8, 8, 8), None, 1, str(tmp_path / "unreadable.csv"), 0.0, 0)
    dataset = SequenceDataset(cases, kinds, store, Compose([Sequenced(kinds)]), 0, {"spatial": 1, "whole": 1})
    samples = [dataset[index] for index in range(len(dataset))]
    assert [list(kinds)[int(sample["kind"])] for sample in samples] == ["spatial"] * 5 + ["whole"] * 5
    assert all(sample["image"].shape == (1, 8, 8, 8) for sample in samples)


def test_a_metric(example, monkeypatch, tmp_path: Path) -> None:
    excess = example("evaluation/metrics/excess").excess
    assert '"excess_ml": Metric(excess, better="lower", averaged=False),' in PAGE
    monkeypatch.setitem(METRICS, "excess_ml", Metric(excess, better="lower", averaged=False))
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[1:3] = 1
    for number, case in enumerate("ab"):
        prediction = truth.copy()
        prediction[0, 0, : 1 + number] = 1
        write_scores(tmp_path / case, score_case(prediction, truth, (10, 10, 10), 1.0, case, ["organ"]))
    merge_folds([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    row = next(line for line in (tmp_path / "both/summary.csv").read_text().splitlines() if "excess_ml" in line)
    assert row.split(",")[2:7] == ["1.5", "0.5", "1.5", "2.0", "b"]


def test_a_layout(example, monkeypatch, tmp_path: Path) -> None:
    endings = example("data/layouts/endings").Endings()
    assert "`Endings(),`" in PAGE
    monkeypatch.setattr(layouts, "LAYOUTS", (endings, *layouts.LAYOUTS))
    for name in ("a_image", "a_label", "b_image"):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    data = layouts.read_data(tmp_path, labelled=True)
    assert data.layout == endings.name
    assert data.labelled == [{"image": str(tmp_path / "a_image.nii.gz"), "label": str(tmp_path / "a_label.nii.gz")}]


def test_every_file_of_the_page_is_tried() -> None:
    assert len(FILES) == 5
