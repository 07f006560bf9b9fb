import bz2
import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom.dicom_samples import write_series

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode, NoInputError
from sslmedsam2.imaging.reading import read_volume
from sslmedsam2.imaging.writing import write_mask
from sslmedsam2.reporting.run_report import SeriesResult, SeriesStatus, start_report, write_report
from sslmedsam2.submission.validate import validate

SHAPE = (20, 18, 8)
OBLIQUE = np.array(
    [[-1.2, 0.1, 0.0, 11.0], [0.12, 1.0, 0.3, -7.0], [0.0, -0.05, 5.0, 3.0], [0, 0, 0, 1.0]]
)
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * (1.2, 1.0, 5.0)


@pytest.fixture
def folders(tmp_path):
    """An input with two cases, and an output that keeps the contract."""
    source, output = tmp_path / "input", tmp_path / "output"
    image(source / "Vendor_A/0930-A/GED4.nii.gz", trailing_axis=True, codes=(1, 2))
    image(source / "Vendor_A/0930-A/T1WI.nii.gz", codes=(0, 1))
    image(source / "Vendor_C/0007-C/GED4.nii.gz", codes=(1, 0))
    for case, name, sequence in (
        ("Vendor_A/0930-A", "GED4", "GED4"),
        ("Vendor_A/0930-A", "T1WI", "T1"),
        ("Vendor_C/0007-C", "GED4", "GED4"),
    ):
        volume = read_volume(source / case / f"{name}.nii.gz")
        target = output / "LiSeg_pred" / case.split("/")[1] / f"{sequence}_pred.nii.gz"
        write_mask(bar(volume), like=volume, path=target)
    (output / "run_report.json").write_text("{}")
    return source, output


def image(path, *, trailing_axis=False, codes=(1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*SHAPE, 1) if trailing_axis else SHAPE
    voxels = np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)
    nifti = nib.Nifti1Image(voxels, OBLIQUE)
    nifti.set_qform(OBLIQUE, code=codes[0])
    nifti.set_sform(OBLIQUE, code=codes[1])
    nib.save(nifti, path)


def bar(volume):
    mask = np.zeros(volume.geometry.shape_zyx, np.uint8)
    mask[2:5, 4:9, 4:9] = 1
    return mask


def failed_rules(validation):
    return sorted(check.rule for check in validation.checks if check.status == "FAIL")


def run(folders):
    return validate(input_path=folders[0], output_dir=folders[1])


def test_what_this_project_writes_keeps_the_contract(folders):
    result = run(folders)

    assert failed_rules(result) == []
    assert result.exit_code == ExitCode.OK
    content = {check.subject: check.detail for check in result.checks if check.rule == "content"}
    assert len(content) == 3
    assert "uint8 20 x 18 x 8 x 1" in content["0930-A/GED4"]


def mask_of(folders, case="0930-A", sequence="GED4"):
    return folders[1] / "LiSeg_pred" / case / f"{sequence}_pred.nii.gz"


def rewrite(path, *, change_voxels=None, change_header=None):
    """Store a mask again, byte by byte, after a change to its voxels or its raw header."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    voxels = np.frombuffer(bytes(content[352:]), np.uint8)
    if change_voxels:
        voxels = change_voxels(voxels, header)
    if change_header:
        change_header(header)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + voxels.tobytes()))


def _set(field, value):
    def change(header):
        header[field] = value

    return change


def _move_sform(header):
    header["srow_x"][3] += 0.01


def _retyped(dtype):
    def change(voxels, header):
        header.set_data_dtype(dtype)
        return voxels.astype(dtype)

    return change


def _squeeze(header):
    header.set_data_shape(SHAPE)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"change_voxels": lambda voxels, _: voxels * 2}, ["values"]),
        ({"change_voxels": lambda voxels, _: voxels * 0}, ["empty"]),
        ({"change_voxels": _retyped(np.float32)}, ["dtype"]),
        ({"change_header": _squeeze}, ["shape"]),
        ({"change_header": _set("scl_slope", np.nan)}, ["scaling"]),
        ({"change_header": _set("scl_inter", 1)}, ["scaling", "values"]),
        ({"change_header": _set("qform_code", 2)}, ["qform_code"]),
        ({"change_header": _set("sform_code", 0)}, ["sform_code"]),
        ({"change_header": _move_sform}, ["sform"]),
        ({"change_header": _set("quatern_b", 0.5)}, ["qform"]),
        ({"change_header": _set("qoffset_y", 0)}, ["qform"]),
        ({"change_header": _set("pixdim", [-1, 1.3, 1, 5, 0, 0, 0, 0])}, ["qform", "spacing"]),
    ],
)
def test_every_fault_of_a_mask_is_named(folders, changes, rules):
    rewrite(mask_of(folders), **changes)

    result = run(folders)

    assert failed_rules(result) == rules
    assert {c.subject for c in result.checks if c.status == "FAIL"} == {"0930-A/GED4"}
    assert result.exit_code == ExitCode.SOME_CASES_FAILED


def test_an_image_may_be_compressed_by_bzip2(folders):
    plain = folders[0] / "Vendor_A/0930-A/GED4.nii.gz"
    packed = bz2.compress(gzip.decompress(plain.read_bytes()))
    plain.with_name("GED4.nii.bz2").write_bytes(packed)
    plain.unlink()

    assert failed_rules(run(folders)) == []


def test_a_damaged_archive_of_the_input_is_named(folders):
    whole = folders[0] / "Vendor_B/0931-B.zip"
    image(folders[0] / "0931-B/T2.nii.gz")
    shutil.make_archive(str(whole.with_suffix("")), "zip", folders[0], "0931-B")
    shutil.rmtree(folders[0] / "0931-B")
    damaged = folders[0] / "0932-A.zip"
    damaged.write_bytes(whole.read_bytes()[:100])

    checks = run(folders).checks

    assert [check.subject for check in checks if check.rule == "input"] == [str(damaged)]
    assert not any("unpacked" in check.subject + check.detail for check in checks)


def test_masks_of_dicom_are_said_not_to_be_checked(folders):
    source, output = folders
    write_series(source / "archive", np.ones((4, 8, 8), np.int16))
    details = [check.detail for check in validate(input_path=source, output_dir=output).checks]
    assert "masks of its 4 DICOM files are not checked" in details

    with pytest.raises(NoInputError, match="holds DICOM, with which validate compares no masks"):
        validate(input_path=source / "archive", output_dir=output)


def test_rewriting_alone_is_no_fault(folders):
    rewrite(mask_of(folders))

    assert failed_rules(run(folders)) == []


def test_the_images_own_type_is_accepted_with_a_note(folders):
    volume = read_volume(folders[0] / "Vendor_A/0930-A/GED4.nii.gz")
    write_mask(bar(volume), like=volume, path=mask_of(folders), dtype="input")

    result = run(folders)

    assert failed_rules(result) == []
    (note,) = [check for check in result.checks if check.rule == "dtype"]
    assert note.status == "NOTE"
    assert "int16" in note.detail


def test_a_torn_or_misnamed_mask_fails(folders):
    one, other = mask_of(folders), mask_of(folders, sequence="T1")
    one.write_bytes(one.read_bytes()[:60])
    other.write_bytes(gzip.decompress(other.read_bytes()))

    assert failed_rules(run(folders)) == ["misnamed", "readable"]


def test_a_missing_required_mask_fails_and_a_missing_optional_one_is_noted(folders):
    mask_of(folders, "0007-C").unlink()
    mask_of(folders, sequence="T1").unlink()

    result = run(folders)

    assert failed_rules(result) == ["extra", "present"]
    (note,) = [check for check in result.checks if check.status == "NOTE"]
    assert note.subject == "0930-A/T1"


@pytest.mark.parametrize(
    ("extra", "rules"),
    [
        ("LiSeg_pred/0930-A/.1a2b.partial-GED4_pred.nii.gz", ["extra"]),
        ("LiSeg_pred/.DS_Store", ["extra"]),
        ("LiSeg_pred/0930-A/GED1_pred.nii.gz", ["name"]),
        ("LiSeg_pred/0930-A/DWI_pred.nii.gz", ["name"]),
        ("LiSeg_pred/0930-A/t2_pred.nii.gz", ["name"]),
        ("LiSeg_pred/0930-A/T2_pred.nii.gz", ["name"]),
        ("LiSeg_pred/0930-A/GED4_pred.nii", ["name"]),
        ("LiSeg_pred/0930/GED4_pred.nii.gz", ["unknown_case"]),
        ("LiSeg_pred/GED4_pred.nii.gz", ["depth"]),
        ("LiSeg_pred/Vendor_A/0930-A/GED4_pred.nii.gz", ["depth", "vendor_level"]),
    ],
)
def test_nothing_else_may_lie_among_the_predictions(folders, extra, rules):
    path = folders[1] / extra
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")

    assert failed_rules(run(folders)) == rules


def test_an_empty_folder_among_the_predictions_fails(folders):
    (folders[1] / "LiSeg_pred" / "0931-A").mkdir()

    assert failed_rules(run(folders)) == ["extra"]


def test_an_output_without_predictions_fails(folders, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()

    assert failed_rules(run((folders[0], empty))) == ["folder", "present", "present"]


def test_volumes_outside_the_challenge_are_checked_too(tmp_path):
    scan = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 9, (5, 6, 7), np.int16))
    scan.SetSpacing((1.0, 1.5, 4.0))
    scan.SetOrigin((5.0, 6.0, 7.0))
    (tmp_path / "in").mkdir()
    for name in ("anna.mha", "bert.nrrd", "carl.mha"):
        sitk.WriteImage(scan, str(tmp_path / "in" / name))
    volume = read_volume(tmp_path / "in" / "anna.mha")
    mask = np.ones(volume.geometry.shape_zyx, np.uint8)
    write_mask(mask, like=volume, path=tmp_path / "out" / "anna_liver.nii.gz")
    moved = sitk.GetImageFromArray(mask)
    sitk.WriteImage(moved, str(tmp_path / "out" / "bert_liver.nii.gz"))

    result = validate(input_path=tmp_path / "in", output_dir=tmp_path / "out")

    failures = {(c.subject, c.rule) for c in result.checks if c.status == "FAIL"}
    assert {("bert", "affine"), ("carl", "present")} <= failures
    assert not any(subject == "anna" for subject, _ in failures)


def test_an_unreadable_image_leaves_its_mask_unproven(folders):
    (folders[0] / "Vendor_C/0007-C/GED4.nii.gz").write_bytes(b"\x1f\x8bxx")

    assert failed_rules(run(folders)) == ["readable"]


def test_problems_of_the_input_are_noted(folders):
    (folders[0] / "Vendor_A" / "0999-A").mkdir()

    notes = [check for check in run(folders).checks if check.rule == "input"]

    assert [note.status for note in notes] == ["NOTE"]
    assert notes[0].subject.endswith("0999-A")


@pytest.mark.parametrize("missing", [0, 1])
def test_nothing_to_check_is_an_error(folders, tmp_path, missing):
    empty = tmp_path / "none"
    paths = list(folders)
    paths[missing] = empty
    if missing == 0:
        empty.mkdir()

    with pytest.raises(NoInputError):
        run(paths)


def test_the_command_prints_lines_writes_json_and_ends_with_the_exit_code(
    folders, tmp_path, capsys
):
    args = ["validate", "--input", str(folders[0]), "--output", str(folders[1])]

    assert main(args) == 0
    assert capsys.readouterr().out.endswith("7 checks, 0 failed\n")
    mask_of(folders).unlink()
    assert main([*args, "--json", str(tmp_path / "v.json")]) == 1

    assert "FAIL  0930-A/GED4: the required mask is missing [present]" in capsys.readouterr().out
    assert json.loads((tmp_path / "v.json").read_text())["failures"] == 1


def test_a_guess_is_noted(folders):
    source, output = folders
    mask = "LiSeg_pred/0930-A/T1_pred.nii.gz"
    guess = SeriesResult("0930-A", "A", "T1", "in", mask, SeriesStatus.FALLBACK)
    run = start_report(models=(), device="cpu", backend="none", options={})
    write_report(run.with_series(guess), output / "run_report.json")

    checks = validate(input_path=source, output_dir=output).checks

    [note] = [check for check in checks if check.rule == "guess"]
    assert (note.status, note.subject) == ("NOTE", "0930-A/T1")
