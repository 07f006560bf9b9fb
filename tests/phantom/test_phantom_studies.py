import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from sslmedsam2.cli.phantom import phantom
from sslmedsam2.errors import UsageError
from sslmedsam2.phantom import studies
from sslmedsam2.phantom.studies import Scan, example_cases, write_case, write_training_cases

SHIPPED = Path(__file__).parents[2] / "test_inputs"
SMALL = Scan("GED4", (10, 32, 40), (22.0, 8.0, 8.0), np.diag([1.0, -1.0, 1.0]))


def shipped_image(case, sequence):
    return nib.load(SHIPPED / "images" / case.vendor_folder / case.name / f"{sequence}.nii.gz")


def shipped_mask(case, sequence):
    return nib.load(SHIPPED / "references" / case.name / f"mask_{sequence}.nii.gz")


@pytest.mark.parametrize("case", example_cases(), ids=lambda case: case.name)
def test_shipped_references_lie_on_their_images(case):
    for scan in case.scans:
        image, mask = shipped_image(case, scan.sequence), shipped_mask(case, scan.sequence)
        assert mask.shape == image.shape
        assert np.array_equal(mask.affine, image.affine)
        assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}


def test_shipped_inputs_show_the_forms_met_in_practice():
    images = [shipped_image(case, scan.sequence) for case in example_cases() for scan in case.scans]
    axes = [nib.affines.voxel_sizes(image.affine) for image in images]
    directions = [image.affine[:3, :3] / sizes for image, sizes in zip(images, axes, strict=True)]
    assert any(image.ndim == 4 and image.shape[3] == 1 for image in images)
    assert any(np.linalg.det(direction) < -0.9 for direction in directions)
    assert any(np.abs(direction).max() < 0.999 for direction in directions)
    assert {str(image.get_data_dtype()) for image in images} == {"int16", "float32"}


def test_shipped_table_names_exactly_the_missing_sequences():
    with (SHIPPED / "images" / "info.csv").open(newline="") as file:
        rows = {row["Case"]: row["Missing Modality"].split(";") for row in csv.DictReader(file)}
    known = {"T1", "T2", "DWI_800", "GED1", "GED2", "GED3", "GED4"}
    for case in example_cases():
        folder = SHIPPED / "images" / case.vendor_folder / case.name
        present = {path.name.removesuffix(".nii.gz") for path in folder.iterdir()}
        assert set(rows[case.name]) == known - present


def test_shipped_inputs_stay_small():
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 5_000_000


def test_regenerating_gives_the_shipped_voxels(tmp_path):
    whole = example_cases()[3]
    case = replace(whole, scans=(min(whole.scans, key=lambda scan: np.prod(scan.shape_zyx)),))
    write_case(case, image_folder=tmp_path / "images", mask_folder=tmp_path / "masks")
    for scan in case.scans:
        image = nib.load(tmp_path / "images" / f"{scan.sequence}.nii.gz")
        mask = nib.load(tmp_path / "masks" / f"mask_{scan.sequence}.nii.gz")
        # Another processor may compute a sine one unit in the last place apart, and so round a
        # voxel here and there the other way.
        assert_nearly_same(image, shipped_image(case, scan.sequence))
        assert_nearly_same(mask, shipped_mask(case, scan.sequence))


def assert_nearly_same(made, shipped):
    assert np.array_equal(made.affine, shipped.affine)
    first, second = (np.asarray(image.dataobj).astype(float) for image in (made, shipped))
    assert np.abs(first - second).max() <= 1
    assert (first != second).mean() < 1e-4


def test_files_do_not_depend_on_the_time_of_writing(tmp_path):
    for folder in ("one", "two"):
        write_training_cases(tmp_path / folder, cases=1, labelled=1, seed=5, scans=[SMALL])
    names = ("GED4.nii.gz", "mask_GED4.nii.gz")
    for name in names:
        first, second = (
            (tmp_path / folder / "Vendor_A" / "1001-A-S1" / name).read_bytes()
            for folder in ("one", "two")
        )
        assert first == second
        assert first[4:8] == b"\0\0\0\0", "the gzip header holds no time"


def test_stored_world_positions_are_those_of_the_anatomy(tmp_path):
    write_training_cases(tmp_path, cases=1, labelled=1, seed=5, scans=[SMALL])
    mask = nib.load(tmp_path / "Vendor_A" / "1001-A-S1" / "mask_GED4.nii.gz")
    centre = nib.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata())).mean(axis=0)
    assert nib.aff2axcodes(mask.affine) == ("L", "A", "S")
    assert centre[0] > 40, "the liver is on the right, where RAS x grows"
    assert -110 < centre[2] < -30


def test_only_the_first_training_cases_get_masks(tmp_path):
    write_training_cases(tmp_path, cases=3, labelled=1, seed=0, scans=[SMALL])
    images = sorted(path.parent.name for path in tmp_path.rglob("GED4.nii.gz"))
    masks = [path.parent.name for path in tmp_path.rglob("mask_*.nii.gz")]
    assert images == ["1001-A-S1", "1002-B1-S2", "1003-B2-S3"]
    assert masks == ["1001-A-S1"]


@pytest.fixture
def small_cases(monkeypatch):
    """Shrink the built-in cases, which take seconds each."""
    cases = [replace(case, scans=(SMALL,)) for case in example_cases()[:2]]
    monkeypatch.setattr(studies, "example_cases", lambda: tuple(cases))


@pytest.mark.usefixtures("small_cases")
def test_command_writes_test_inputs_with_references_apart(tmp_path):
    result = CliRunner().invoke(phantom, ["--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "README.txt",
        "images/info.csv",
        "images/Vendor-A/0001-A/GED4.nii.gz",
        "images/Vendor_B1/0002-B1/GED4.nii.gz",
        "references/0001-A/mask_GED4.nii.gz",
        "references/0002-B1/mask_GED4.nii.gz",
    }


@pytest.mark.usefixtures("small_cases")
def test_command_labels_all_training_cases_unless_told_otherwise(tmp_path):
    for folder, labelled in (("all", []), ("one", ["--labelled", "1"])):
        arguments = ["--output", str(tmp_path / folder), "--cases", "2", *labelled]
        assert CliRunner().invoke(phantom, arguments).exit_code == 0
    assert len(list((tmp_path / "all").rglob("mask_*"))) == 2
    assert len(list((tmp_path / "one").rglob("mask_*"))) == 1


@pytest.mark.parametrize("arguments", [["--labelled", "1"], ["--labelled", "3", "--cases", "2"]])
def test_command_refuses_more_labelled_cases_than_there_are(tmp_path, arguments):
    result = CliRunner().invoke(phantom, ["--output", str(tmp_path), *arguments])
    assert isinstance(result.exception, UsageError)
    assert not list(tmp_path.iterdir())
