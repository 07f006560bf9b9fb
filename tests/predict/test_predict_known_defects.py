"""Hostile files of every known kind in one run, and a good scan beside them that gets its mask."""

import numpy as np
import pytest
from known_defects import DEFECTS
from predict_samples import assert_valid_mask
from tiny_models import bright_tissue_model
from tiny_scans import write_scan

from sslmedsam2.errors import ExitCode
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.reporting.run_report import SeriesStatus

pytestmark = pytest.mark.slow


def test_known_defects_leave_the_mask_of_a_good_scan_as_it_is_alone(tmp_path):
    model = bright_tissue_model(tmp_path / "model")

    def run(name):
        options = PredictOptions(
            tmp_path / name,
            tmp_path / f"{name}_out",
            model,
            device="cpu",
            mirror=False,
            on_failure="skip",
            previews=False,
        )
        return predict(options)

    good = write_scan(tmp_path / "alone" / "0001-A" / "GED4.nii.gz")
    run("alone")
    write_scan(tmp_path / "among" / "0001-A" / "GED4.nii.gz")
    for name, defect in DEFECTS.items():
        (tmp_path / "among" / name).mkdir()
        defect.write(tmp_path / "among" / name)

    report = run("among")

    assert report.exit_code == ExitCode.SOME_CASES_FAILED
    [result] = [one for one in report.series if one.case == "0001-A"]
    assert result.status is SeriesStatus.OK
    assert_valid_mask(tmp_path / "among_out" / result.output_path, good)
    masks = [
        read_mask(tmp_path / f"{name}_out" / result.output_path) for name in ("alone", "among")
    ]
    assert np.array_equal(masks[0].array_zyx, masks[1].array_zyx)
    for one in report.series:
        assert one.error is None or ("\n" not in one.error and len(one.error) < 500), one.error
        assert "unforeseen" not in (one.error or ""), one.error
    refused = [name for name, defect in DEFECTS.items() if defect.kind is not None]
    failed = " ".join(one.input_path for one in report.series if one.status is SeriesStatus.FAILED)
    assert [name for name in refused if f"{name}/" not in failed] == []
