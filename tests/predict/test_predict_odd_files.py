"""Real odd files, all in one run: each is read or refused in one line, and harms no other."""

import shutil
from pathlib import Path

import pytest
from predict_samples import assert_valid_mask
from tiny_models import bright_tissue_model
from tiny_scans import write_scan

from sslmedsam2.contract.names import parse_mask_stem, split_volume_name
from sslmedsam2.errors import ExitCode
from sslmedsam2.imaging.formats import unread_image
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.reporting.run_report import SeriesStatus

ODD_FILES = Path(__file__).parents[3] / "shared" / "data" / "odd_files"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ODD_FILES.is_dir(), reason=f"needs the odd files in {ODD_FILES}"),
]


def test_odd_files_are_read_or_refused_and_a_good_scan_beside_them_is_unharmed(tmp_path):
    source, output = tmp_path / "input", tmp_path / "output"
    shutil.copytree(ODD_FILES, source)
    good = write_scan(source / "0001-A" / "GED4.nii.gz")

    report = predict(
        PredictOptions(
            source,
            output,
            bright_tissue_model(tmp_path / "model"),
            device="cpu",
            mirror=False,
            on_failure="skip",
            previews=False,
        )
    )

    assert report.exit_code == ExitCode.SOME_CASES_FAILED
    [result] = [one for one in report.series if one.case == "0001-A"]
    assert result.status is SeriesStatus.OK
    assert_valid_mask(output / result.output_path, good)
    for one in report.series:
        assert one.error is None or ("\n" not in one.error and len(one.error) < 500), one.error
        assert "unforeseen" not in (one.error or ""), one.error
    named = {one.input_path for one in (*report.series, *report.left_out)}
    for path in source.rglob("*"):
        name = path.relative_to(source).as_posix()
        volume = split_volume_name(path.name)
        is_image = volume is not None or unread_image(path) is not None
        is_mask = volume is not None and parse_mask_stem(volume[0]) is not None
        if path.is_file() and is_image and not is_mask:
            assert any(name.startswith(one) for one in named), f"{name} is nowhere"
