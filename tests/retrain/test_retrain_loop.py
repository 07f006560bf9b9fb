"""The whole loop at its smallest: one round of two folds, one epoch of one iteration each."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from retrain_samples import (
    LABELLED,
    UNLABELLED,
    content,
    options,
    read,
    write_labelled,
    write_unlabelled,
)
from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.nnunet.plans import IGNORE, UNSURE_LIVER
from sslmedsam2.retrain.pipeline import plan, retrain
from sslmedsam2.retrain.stopping import StoppingRule
from sslmedsam2.weights.locate import locate_models

pytestmark = pytest.mark.usefixtures("one_thread", "no_progress_png")

CORRECTED, REJECTED = UNLABELLED[:2]
DATASET = "preprocessed/Dataset001_Liver"


@pytest.fixture(scope="module")
def asked(tmp_path_factory, small_sam2):
    """What ``retrain`` is asked to do.

    The SAM2 knows nothing, so all its pseudo labels are rejected; a person corrects one of them
    before anything is trained.
    """
    root = tmp_path_factory.mktemp("loop")
    for seed, case in enumerate(LABELLED[:2], start=1):
        write_labelled(root / "labelled" / case, seed=seed)
    for seed, case in enumerate((CORRECTED, REJECTED), start=11):
        write_unlabelled(root / "unlabelled" / case, seed=seed)
    return options(
        root,
        sam2=str(small_sam2),
        rule=StoppingRule(most_rounds=1, fixed=True),
        epochs=1,
        iterations_per_epoch=1,
    )


@pytest.fixture(scope="module")
def done(asked):
    """The options and the summary of a run in which a pseudo label was corrected by hand."""
    assert plan(asked, StopRequest()) is not None
    corrected = asked.work_dir / "pseudo_labels" / CORRECTED / "T2_pred.nii.gz"
    write_scan(corrected, small_abdomen(11)[1], dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)
    return asked, retrain(asked)


def test_a_round_ends_with_figures_and_a_frozen_model(done):
    asked, summary = done

    assert summary.exit_code == ExitCode.OK
    (figures,) = summary.rounds
    assert figures.round == summary.decision.best_round == 1
    assert summary.decision.stop
    assert 0 <= figures.validation_dice <= 1
    outcome = read(asked.work_dir / "round_1" / "outcome.json")
    assert outcome["validation_dice"] == figures.validation_dice
    assert (figures.trained, figures.failed) == (1, 0)
    (model,) = locate_models(asked.weights_dir)
    assert model.verified
    assert (model.name, model.folds) == ("tiny", ("0", "1"))
    assert (asked.work_dir / "report" / "index.html").is_file()


def test_each_fold_trains_on_the_cases_that_it_is_not_scored_on(done):
    round_dir = done[0].work_dir / "round_1"

    splits = read(round_dir / DATASET / "splits_final.json")
    assert len(splits) == 2
    scores = read(round_dir / "validation.json")
    assert {score["case"] for score in scores} == set(LABELLED[:2])
    for score in scores:
        split = splits[score["fold"]]
        assert f"{score['case']}__T2" in split["val"]
        assert f"{score['case']}__T2" not in split["train"]
        assert round_dir.rglob(f"fold_{score['fold']}/checkpoint_final.pth")


def test_only_the_corrected_label_trains_and_it_stands(done):
    work = done[0].work_dir
    choices = {one["name"]: one for one in read(work / "round_1" / "selection.json")["choices"]}

    assert choices[f"{CORRECTED}/T2"]["trains"]
    assert not choices[f"{REJECTED}/T2"]["trains"]
    masks = {path.parent.name for path in (work / "round_1").rglob("T2_train.nii.gz")}
    assert masks == {CORRECTED}
    (path,) = (work / "round_1").rglob("T2_train.nii.gz")
    labels, liver = np.asarray(nib.load(path).dataobj).T, small_abdomen(11)[1]
    seen = ~np.isin(labels, (IGNORE, UNSURE_LIVER))
    np.testing.assert_array_equal(labels[seen], liver[seen])
    relabelled = work / "round_1" / "relabelled" / CORRECTED / "T2_pred.nii.gz"
    np.testing.assert_array_equal(np.asarray(nib.load(relabelled).dataobj).T, liver)


def test_a_corrected_label_that_trains_is_not_counted_as_rejected(done):
    asked, summary = done
    for case in (CORRECTED, REJECTED):
        assert (
            read(asked.work_dir / "pseudo_labels" / case / "T2_pseudo.json")["verdict"] == "reject"
        )

    (figures,) = summary.rounds
    assert (figures.trained, figures.rejected, figures.waiting) == (1, 1, 0)
    assert figures.change_dice == figures.changes[f"{CORRECTED}/T2"]


def test_all_images_are_predicted_anew_by_networks_that_did_not_train_on_them(done):
    round_dir = done[0].work_dir / "round_1"
    splits = read(round_dir / DATASET / "splits_final.json")

    records = {path.parent.name: read(path) for path in round_dir.rglob("relabelled/*/*.json")}
    assert set(records) == {CORRECTED, REJECTED}
    assert records[REJECTED]["folds"] == [0, 1]
    (fold,) = records[CORRECTED]["folds"]
    assert f"{CORRECTED}__T2" not in splits[fold]["train"]
    assert f"{CORRECTED}__T2" in splits[1 - fold]["train"]


def test_running_again_trains_nothing_anew(done):
    asked, summary = done
    before = content(asked.weights_dir / "tiny")
    checkpoints = {
        path: path.stat().st_mtime_ns for path in asked.work_dir.rglob("checkpoint_final.pth")
    }
    assert len(checkpoints) == 2

    again = retrain(asked)
    assert again.rounds == summary.rounds
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints
    assert content(asked.weights_dir / "tiny") == before


@pytest.mark.parametrize("is_trained_anew", [False, True])
def test_scores_are_kept_for_the_checkpoints_that_have_them(done, tmp_path, is_trained_anew):
    asked = replace(done[0], work_dir=tmp_path / "work", weights_dir=None)
    round_dir = shutil.copytree(done[0].work_dir, asked.work_dir) / "round_1"
    # As if the run had been killed after the scores.
    (round_dir / "outcome.json").unlink()
    marked = [{**score, "dice": 0.123} for score in read(round_dir / "validation.json")]
    (round_dir / "validation.json").write_text(json.dumps(marked))
    (checkpoint,) = round_dir.rglob("fold_1/checkpoint_final.pth")
    if is_trained_anew:
        checkpoint.unlink()

    retrain(asked)

    scores = read(round_dir / "validation.json")
    assert (scores != marked) == is_trained_anew
    (found,) = [score for score in scores if score["fold"] == 1]
    assert found["checkpoint_sha256"] == sha256_file(checkpoint)


def test_the_frozen_model_serves_predict(done, tmp_path):
    asked, _ = done
    arguments = ["--input", str(asked.unlabelled_dir), "--output", str(tmp_path)]

    served = main(["predict", *arguments, "--model", str(asked.weights_dir), "--device", "cpu"])
    assert served == ExitCode.OK
    for case in (CORRECTED, REJECTED):
        mask = tmp_path / "LiSeg_pred" / case / "T2_pred.nii.gz"
        image = asked.unlabelled_dir / case / "T2.nii.gz"
        assert nib.load(mask).shape == nib.load(image).shape
