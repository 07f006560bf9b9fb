"""Whether the best round is frozen, and what its card says, from records made by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from retrain_samples import LABELLED, options, read, write_labelled
from tiny_models import bright_tissue_model, make_network, make_plans, write_model

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.pseudo_label_outputs import CALIBRATION_NAME
from sslmedsam2.errors import ExitCode, ModelError, OutputError, UsageError
from sslmedsam2.fewshot.strategy import Evidence
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.records import read_record, write_record
from sslmedsam2.inference.confidence import read_calibration
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.nnunet.training import trained_model_dir
from sslmedsam2.pseudo_label.records import CalibrationCase, calibrate_on
from sslmedsam2.retrain import pipeline
from sslmedsam2.retrain.freeze import FrozenScores, below_fewshot
from sslmedsam2.retrain.index import Index
from sslmedsam2.retrain.state import WorkDir
from sslmedsam2.retrain.stopping import RoundFigures, StoppingRule
from sslmedsam2.train.calibration import LEAST_PATIENTS
from sslmedsam2.train.fold_scores import FoldScore, load_folds, score_fold
from sslmedsam2.weights.freeze import check_freezable
from sslmedsam2.weights.locate import locate_models
from sslmedsam2.weights.model_files import find_folds


class Finished:
    """A work directory whose one round of two folds is finished, with networks of random weights.

    The few-shot branch has a Dice of 0.95 on reference masks, fold 0 of ``dices[0]`` and so on.
    """

    def __init__(
        self,
        root: Path,
        *,
        dices: tuple[float, float] = (0.5, 0.56),
        cases: tuple[str, ...] = LABELLED[:2],
    ) -> None:
        self.root = root
        self.work = WorkDir(root / "work")
        for seed, case in enumerate(cases, start=1):
            write_labelled(root / "labelled" / case, seed=seed)
        labelled = find_labelled_series(root / "labelled")
        query = ImageFile(case="0011-B1", sequence="T2", path=root / "a", sha256="0")
        write_record(self.work.index, Index(labelled, (query,), (), None, ({},) * len(cases)))
        evidence = Evidence(0.7, 0.9, 1.0)
        found = [CalibrationCase(name=name, dice=0.95, evidence=evidence) for name in "ab"]
        write_record(self.work.pseudo_labels / CALIBRATION_NAME, calibrate_on(found, key="key"))
        one = self.work.round(1)
        scores = [FoldScore("a", "T2", fold, dice, 9.0, 4.0) for fold, dice in enumerate(dices)]
        write_record(one.validation, scores)
        self.figures = RoundFigures(
            1, sum(dices) / 2, 0.9, trained=1, waiting=0, rejected=0, failed=0
        )
        write_record(one.outcome, self.figures)
        plans = make_plans()
        networks = {str(fold): make_network(plans, seed=fold) for fold in (0, 1)}
        write_model(trained_model_dir(one.path), plans, networks)

    def options(self, **changes):
        """Return the options of the run."""
        rule = StoppingRule(most_rounds=1)
        return options(self.root, **{"rule": rule, "force": False, **changes})


@pytest.fixture
def finished(tmp_path):
    return Finished(tmp_path)


def test_a_network_that_is_worse_than_the_few_shot_branch_is_named_and_not_frozen(finished):
    asked = finished.options()

    assert "Dice 0.530 on reference masks) is worse" in below_fewshot(asked)
    with pytest.raises(UsageError, match=r"worse than the few-shot branch.*Dice 0\.950.*--force"):
        pipeline.freeze(asked)
    assert not asked.weights_dir.exists()
    summary = pipeline._summary(asked)
    assert summary.withheld
    assert summary.exit_code == ExitCode.SOME_CASES_FAILED
    assert "worse than the few-shot branch" in summary.warning


def test_such_a_network_is_frozen_when_that_is_forced(finished):
    assert pipeline.freeze(finished.options(force=True)).name == "tiny"
    assert pipeline._summary(finished.options(weights_dir=None)).exit_code == ExitCode.OK


def test_a_network_about_as_good_as_the_few_shot_branch_is_frozen(tmp_path):
    finished = Finished(tmp_path, dices=(0.93, 0.964))

    assert below_fewshot(finished.options()) is None
    assert pipeline.freeze(finished.options()).name == "tiny"


def test_freezing_needs_no_summary_of_the_rounds_and_writes_it(finished):
    assert not finished.work.rounds.exists()
    pipeline.freeze(finished.options(force=True))

    summary = json.loads(finished.work.rounds.read_text())
    assert summary["best_round"] == 1
    assert summary["fewshot_dice"] == pytest.approx(0.95)
    assert "worse" in summary["warning"]


def test_the_mean_of_all_folds_is_the_fold_that_nnunet_calls_all(finished, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    monkeypatch.setattr("sslmedsam2.retrain.freeze.check_final", lambda _: None)
    asked = finished.options(force=True, final="average")

    model = pipeline.freeze(asked)
    assert model.folds == ("all",)
    folder = asked.weights_dir / "tiny"
    assert find_folds(folder) == ("all",)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(folder), ("all",))
    assert len(predictor.list_of_parameters) == 1
    assert locate_models(asked.weights_dir)[0].verified
    assert "figures are of the single folds" in model.card.recipe
    assert model.card.measured["validation_dice"] == pytest.approx(0.53)


def test_the_card_of_the_best_fold_holds_the_figures_of_that_fold(finished):
    model = pipeline.freeze(finished.options(force=True, final="best-fold"))

    assert model.folds == ("1",)
    assert model.card.measured["validation_dice"] == 0.56
    assert model.card.measured["validation_images"] == 1
    assert "figures are of that fold" in model.card.recipe
    [frozen] = read(finished.work.round(1).frozen)["scores"]
    assert frozen["case"] == sorted(LABELLED[:2])[1]
    assert "on 1 labelled images, none of which it trained on" in model.card.recipe


def test_what_is_frozen_is_what_was_scored(finished):
    asked = finished.options(force=True)

    model = pipeline.freeze(asked)

    folder = asked.weights_dir / "tiny"
    segmenter = load_folds(folder, folds=model.folds, device="cpu")
    images = find_labelled_series(asked.labelled_dir)
    scores = score_fold(images, segmenter=segmenter, fold=None)
    stored = read_record(finished.work.round(1).frozen, FrozenScores)
    assert stored.scores == tuple(scores)
    assert model.card.measured["frozen_dice"] == pytest.approx(
        sum(score.dice for score in scores) / 2, abs=1e-4
    )
    assert "on 2 labelled images, which all folds but one trained on" in model.card.recipe
    assert not list(finished.work.round(1).path.glob(".frozen-*"))


def test_frozen_model_is_scored_once_and_again_when_it_changes(finished):
    path = finished.work.round(1).frozen
    pipeline.freeze(finished.options(force=True))
    first = path.stat().st_mtime_ns
    pipeline.freeze(finished.options(force=True))
    assert path.stat().st_mtime_ns == first

    pipeline.freeze(finished.options(force=True, final="best-fold"))
    assert path.stat().st_mtime_ns != first


def test_frozen_model_that_is_worse_than_its_folds_is_reported(tmp_path, caplog):
    asked = Finished(tmp_path, dices=(0.95, 0.95)).options()

    # Networks of random weights find no liver.
    pipeline.freeze(asked)

    assert "freeze another --final" in caplog.text


def test_a_model_of_the_same_name_is_moved_aside_and_the_same_model_left_alone(finished):
    asked = finished.options(force=True)
    pipeline.freeze(asked)
    first = asked.weights_dir / "tiny"
    before = first.stat().st_ino
    pipeline.freeze(asked)
    assert first.stat().st_ino == before

    pipeline.freeze(finished.options(force=True, final="best-fold"))
    (moved,) = asked.weights_dir.glob("tiny.replaced-*")
    assert find_folds(moved) == ("0", "1")
    assert find_folds(first) == ("1",)


def test_a_frozen_model_is_calibrated_on_patients_that_each_fold_never_saw(tmp_path):
    cases = tuple(f"10{number:02}-A" for number in range(1, LEAST_PATIENTS + 1))
    finished = Finished(tmp_path, cases=cases)
    training = trained_model_dir(finished.work.round(1).path)
    shutil.rmtree(training)
    bright_tissue_model(training, fold_1=0.9)
    asked = finished.options(force=True)

    pipeline.freeze(asked)

    [model] = locate_models(asked.weights_dir)
    assert "confidence.json" in {entry.path for entry in model.files}
    found = read_calibration(read_model_spec(model.path, folds=model.folds))
    assert found.patients == len(cases)
    # What was scored looked once.
    assert found.sure_from == 0
    stored = read_record(finished.work.round(1).frozen, FrozenScores)
    assert stored.calibration == replace(found, checkpoints={})

    before = finished.work.round(1).frozen.stat().st_mtime_ns
    pipeline.freeze(asked)
    assert finished.work.round(1).frozen.stat().st_mtime_ns == before
    assert locate_models(asked.weights_dir)[0].verified


def test_a_model_of_few_labelled_patients_is_frozen_without_a_calibration(finished):
    asked = finished.options(force=True)
    pipeline.freeze(asked)

    assert not (asked.weights_dir / "tiny" / "confidence.json").exists()


@pytest.mark.parametrize("name", ["my model", "../liver", "", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused_at_the_start(tmp_path, name):
    with pytest.raises(ModelError, match="no plain folder name"):
        check_freezable(tmp_path / "weights", name=name, sequences=("*",))
    assert not (tmp_path / "weights").exists()


def test_a_second_model_for_a_sequence_is_refused_at_the_start(finished):
    weights = finished.options().weights_dir
    pipeline.freeze(finished.options(force=True))

    check_freezable(weights, name="tiny", sequences=("*",))
    check_freezable(weights, name="other", sequences=("T1",))
    with pytest.raises(ModelError, match=r"two models serve the sequence '\*'"):
        check_freezable(weights, name="other", sequences=("*",))


def test_weights_that_could_not_be_written_are_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.weights"):
        check_freezable(tmp_path / "file" / "weights", name="liver", sequences=("*",))


def test_retrain_refuses_what_could_not_be_frozen_before_it_looks_at_the_data(tmp_path):
    with pytest.raises(ModelError, match="no plain folder name"):
        pipeline.retrain(options(tmp_path, name="my model"))
    assert not (tmp_path / "work").exists()
