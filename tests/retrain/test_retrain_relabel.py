"""Failures while re-predicting are told, tried again, and never taken for a result."""

from pathlib import Path

import numpy as np
import pytest
from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan

from sslmedsam2.contract.pseudo_label_outputs import pseudo_label_paths
from sslmedsam2.errors import InputError, OutputError, SslMedSam2Error
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.records import write_record
from sslmedsam2.retrain import relabel as module
from sslmedsam2.retrain.index import Index
from sslmedsam2.retrain.relabel import RelabelUnit, fused, refuse_if_nearly_all_failed
from sslmedsam2.retrain.select import Candidate, PseudoLabel
from sslmedsam2.retrain.state import RelabelRecord, RetrainOptions, RoundDir

QUERY = ImageFile(case="0011-B1", sequence="T2", path=Path("T2.nii.gz"), sha256="0")
RECORD = RelabelRecord("0011-B1", "T2", "key", (0,), trained=True)


@pytest.fixture
def unit(tmp_path):
    paths = pseudo_label_paths(tmp_path, QUERY)
    label = PseudoLabel(QUERY, paths, Candidate(QUERY.name, "accept"), has_mask=False)
    return RelabelUnit(RECORD, label, paths, (0,), paths.probability)


def _fail_with(monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(module, "_written", fails)


def test_a_full_disk_ends_the_round_and_is_no_images_error(unit, monkeypatch):
    _fail_with(monkeypatch, OutputError("disk", reason="it is full", remedy="Free disk space"))

    with pytest.raises(OutputError, match="it is full"):
        module._relabel(unit, {})
    assert not unit.paths.record.exists()


def test_a_mask_whose_maps_could_not_be_written_is_not_left_behind(unit, monkeypatch):
    def fails_after_the_mask(*_):
        write_scan(unit.paths.mask, small_abdomen(1)[1], affine_ras=SMALL_AFFINE_RAS)
        raise OutputError("map", reason="the disk is full", remedy="Free space")

    monkeypatch.setattr(module, "_written", fails_after_the_mask)
    with pytest.raises(OutputError):
        module._relabel(unit, {})
    assert not list(unit.paths.mask.parent.iterdir())


@pytest.mark.parametrize(
    "error",
    [InputError("a", kind="b", reason="it is damaged", remedy="c"), ValueError("it is damaged")],
)
def test_another_error_stays_with_its_image(unit, monkeypatch, error):
    _fail_with(monkeypatch, error)

    assert "it is damaged" in module._relabel(unit, {}).error


def test_an_error_is_never_kept_and_a_finished_mask_is(unit):
    mask = small_abdomen(1)[1]
    write_scan(unit.paths.mask, mask, dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)
    write_record(unit.paths.record, RECORD)
    assert module._kept(unit.paths, "key") == RECORD
    assert module._kept(unit.paths, "other networks") is None
    write_record(unit.paths.record, RelabelRecord(**{**vars(RECORD), "error": "the disk was full"}))
    assert module._kept(unit.paths, "key") is None


def test_a_corrected_mask_is_kept_whatever_the_networks_are(unit):
    mask = small_abdomen(1)[1]
    write_scan(unit.paths.mask, mask, dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)
    record = RelabelRecord(**{**vars(RECORD), "mask_sha256": "of the mask before"})
    write_record(unit.paths.record, record)

    assert module._kept(unit.paths, "other networks") == record


def test_a_mask_without_its_record_is_moved_aside_and_not_overwritten(unit, monkeypatch):
    mask = small_abdomen(1)[1]
    write_scan(unit.paths.mask, mask, dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)
    before = unit.paths.mask.read_bytes()
    _fail_with(monkeypatch, ValueError("no matter"))

    module._relabel(unit, {})
    (moved,) = unit.paths.mask.parent.iterdir()
    assert moved.name.startswith("T2_pred.nii.gz.replaced-")
    assert moved.read_bytes() == before


@pytest.mark.parametrize(("failed", "refused"), [(0, False), (3, False), (4, True), (5, True)])
def test_a_round_in_which_nearly_all_failed_is_refused(failed, refused):
    errors = ["a: the first error."] * failed + [None] * (5 - failed)
    if not refused:
        refuse_if_nearly_all_failed(Path("round_1"), errors)
        return
    with pytest.raises(SslMedSam2Error, match=rf"round_1: {failed} of 5 images failed.*the first"):
        refuse_if_nearly_all_failed(Path("round_1"), errors)


def test_new_mask_is_the_weighted_mean_and_ignored_where_the_branches_contradict_each_other():
    network = np.array([0.9, 1.0, 0.1, 0.0], np.float32)
    fewshot = np.array([0.9, 0.0, 0.1, 0.4], np.float32)

    probability, uncertainty = fused(network, fewshot, weight=0.25)
    np.testing.assert_allclose(probability, [0.9, 0.75, 0.1, 0.1], atol=1e-6)
    assert uncertainty[1] == 1
    assert uncertainty.max(where=np.array([True, False, True, True]), initial=0) < 0.5
    alone, certain = fused(network, fewshot, weight=1.0)
    np.testing.assert_allclose(alone, fewshot)
    assert certain[1] < 1e-4, "a mask that counts alone is not doubted"


def test_reference_masks_of_another_sequence_do_not_weigh_the_branches(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "sha256_file", lambda _path: "0")
    labelled = ImageFile(case="0001-A", sequence="GED4", path=Path("GED4.nii.gz"), sha256="0")
    queries = tuple(
        ImageFile(case="0002-A", sequence=name, path=Path(f"{name}.nii.gz"), sha256="0")
        for name in ("GED4", "T1")
    )
    labels = [
        PseudoLabel(
            query, pseudo_label_paths(tmp_path, query), Candidate(query.name, "accept"), False
        )
        for query in queries
    ]
    options = RetrainOptions(tmp_path, tmp_path, tmp_path / "work", folds=2)
    units = module._units(
        RoundDir(tmp_path / "work" / "round_1", 1),
        Index((labelled,), queries, (), None),
        labels,
        options,
        trained=frozenset(),
        fewshot_weight=0.1,
    )

    assert [unit.blank.fewshot_weight for unit in units] == [0.1, 0.5]
