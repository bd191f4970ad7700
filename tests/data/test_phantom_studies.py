"""Phantom studies: four contrasts of one body on one grid, equal for equal seeds."""

import nibabel as nib
import numpy as np
from digar.data.phantom_studies import CONTRASTS, make_contrasts, write_studies
from digar.data.phantoms import LABELS
from digar.data.studies import study_cases


def test_contrasts_show_one_body_in_four_ways():
    contrasts = make_contrasts(0, 3)
    assert list(contrasts) == ["t1n", "t1c", "t2w", "t2f"]
    for name, study in contrasts.items():
        assert study.image.shape == study.label.shape
        assert np.array_equal(study.affine, contrasts["t1n"].affine)
        for organ in ("ellipsoid", "landmark"):
            inside = study.image[study.label == LABELS[organ]]
            assert abs(np.median(inside) - CONTRASTS[name][LABELS[organ]]) < 25, (name, organ)
    tissue = (contrasts["t1n"].image > 80) & (contrasts["t1n"].label == 0)
    assert 0.15 < tissue.mean() < 0.5


def test_equal_arguments_give_equal_contrasts():
    first, second = make_contrasts(1, 2), make_contrasts(1, 2)
    assert all(np.array_equal(first[name].image, second[name].image) for name in CONTRASTS)


def test_written_studies_are_found_as_such(tmp_path):
    write_studies(tmp_path, 2)
    cases = study_cases(tmp_path, list(CONTRASTS))
    assert [case["patient"] for case in cases] == ["PHANTOM-00000", "PHANTOM-00001"]
    shapes = {nib.load(path).shape for path in cases[0]["image"]}
    assert len(shapes) == 1
