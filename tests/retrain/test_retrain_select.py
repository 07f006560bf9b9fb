"""What a round trains on, and what becomes of a round whose labels have changed."""

from pathlib import Path

import numpy as np
import pytest
from retrain_samples import content, options
from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan

from sslmedsam2.contract.pseudo_label_outputs import pseudo_label_paths
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.records import read_record, sha256_file, write_record
from sslmedsam2.nnunet.plans import IGNORE, LIVER, UNSURE_LIVER
from sslmedsam2.pseudo_label.records import PseudoLabelRecord
from sslmedsam2.retrain import select as rules
from sslmedsam2.retrain.index import Index
from sslmedsam2.retrain.select import (
    Candidate,
    Choice,
    Selection,
    choose,
    ever_trained,
    fewshot_labels,
    relabelled,
    select,
    training_labels,
)
from sslmedsam2.retrain.state import RelabelRecord, WorkDir
from sslmedsam2.retrain.train_round import fold_cases

CASES = ("0011-B1", "0012-B1")


class Labels:
    """A work directory with accepted pseudo labels, their masks and their uncertainty."""

    def __init__(self, root: Path) -> None:
        self.options = options(root)
        self.work = WorkDir(root / "work")
        self.queries = [
            ImageFile(case=case, sequence="T2", path=root / case / "T2.nii.gz", sha256=case)
            for case in CASES
        ]
        for seed, query in enumerate(self.queries):
            image, mask = small_abdomen(seed)
            write_scan(query.path, image, affine_ras=SMALL_AFFINE_RAS)
            self.write(query, mask, np.zeros(mask.shape))

    def write(self, query: ImageFile, mask, uncertainty) -> None:
        """Write a pseudo label of the few-shot branch."""
        paths = pseudo_label_paths(self.work.pseudo_labels, query)
        _write(paths, mask, uncertainty)
        record = PseudoLabelRecord(
            query.case,
            query.sequence,
            None,
            "x",
            verdict="accept",
            volume_ml=1400.0,
            mask_sha256=sha256_file(paths.mask),
        )
        write_record(paths.record, record)

    def relabel(self, number: int, query: ImageFile, mask, **more) -> Path:
        """Write the new mask of a round."""
        paths = pseudo_label_paths(self.work.round(number).relabelled, query)
        _write(paths, mask, np.zeros(mask.shape))
        record = RelabelRecord(
            query.case,
            query.sequence,
            "key",
            (0,),
            trained=True,
            volume_ml=1400.0,
            mask_sha256=sha256_file(paths.mask),
            **more,
        )
        write_record(paths.record, record)
        return paths.mask

    def select(self, number: int) -> list[str]:
        """Select for a round, and return which cases train."""
        labels = fewshot_labels(self.work, self.queries)
        if number > 1:
            labels = relabelled(self.work.round(number - 1), labels)
        return [
            image.case for image in select(self.work.round(number), labels, options=self.options)
        ]


def _write(paths, mask, uncertainty):
    write_scan(paths.mask, mask, dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)
    write_scan(paths.uncertainty, uncertainty, dtype=np.float32, affine_ras=SMALL_AFFINE_RAS)


def _correct(path: Path) -> np.ndarray:
    """Move a mask, as a person might correct it, and return its new voxels."""
    moved = np.roll(read_mask(path).array_zyx, 1, axis=0)
    write_scan(path, moved, dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)
    return moved


@pytest.fixture
def labels(tmp_path):
    return Labels(tmp_path)


def test_a_label_that_is_uncertain_all_over_waits_and_the_others_train(labels):
    mask = small_abdomen(0)[1]
    labels.write(labels.queries[0], mask, np.full(mask.shape, 0.977))

    assert labels.select(1) == [CASES[1]]
    first, second = read_record(labels.work.round(1).selection, Selection).choices
    assert not first.trains
    assert "uncertain all over" in first.reason
    assert second.trains
    written = labels.work.round(1).training_masks
    assert [path.parent.name for path in written.rglob("*.nii.gz")] == [CASES[1]]
    assert (read_mask(next(written.rglob("*.nii.gz"))).array_zyx == LIVER).any()
    # The same again finds the same, and keeps it.
    before = content(labels.work.path)
    assert labels.select(1) == [CASES[1]]
    assert content(labels.work.path) == before


def _flipped(mask):
    affine = SMALL_AFFINE_RAS.copy()
    affine[:3, 3] += affine[:3, 1] * (mask.shape[1] - 1)
    affine[:3, 1] *= -1
    return mask[:, ::-1], affine


def _with_another_organ(mask):
    organs = mask * np.uint8(2)
    organs[0, :5] = 1
    return organs, SMALL_AFFINE_RAS


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(_flipped, "lies on another grid"), (_with_another_organ, "more than two values")],
)
@pytest.mark.parametrize("relabelled_first", [False, True])
def test_a_correction_that_does_not_fit_its_image_is_refused(
    labels, spoil, reason, relabelled_first
):
    path = pseudo_label_paths(labels.work.pseudo_labels, labels.queries[0]).mask
    if relabelled_first:
        labels.select(1)
        path, _ = (labels.relabel(1, query, small_abdomen(3)[1]) for query in labels.queries)
    mask, affine = spoil(read_mask(path).array_zyx)
    write_scan(path, mask, dtype=np.uint8, affine_ras=affine)

    with pytest.raises(InputError, match=rf"T2_pred\.nii\.gz: .*{reason}"):
        labels.select(2 if relabelled_first else 1)


def test_other_words_for_the_same_choice_change_nothing(labels, monkeypatch):
    labels.select(1)
    (labels.work.round(1).path / "results").mkdir()
    before = content(labels.work.path)
    monkeypatch.setattr(rules, "_decide", lambda *_: (True, "said in other words"))

    labels.select(1)
    assert content(labels.work.path) == before
    assert (labels.work.round(1).path / "results").is_dir()


def test_rounds_whose_labels_have_changed_are_moved_aside_and_not_deleted(labels, caplog):
    labels.select(1)
    for query in labels.queries:
        labels.relabel(1, query, small_abdomen(3)[1])
    labels.select(2)
    before = [content(labels.work.round(number).path) for number in (1, 2)]
    _correct(pseudo_label_paths(labels.work.pseudo_labels, labels.queries[0]).mask)

    labels.select(1)
    moved = sorted(labels.work.path.glob("round_*.replaced-*"))
    assert [content(path) for path in moved] == before
    assert not labels.work.round(2).path.exists()
    for path in moved:
        assert path.name in caplog.text


def test_a_correction_inside_a_round_that_is_moved_aside_stands_in_the_new_one(labels):
    labels.select(1)
    masks = [labels.relabel(1, query, small_abdomen(3)[1]) for query in labels.queries]
    moved = _correct(masks[1])
    _correct(pseudo_label_paths(labels.work.pseudo_labels, labels.queries[0]).mask)

    labels.select(1)
    assert not masks[0].exists()
    np.testing.assert_array_equal(read_mask(masks[1]).array_zyx, moved)
    (label,) = relabelled(labels.work.round(1), fewshot_labels(labels.work, labels.queries[1:]))
    assert label.candidate.manually_corrected


def test_a_correction_of_a_new_mask_is_certain_and_trains(labels):
    labels.select(1)
    masks = [labels.relabel(1, query, small_abdomen(3)[1]) for query in labels.queries]
    moved = _correct(masks[0])
    uncertainty = pseudo_label_paths(labels.work.round(1).relabelled, labels.queries[0]).uncertainty
    write_scan(uncertainty, np.ones(moved.shape), dtype=np.float32, affine_ras=SMALL_AFFINE_RAS)

    assert labels.select(2) == list(CASES)
    trained_on = next((labels.work.round(2).training_masks / CASES[0]).iterdir())
    np.testing.assert_array_equal(read_mask(trained_on).array_zyx, moved)


def test_what_a_fold_trained_on_before_a_warm_start_is_remembered(tmp_path):
    work = WorkDir(tmp_path)
    for number, trains in ((1, True), (2, False)):
        choices = (Choice("0011-B1/T2", trains, ""), Choice("0012-B1/T2", number == 2, ""))
        write_record(work.round(number).selection, Selection("", choices))

    assert ever_trained(work.round(1), warm_start=True) == {"0011-B1/T2"}
    assert ever_trained(work.round(2), warm_start=True) == {"0011-B1/T2", "0012-B1/T2"}
    assert ever_trained(work.round(2), warm_start=False) == {"0012-B1/T2"}


@pytest.mark.parametrize(
    ("verdict", "more", "trains", "reason"),
    [
        ("accept", {}, True, "accepted"),
        ("accept", {"agreement": 0.1}, True, "accepted"),
        ("accept", {"has_liver": False}, False, "empty"),
        ("doubtful", {}, False, "waits"),
        ("doubtful", {"agreement": 0.79}, False, "do not agree (Dice 0.790)"),
        ("doubtful", {"agreement": 0.8}, True, "agree on it (Dice 0.800)"),
        ("doubtful", {"agreement": 0.9, "has_liver": False}, False, "empty"),
        ("doubtful", {"trained_before": True}, True, "earlier round"),
        ("reject", {}, False, "rejected"),
        ("reject", {"agreement": 1.0, "trained_before": True}, False, "rejected"),
        ("reject", {"manually_corrected": True}, True, "manually corrected"),
        ("accept", {"manually_corrected": True, "has_liver": False}, False, "empty"),
        (None, {}, False, "could not be labelled"),
    ],
)
def test_curriculum(verdict, more, trains, reason):
    choice = choose(Candidate("c", verdict, **more), agreement_needed=0.8)

    assert choice.trains is trains
    assert reason in choice.reason


def test_choices_keep_the_order_and_the_names():
    candidates = [Candidate("b", "reject"), Candidate("a", "accept"), Candidate("c", "doubtful")]
    choices = [choose(one, agreement_needed=0.8) for one in candidates]

    assert [(choice.name, choice.trains) for choice in choices] == [
        ("b", False),
        ("a", True),
        ("c", False),
    ]


def test_uncertain_voxels_are_ignored_within_and_without_the_mask():
    mask = np.array([[[0, 0, 1, 1]]], dtype=np.uint8)
    uncertainty = np.array([[[0.1, 0.95, 0.9, 0.91]]], dtype=np.float32)

    labels = training_labels(mask, uncertainty, ignore_above=np.float32(0.9))
    assert labels.tolist() == [[[0, IGNORE, LIVER, UNSURE_LIVER]]]
    assert labels.dtype == np.uint8


def test_nothing_is_ignored_above_the_highest_uncertainty():
    mask = np.array([[[0, 1]]], dtype=np.uint8)

    labels = training_labels(mask, np.ones((1, 1, 2), dtype=np.float32), ignore_above=1.0)
    assert labels.tolist() == [[[0, LIVER]]]


def test_a_patient_spelled_differently_is_left_out_by_one_fold():
    def image(case):
        return ImageFile(case=case, sequence="T2", path=Path("T2.nii.gz"), sha256="0")

    index = Index((image("Case1"), image("Case2")), (image("case1"), image("case3")), (), None)

    folds = fold_cases(index, n_folds=2)
    assert sorted(map(sorted, folds)) == [["Case1", "case1", "case3"], ["Case2"]]
