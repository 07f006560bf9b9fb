"""`pseudo-label` with the compact SAM2 that ships: on phantoms, and on real volumes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.phantom.studies import write_training_cases
from sslmedsam2.pseudo_label.pipeline import PseudoLabelOptions, pseudo_label

REAL = Path(__file__).parents[3] / "shared" / "data" / "chaos_mr_t2"


def dice(a, b):
    return 2 * np.sum((a > 0) & (b > 0)) / (np.sum(a > 0) + np.sum(b > 0))


@pytest.mark.slow
def test_phantoms_are_labelled_from_two_of_them(tmp_path):
    write_training_cases(tmp_path / "cases", cases=3, labelled=2, seed=0)
    write_training_cases(tmp_path / "truth", cases=3, labelled=3, seed=0)
    summary = pseudo_label(
        PseudoLabelOptions(
            support_dir=tmp_path / "cases",
            query_dir=tmp_path / "cases",
            output_dir=tmp_path / "out",
            sam2="compact",
            sequences=("GED4",),
            device="cpu",
        )
    )
    (record,) = summary.records
    (truth,) = (tmp_path / "truth").rglob(f"{record.case}/mask_GED4.nii.gz")
    (found,) = (tmp_path / "out").rglob("GED4_pred.nii.gz")
    assert dice(read_mask(found).array_zyx, read_mask(truth).array_zyx) > 0.6


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="the real volumes are not there")
def test_a_real_liver_is_found_from_two_others(tmp_path):
    for case in ("chaos01", "chaos19"):
        shutil.copytree(REAL / case, tmp_path / "support" / case)
    (tmp_path / "query" / "chaos34").mkdir(parents=True)
    shutil.copy(REAL / "chaos34" / "T2.nii.gz", tmp_path / "query" / "chaos34")
    summary = pseudo_label(
        PseudoLabelOptions(
            support_dir=tmp_path / "support",
            query_dir=tmp_path / "query",
            output_dir=tmp_path / "out",
            sam2="compact",
            device="cpu",
        )
    )
    assert [record.error for record in summary.records] == [None]
    found = read_mask(tmp_path / "out" / "chaos34" / "T2_pred.nii.gz")
    truth = read_mask(REAL / "chaos34" / "mask_T2.nii.gz")
    assert dice(found.array_zyx, truth.array_zyx) > 0.7
