"""Which files are taken for DICOM, whatever they are called."""

import struct
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from dicom_samples import write_series
from tiny_scans import abdomen, write_scan

from sslmedsam2.contract.walk import walk_input
from sslmedsam2.dicom.files import find_dicom_files
from sslmedsam2.dicom.headers import read_frames
from sslmedsam2.errors import NoInputError

REPOSITORY = Path(__file__).parents[2]


def test_content_and_not_the_name_tells_dicom(tmp_path):
    real = write_series(tmp_path / "deep" / "er", abdomen()[0][:2])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "text.IMA").write_text("DICM")
    (tmp_path / "._IM1").write_bytes(real[0].read_bytes())
    write_scan(tmp_path / "case" / "GED4.nii.gz")

    found = find_dicom_files(walk_input(tmp_path))

    assert found.files == tuple(sorted(real))
    assert found.impostors == (tmp_path / "empty.dcm", tmp_path / "text.IMA")


def test_what_this_tool_has_written_is_no_input(tmp_path):
    write_series(tmp_path / "dicom_seg" / "study-1", abdomen()[0][:2])

    assert find_dicom_files(walk_input(tmp_path)).files == ()


def test_one_file_is_enough_and_none_is_no_error(tmp_path):
    [path] = write_series(tmp_path, abdomen()[0][:1])

    assert find_dicom_files(walk_input(path)).files == (path,)
    with pytest.raises(NoInputError):
        walk_input(tmp_path / "nowhere")


def test_a_folder_without_dicom_loads_nothing_for_dicom(tmp_path):
    write_scan(tmp_path / "0001-A" / "GED4.nii.gz")
    (tmp_path / "info.csv").write_text("Case\n0001-A\n")
    code = (
        "import sys, pathlib\n"
        "from sslmedsam2.predict.inputs import find_inputs\n"
        f"found = find_inputs(pathlib.Path({str(tmp_path)!r}), sequences=None)\n"
        "assert len(found.studies.series) == 1 and found.dicom is None\n"
        # nibabel itself imports pydicom where it is installed.
        "slow = {'highdicom', 'sslmedsam2.dicom.headers', 'sslmedsam2.dicom.reading'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("is_implicit", [True, False])
def test_a_data_set_without_preamble_is_dicom(tmp_path, is_implicit):
    [real] = write_series(tmp_path / "whole", abdomen()[0][:1])
    dataset = pydicom.dcmread(real)
    del dataset.file_meta, dataset.preamble
    bare = tmp_path / "bare"
    pydicom.dcmwrite(bare, dataset, implicit_vr=is_implicit, little_endian=True)
    (tmp_path / "numbers").write_bytes(struct.pack("<64H", *range(8, 72)))

    assert find_dicom_files(walk_input(tmp_path)).files == (bare, real)
    [frame] = read_frames(bare, name="bare")
    assert frame.rows == abdomen()[0].shape[1]
