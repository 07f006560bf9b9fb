"""The page of work directories in all states, made by hand."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from parsed_page import ParsedPage
from retrain_samples import options
from tiny_scans import SPACING_ZYX_MM, abdomen

from sslmedsam2.contract.pseudo_label_outputs import CALIBRATION_NAME, pseudo_label_paths
from sslmedsam2.errors import UsageError
from sslmedsam2.fewshot.strategy import Evidence
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.records import write_record
from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.nnunet.training import trained_model_dir
from sslmedsam2.pseudo_label.records import CalibrationCase, PseudoLabelRecord, calibrate_on
from sslmedsam2.reporting.previews import draw_preview
from sslmedsam2.retrain.index import Index
from sslmedsam2.retrain.page import page_or_warn, write_retrain_page
from sslmedsam2.retrain.select import Choice, Selection
from sslmedsam2.retrain.state import RelabelRecord, WorkDir, as_stored
from sslmedsam2.train.fold_scores import FoldScore

QUERIES = (("0011-B1", "T2"), ("0012-B1", "T2"), ("0013-B1", None))
DICES = (("1001-A/T2", 0.8), ("1002-A/T2", 0.9))
VERDICTS = ("accept", "doubtful", "reject")
FEWSHOT = "Pseudo labels of the few-shot branch"
ROUNDS = "The few-shot branch and all rounds"


def query(case, sequence):
    return ImageFile(case=case, vendor="B1", sequence=sequence, path=Path("/data/x"))


class WorkMaker:
    """A work directory that is filled stage by stage."""

    def __init__(self, root):
        self.work = WorkDir(root / "work")
        write_record(self.work.options, as_stored(options(root)))
        labelled = tuple(
            ImageFile(
                case=case,
                sequence="T2",
                path=Path(f"/data/{case}/T2.nii.gz"),
                mask=Path(f"/data/{case}/mask_T2.nii.gz"),
            )
            for case in ("1001-A", "1002-A")
        )
        queries = tuple(
            ImageFile(case=case, vendor="B1", sequence=sequence, path=Path("/data/x"), sha256="0")
            for case, sequence in QUERIES
        )
        index = Index(labelled, queries, ("/data/y: is left out",), None, ({}, {}))
        write_record(self.work.index, index)

    def pseudo_label(self, number):
        """Label one image."""
        case, sequence = QUERIES[number]
        paths = pseudo_label_paths(self.work.pseudo_labels, query(case, sequence))
        record = PseudoLabelRecord(
            case,
            sequence,
            "B1",
            "x",
            verdict=VERDICTS[number],
            estimated_dice=0.9 - 0.2 * number,
            interval=(0.5, 0.95),
            volume_ml=1400.0,
            warnings=("low_agreement: they differ",) if number else (),
        )
        write_record(paths.record, record)
        self._preview(paths.preview, case)

    def pseudo_label_all(self):
        """Label all images, and calibrate the few-shot branch."""
        for number in range(len(QUERIES)):
            self.pseudo_label(number)
        calibration = self.work.pseudo_labels / CALIBRATION_NAME
        evidence = Evidence(0.7, 0.9, 1.0)
        found = [CalibrationCase(name=name, dice=d, evidence=evidence) for name, d in DICES]
        write_record(calibration, calibrate_on(found, key="key"))

    def begin(self, number):
        """Select for a round."""
        names = ["/".join(filter(None, query)) for query in QUERIES]
        choices = (
            Choice(names[0], True, "accepted by the few-shot branch", 0.02),
            Choice(names[1], False, "doubtful: waits for networks to agree on it"),
            Choice(names[2], False, "rejected by the few-shot branch"),
        )
        write_record(self.work.round(number).selection, Selection("", choices))

    def train(self, number, fold, *, epochs=2, file="checkpoint_final.pth"):
        """Write a checkpoint as nnU-Net logs into it."""
        folder = trained_model_dir(self.work.round(number).path) / f"fold_{fold}"
        folder.mkdir(parents=True)
        values = [np.float32(0.5) for _ in range(epochs)]
        names = ("train_losses", "val_losses", "mean_fg_dice", "lrs")
        content = {
            "network_weights": {"w": torch.zeros(1)},
            "init_args": {"configuration": "3d_fullres"},
            "logging": dict.fromkeys(names, values),
        }
        torch.save(content, folder / file)
        return folder / file

    def validate(self, number):
        """Score both folds."""
        scores = [
            FoldScore(case, "T2", fold, 0.8 + 0.1 * fold, 20.0, 8.0)
            for fold, case in enumerate(("1001-A", "1002-A"))
        ]
        write_record(self.work.round(number).validation, scores)

    def relabel(self, number, *images, error=None):
        """Re-predict some images."""
        round_dir = self.work.round(number)
        for image in images:
            case, sequence = QUERIES[image]
            series = query(case, sequence)
            paths = pseudo_label_paths(round_dir.relabelled, series)
            record = RelabelRecord(
                case,
                sequence,
                "key",
                (0,),
                trained=image == 0,
                fewshot_weight=0.0 if image == 2 else 0.4,
                agreement=None if image == 0 else 0.71,
                change_dice=None if error else 0.6 + 0.1 * image,
                volume_ml=0.0 if error else 1500.0,
                mean_confidence=None if error else 0.9,
                error=error,
            )
            write_record(paths.record, record)
            if not error:
                self._preview(paths.preview, case)

    def finish(self, number, *, dice=0.85):
        """Write the outcome."""
        outcome = {
            "round": number,
            "validation_dice": dice,
            "validation_hausdorff_mm": 20.0,
            "change_dice": 0.65,
            "changes": {},
            "trained": 1,
            "waiting": 1,
            "rejected": 1,
            "failed": 0,
        }
        write_record(self.work.round(number).outcome, outcome)

    def whole_round(self, number):
        """Do all stages of a round."""
        self.begin(number)
        self.train(number, 0)
        self.train(number, 1)
        self.validate(number)
        self.relabel(number, 0, 1, 2)
        self.finish(number)

    def page(self, **more):
        """Write the page and read it."""
        return ParsedPage(write_retrain_page(self.work, **more))

    @staticmethod
    def _preview(path, title):
        image, mask = abdomen()
        canonical = CanonicalVolume(image, SPACING_ZYX_MM, Reorientation((0, 1, 2), ()))
        draw_preview(canonical, mask, path=path, title=title)


@pytest.fixture
def maker(tmp_path):
    return WorkMaker(tmp_path)


@pytest.fixture(scope="module")
def after_one_round(tmp_path_factory):
    """The page of a work directory with one finished round."""
    maker = WorkMaker(tmp_path_factory.mktemp("one_round"))
    maker.pseudo_label_all()
    maker.whole_round(1)
    return maker.page()


def test_finished_rounds_are_shown_from_their_records(maker):
    maker.pseudo_label_all()
    maker.whole_round(1)
    maker.whole_round(2)
    page = maker.page()
    assert "2labelled, of 2 patient(s)" in page.text
    assert "3unlabelled, of 3 patient(s)" in page.text
    assert (
        "Best is round 2, by its Dice of 0.8500 on reference masks. Ended: the limit of 2 round(s)"
        in page.text
    )
    fewshot, first, _ = page.table(ROUNDS)
    assert fewshot["Dice"] == "0.8500"
    assert (first["State"], first["Dice to the last"]) == ("finished", "0.6500")
    assert (first["Trained"], first["Waiting"], first["Rejected"]) == ("1", "1", "1")
    assert "New masks: 60 % networks, 40 % few-shot branch." in page.text
    assert "/data/y: is left out" in page.text


def test_a_network_below_the_few_shot_branch_has_a_warning(maker, after_one_round):
    assert "Warning:" not in after_one_round.text
    maker.pseudo_label_all()
    maker.begin(1)
    maker.finish(1, dice=0.7)
    assert "is worse than the few-shot branch" in maker.page().text


def test_each_pseudo_label_is_read_from_selection_and_record(after_one_round):
    page = after_one_round
    trained, waiting, rejected = page.table("Pseudo labels of round 1")
    assert (trained["Trains"], trained["Ignored %"], trained["Agreement"]) == ("trains", "2.0", "")
    assert (waiting["Verdict"], waiting["Trains"]) == ("doubtful", "waits")
    assert (waiting["Agreement"], waiting["Dice to the last"]) == ("0.7100", "0.7000")
    assert rejected["Why"] == "rejected by the few-shot branch"
    assert (rejected["Case"], rejected["Sequence"]) == ("0013-B1", "")
    scores = page.table("Reference masks in round 1")
    assert [(score["Case"], score["Dice"]) for score in scores] == [
        ("1001-A", "0.8000"),
        ("1002-A", "0.9000"),
    ]


def test_the_best_and_the_worst_masks_are_those_of_the_records(after_one_round):
    reported = [picture["alt"].split(" with ")[0] for picture in after_one_round.found("img")]
    by_estimate = ["0013-B1", "0011-B1/T2", "0012-B1/T2"]
    by_change = ["0011-B1/T2", "0013-B1", "0012-B1/T2"]
    assert reported == [f"Three slices of {name}" for name in (*by_estimate, *by_change)]


def test_pseudo_labels_alone_have_their_page(maker):
    maker.pseudo_label_all()
    maker.begin(1)
    page = maker.page()
    assert "No round is finished yet. Round 1: pseudo labels chosen." in page.text
    line = page.table(ROUNDS)[1]
    assert (line["Trained"], line["Waiting"], line["Rejected"]) == ("1", "1", "1")
    assert [row["Verdict"] for row in page.table(FEWSHOT)] == list(VERDICTS)
    assert page.table(FEWSHOT)[1]["Warnings and errors"] == "low_agreement: they differ"


def test_images_that_are_not_labelled_yet_are_named(maker):
    maker.pseudo_label(0)
    page = maker.page()
    assert [row["Verdict"] for row in page.table(FEWSHOT)] == [
        "accept",
        "not labelled yet",
        "not labelled yet",
    ]
    assert "No round has begun yet." in page.text
    assert page.table(ROUNDS)[0]["Dice"] == ""


def test_a_round_in_training_shows_how_far_each_fold_is(maker):
    maker.pseudo_label_all()
    maker.begin(1)
    maker.train(1, 0)
    maker.train(1, 1, epochs=1, file="checkpoint_latest.pth")
    page = maker.page()
    reported = "training, fold 0 at epoch 2, fold 1 at epoch 1 of 2"
    assert page.table(ROUNDS)[1]["State"] == reported
    losses = [svg["aria-label"] for svg in page.found("svg") if "Loss on t" in str(svg)]
    assert losses == ["Loss on training patches: fold 0 from 0.5 to 0.5, fold 1 from 0.5 to 0.5"]


def test_a_round_that_is_scored_or_half_re_predicted_says_so(maker):
    maker.pseudo_label_all()
    maker.begin(1)
    maker.validate(1)
    line = maker.page().table(ROUNDS)[1]
    assert (line["State"], line["Dice"]) == ("scored on reference masks", "0.8500")
    maker.relabel(1, 0, 1)
    page = maker.page()
    assert page.table(ROUNDS)[1]["State"] == "2 of 3 unlabelled images re-predicted"
    assert page.table("Pseudo labels of round 1")[2]["Dice to the last"] == ""


def test_an_image_that_failed_is_counted_and_says_why(maker):
    maker.pseudo_label_all()
    maker.begin(1)
    maker.relabel(1, 1, error="0012-B1: the file has gone")
    page = maker.page()
    assert page.table(ROUNDS)[1]["Failed"] == "1"
    row = page.table("Pseudo labels of round 1")[1]
    assert (row["Error"], row["Liver ml"]) == ("0012-B1: the file has gone", "")


def test_a_round_that_is_made_anew_is_not_finished(maker):
    maker.pseudo_label_all()
    maker.whole_round(1)
    shutil.rmtree(maker.work.round(1).path)
    maker.begin(1)
    assert "No round is finished yet." in maker.page().text


def test_a_damaged_checkpoint_costs_only_its_curves(maker, caplog):
    maker.pseudo_label_all()
    maker.whole_round(1)
    (damaged,) = maker.work.path.rglob("fold_1/checkpoint_final.pth")
    damaged.write_bytes(damaged.read_bytes()[:100])
    labels = [svg.get("aria-label", "") for svg in maker.page().found("svg")]
    assert "Learning rate: fold 0 from 0.5 to 0.5" in labels
    assert "fold_1/checkpoint_final.pth" in caplog.text


def test_what_was_frozen_is_reported(maker):
    maker.pseudo_label_all()
    assert "Frozenliver, folds 0 and 1" in maker.page(frozen="liver, folds 0 and 1").text


def test_a_folder_that_was_never_begun_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"index\.json"):
        write_retrain_page(WorkDir(tmp_path))


def test_a_page_that_cannot_be_written_does_not_end_the_run(maker, caplog):
    (maker.work.path / "report").write_text("a file")
    page_or_warn(maker.work)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "the page of the run could not be written" in warning.getMessage()
    assert "\n" not in warning.getMessage()


def test_damaged_records_do_not_end_the_run_either(maker, caplog):
    maker.pseudo_label_all()
    maker.begin(1)
    maker.work.round(1).selection.write_text("{}")
    page_or_warn(maker.work)
    assert "the page of the run could not be written" in caplog.text
