"""Volumes for programs: with units, codes and the DICOM series that they are of."""

import csv
import json

from digar.inference.journal import DONE, FAILED, Outcome
from digar.inference.measurements import write_measurements

LABELS = {1: "liver", 4: "=tumour"}
CODES = {1: {"category": ("91723000", "SCT", "Anatomical Structure"), "type": ("10200004", "SCT", "Liver")}}
SERIES = {"SeriesDescription": "T1", "SeriesNumber": "3", "Modality": "MR", "SeriesInstanceUID": "1.2.3"}
OUTCOMES = [
    Outcome("a.nii", DONE, mask="a_mask.nii.gz", volumes_ml={"liver": 1500.25, "=tumour": 0.0}),
    Outcome("b.nii", FAILED),
    Outcome("s", DONE, mask="s_mask.nii.gz", volumes_ml={"liver": [1.5, 2.5], "=tumour": [0.5, 0.0]}, series=SERIES),
]


def test_each_label_of_each_image_has_a_row_with_unit_and_codes(tmp_path):
    write_measurements(tmp_path, OUTCOMES, LABELS, CODES)
    with (tmp_path / "measurements.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    told = [(row["file"], row["label"], row["volume_index"], row["volume"], row["unit"]) for row in rows]
    assert told == [
        ("a.nii", "1", "", "1500.25", "mL"), ("a.nii", "4", "", "0.0", "mL"),
        ("s", "1", "0", "1.5", "mL"), ("s", "1", "1", "2.5", "mL"),
        ("s", "4", "0", "0.5", "mL"), ("s", "4", "1", "0.0", "mL"),
    ]  # fmt: skip
    assert [rows[0][f"type_{part}"] for part in ("code", "scheme", "meaning")] == ["10200004", "SCT", "Liver"]
    assert [rows[1][f"type_{part}"] for part in ("code", "scheme", "meaning")] == ["", "", ""]
    assert rows[1]["name"] == "'=tumour"  # no formula
    assert (rows[0]["SeriesInstanceUID"], rows[2]["SeriesInstanceUID"]) == ("", "1.2.3")


def test_the_json_tells_the_same(tmp_path):
    write_measurements(tmp_path, OUTCOMES, LABELS, CODES)
    content = json.loads((tmp_path / "measurements.json").read_text())
    assert content["unit"] == {"code": "mL", "scheme": "UCUM", "meaning": "milliliter"}
    assert content["labels"][0]["codes"]["type"] == {"code": "10200004", "scheme": "SCT", "meaning": "Liver"}
    assert content["labels"][1] == {"value": 4, "name": "=tumour", "codes": {}}
    assert [image["file"] for image in content["images"]] == ["a.nii", "s"]
    assert content["images"][0]["volumes"][0] == {"label": 1, "volume": 1500.25, "index": None}
    assert content["images"][1]["series"]["SeriesDescription"] == "T1"
    assert content["images"][1]["volumes"][1] == {"label": 1, "volume": 2.5, "index": 1}


def test_a_run_without_masks_or_labels_has_empty_tables(tmp_path):
    for outcomes, labels in (([], LABELS), (OUTCOMES, {})):
        write_measurements(tmp_path, outcomes, labels, {})
        assert len((tmp_path / "measurements.csv").read_text().splitlines()) == 1
        json.loads((tmp_path / "measurements.json").read_text())
