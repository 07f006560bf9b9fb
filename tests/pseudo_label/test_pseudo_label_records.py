"""What stands of an earlier run: corrections by a person always, the rest as far as it holds."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from pseudo_label_samples import Workplace

from sslmedsam2.contract.pseudo_label_outputs import TABLE_NAME
from sslmedsam2.pseudo_label import pipeline, query
from sslmedsam2.pseudo_label.records import PseudoLabelRecord, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

CASE = "0001-A"


@pytest.fixture(scope="module")
def earlier_run(tmp_path_factory, small_sam2):
    """A folder where two supports have labelled a query; tests get copies."""
    place = Workplace(tmp_path_factory.mktemp("earlier"), small_sam2)
    place.add_support("1001-A-S1", seed=1)
    place.add_support("1002-A-S2", seed=2)
    place.add_query(f"{CASE}/T2.nii.gz", n_slices=5)
    place.run()
    return place


@pytest.fixture
def labelled(earlier_run, tmp_path):
    """A folder where two supports have labelled a query."""
    return earlier_run.copy_to(tmp_path / "labelled")


def correct(path):
    """Move a mask by a slice, as a person might correct it, and return the file's content."""
    image = nib.load(path)
    moved = np.roll(np.asarray(image.dataobj), 1, axis=2)
    nib.save(nib.Nifti1Image(moved, image.affine, image.header), path)
    return path.read_bytes()


def test_a_correction_stands_with_and_without_resume_and_through_every_change(
    labelled, monkeypatch
):
    mask = labelled.paths(CASE).mask
    corrected = correct(mask)

    assert labelled.run(resume=True).kept == 1
    assert mask.read_bytes() == corrected
    assert labelled.run().kept == 1
    assert mask.read_bytes() == corrected
    monkeypatch.setattr(pipeline, "__version__", "99.0")
    labelled.add_support("1003-A-S3", seed=3)
    assert labelled.run(resume=True).kept == 1
    assert mask.read_bytes() == corrected
    assert not list(labelled.output.rglob("*.replaced-*"))


def test_table_has_the_volume_of_a_corrected_mask_and_no_estimate(labelled):
    table = labelled.output / TABLE_NAME
    with table.open(newline="") as file:
        before = {row["case"]: row for row in csv.DictReader(file)}
    mask = labelled.paths(CASE).mask
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine, image.header), mask)

    kept = {record.case: record for record in labelled.run(resume=True).records}

    with table.open(newline="") as file:
        after = {row["case"]: row for row in csv.DictReader(file)}
    volume_ml = np.prod(image.shape) * np.prod(image.header.get_zooms()) / 1000
    assert float(after[CASE]["volume_ml"]) == pytest.approx(volume_ml, abs=0.1)
    assert (after[CASE]["verdict"], after[CASE]["estimated_dice"]) == ("accept", "")
    assert float(before[CASE]["volume_ml"]) < volume_ml
    assert (kept[CASE].verdict, kept[CASE].estimated_dice) == ("accept", None)


def test_another_version_alone_does_nothing_again(labelled, monkeypatch):
    mask = labelled.paths(CASE).mask
    before = mask.stat().st_mtime_ns
    monkeypatch.setattr(pipeline, "__version__", "99.0")

    assert labelled.run(resume=True).kept == 1
    assert mask.stat().st_mtime_ns == before


def test_a_correction_of_another_image_is_moved_aside(labelled):
    mask = labelled.paths(CASE).mask
    corrected = correct(mask)
    labelled.add_query(f"{CASE}/T2.nii.gz", seed=44, n_slices=5)

    assert labelled.run(resume=True).kept == 0
    (moved,) = mask.parent.glob("*.replaced-*")
    assert moved.name.startswith(f"{mask.name}.replaced-")
    assert moved.read_bytes() == corrected
    assert labelled.record(CASE)["mask_sha256"] != ""
    assert mask.read_bytes() != corrected


def test_a_calibration_that_was_stopped_goes_on_where_it_was(labelled, monkeypatch):
    labelled.add_support("1003-A-S3", seed=3)
    asked, leave_out = [], query.leave_out

    def fails_at_third(strategy, support):
        asked.append(support.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return leave_out(strategy, support)

    monkeypatch.setattr(query, "leave_out", fails_at_third)
    with pytest.raises(KeyboardInterrupt):
        labelled.run(resume=True)
    path = labelled.output / "calibration.json"
    kept = [case["name"] for case in json.loads(path.read_text())["cases"]]
    assert kept == asked[: len(kept)] != []

    labelled.run(resume=True)
    assert not set(asked[3:]) & set(kept)
    resumed = json.loads(path.read_text())
    asked.extend(["x"] * 3)
    labelled.run()
    assert json.loads(path.read_text()) == resumed
    assert len(resumed["cases"]) == 3


def test_a_case_named_like_a_formula_is_text_in_the_table(tmp_path):
    problem = PseudoLabelRecord("=1+1", "T2", None, "=1+1/T2.nii.gz", error="cannot be read")
    table = write_table(tmp_path, problems=[problem])
    with table.open(encoding="utf-8", newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["case"], row["error"]) == ("'=1+1", "cannot be read")
