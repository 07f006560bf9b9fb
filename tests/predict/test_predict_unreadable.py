"""Files and folders that the user who runs the program may not read: the message says just that."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sslmedsam2.cli.config import load_table
from sslmedsam2.errors import SslMedSam2Error
from sslmedsam2.predict.page import ReportOptions, report
from sslmedsam2.submission.evaluate import evaluate
from sslmedsam2.submission.package import package
from sslmedsam2.submission.validate import validate

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only the superuser can put rights aside and back"
)
NOBODY = 65534
MASK = "LiSeg_pred/0930-A/GED4_pred.nii.gz"


@pytest.fixture
def folder():
    """Give a folder that any user may enter and write to, as pytest's own is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def write_closed(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")
    path.chmod(0)
    return path


def refusal(call) -> str:
    with as_nobody(), pytest.raises(SslMedSam2Error) as caught:
        call()
    return str(caught.value)


def test_a_mask_that_cannot_be_packed_is_told_apart_from_a_zip_that_cannot_be_written(folder):
    mask = write_closed(folder / "run" / MASK)
    said = refusal(lambda: package(output_dir=folder / "run", zip_path=folder / "s.zip"))
    assert said.startswith(f"{mask}: cannot be read (Permission denied)")
    assert not (folder / "s.zip").exists()


def test_a_run_report_is_not_called_damaged(folder):
    path = write_closed(folder / "run" / "run_report.json")
    said = refusal(lambda: report(ReportOptions(folder / "run")))
    assert said.startswith(f"{path}: cannot be read (Permission denied). Check that it is there")


def test_a_configuration_is_not_called_wrong(folder):
    path = write_closed(folder / "options.json")
    said = refusal(lambda: load_table(path))
    assert said == f"{path}: cannot be read (Permission denied). Make the file readable."


def test_a_folder_of_masks_is_not_called_empty(folder):
    closed = write_closed(folder / "references" / "0930-A" / "mask_GED4.nii.gz").parent
    closed.chmod(0)
    said = refusal(lambda: evaluate(predictions=closed.parent, references=closed.parent))
    assert f"it holds no masks ({closed} cannot be listed (Permission denied))" in said


def test_a_folder_of_studies_is_not_called_empty(folder):
    closed = write_closed(folder / "input" / "0930-A" / "GED4.nii.gz").parent
    closed.chmod(0)
    (folder / "output").mkdir()
    said = refusal(lambda: validate(input_path=closed.parent, output_dir=folder / "output"))
    assert f"no study to compare with ({closed} cannot be listed (Permission denied))" in said
