import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_scans import abdomen, write_scan
from tiny_training import PRESET, write_labelled_case, write_labelled_cases

from sslmedsam2.cli.main import main
from sslmedsam2.errors import InputError, ModelError, UsageError
from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.nnunet.dataset import build_dataset, write_splits
from sslmedsam2.nnunet.trainer import LiverTrainer
from sslmedsam2.nnunet.training import preprocessed_dir
from sslmedsam2.train import pipeline
from sslmedsam2.train.pipeline import TrainOptions, train
from sslmedsam2.weights.locate import locate_models

pytestmark = pytest.mark.usefixtures("no_progress_png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What ``train`` was asked to do, and the scores it gave."""
    folder = tmp_path_factory.mktemp("train")
    write_labelled_cases(folder / "data", count=4)
    options = TrainOptions(
        data_dir=folder / "data",
        work_dir=folder / "work",
        epochs=1,
        final_epochs=1,
        iterations_per_epoch=2,
        weights_dir=folder / "weights",
        name="tiny",
        training_data="computed abdomens",
        licence="Apache-2.0",
        preset=PRESET,
    )
    return options, train(options)


def _checkpoints(options):
    found = options.work_dir.rglob("checkpoint_final.pth")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


@pytest.mark.parametrize("fault", ["flipped", "organs"])
def test_mask_that_does_not_fit_its_image_is_refused_before_training(tmp_path, fault):
    bad = write_labelled_cases(tmp_path / "data", count=2)[1]
    if fault == "flipped":
        twin = write_labelled_case(tmp_path / "twin", flips_zyx=(1,))
        bad.mask.write_bytes(twin.mask.read_bytes())
    else:
        organs = abdomen(seed=2)[1] * 63
        organs[0, :5] = 252
        write_scan(bad.mask, organs, dtype=np.uint8)
    match = {"flipped": "lies on another grid", "organs": r"more than two values \(0, 63, 252\)"}
    options = TrainOptions(tmp_path / "data", tmp_path / "work", folds=0, preset=PRESET)

    with pytest.raises(InputError, match=rf"case2.mask_T2\.nii\.gz: .*{match[fault]}"):
        train(options)
    assert not [path for path in options.work_dir.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("sequence", "folds"), [("T1", 2), ("T2", 2), ("T2", 0)])
def test_a_patient_who_is_validated_on_and_a_scan_given_twice_are_refused(
    tmp_path, sequence, folds
):
    write_labelled_cases(tmp_path / "data", count=4)
    write_labelled_case(tmp_path / "more" / "Case1", sequence=sequence)
    more = (tmp_path / "more",)
    options = TrainOptions(tmp_path / "data", tmp_path / "work", more, folds=folds, preset=PRESET)

    with pytest.raises(InputError, match="case Case1 is in --data") as error:
        train(options)
    assert error.value.kind == "duplicate_case"


def test_more_scans_of_a_patient_are_trained_on_where_nothing_is_scored(tmp_path):
    write_labelled_cases(tmp_path / "data", count=1)
    write_labelled_case(tmp_path / "more" / "Case1", sequence="T1")
    options = TrainOptions(
        tmp_path / "data", tmp_path / "work", (tmp_path / "more",), folds=0, preset=PRESET
    )

    assert train(replace(options, final_epochs=1, iterations_per_epoch=1)) == ()


def test_ctrl_c_ends_a_training_after_its_epoch_with_a_checkpoint(tmp_path, monkeypatch):
    """Before, the running epoch was lost."""
    write_labelled_cases(tmp_path / "data", count=2)
    step = LiverTrainer.train_step

    def interrupted(self, batch):
        if self.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(LiverTrainer, "train_step", interrupted)
    options = replace(
        TrainOptions(tmp_path / "data", tmp_path / "work", folds=0, preset=PRESET),
        final_epochs=4,
        iterations_per_epoch=1,
    )

    assert train(options) is None

    (latest,) = (tmp_path / "work").rglob("checkpoint_latest.pth")
    assert torch.load(latest, weights_only=False)["current_epoch"] == 2
    assert not list((tmp_path / "work").rglob("checkpoint_final.pth"))


def test_every_case_is_scored_by_the_fold_that_never_saw_it(trained):
    options, scores = trained

    assert sorted(score.case for score in scores) == ["case1", "case2", "case3", "case4"]
    splits = next(options.work_dir.rglob("splits_final.json"))
    for score in scores:
        split = json.loads(splits.read_text())[score.fold]
        assert f"{score.case}__T2" in split["val"]
        assert f"{score.case}__T2" not in split["train"]
        assert 0 <= score.dice <= 1
        assert np.isfinite(score.hausdorff_mm)
    written = json.loads((options.work_dir / "cross_validation.json").read_text())
    assert [entry["dice"] for entry in written] == [score.dice for score in scores]


def test_network_of_all_cases_is_frozen_with_its_figures(trained):
    options, scores = trained

    (model,) = locate_models(options.weights_dir)
    assert model.verified
    assert (model.name, model.folds, model.sequences) == ("tiny", ("all",), ("*",))
    assert model.card.training_data == "computed abdomens"
    assert "4 labelled images, 2 folds" in model.card.recipe
    assert model.card.measured["cross_validation_cases"] == 4
    mean = np.mean([score.dice for score in scores])
    assert model.card.measured["cross_validation_dice"] == pytest.approx(mean, abs=1e-4)


def test_frozen_weights_verify_until_a_byte_changes(trained, capsys):
    weights_dir = trained[0].weights_dir
    assert main(["weights", "verify", "--model", str(weights_dir)]) == 0

    plans = weights_dir / "tiny" / "plans.json"
    content = plans.read_bytes()
    plans.write_bytes(content.replace(b"14.0", b"15.0"))
    try:
        assert main(["weights", "verify", "--model", str(weights_dir)]) == 4
    finally:
        plans.write_bytes(content)
    assert "plans.json" in capsys.readouterr().err


def test_engine_of_predict_serves_the_frozen_weights(trained):
    (model,) = locate_models(trained[0].weights_dir)
    segmenter = CanonicalSegmenter(
        read_model_spec(model.path, folds=model.folds), EngineOptions(device="cpu")
    )
    image = abdomen()[0]
    as_is = Reorientation(axes=(0, 1, 2), flipped_axes=())

    found = segmenter.segment(CanonicalVolume(image, (7.0, 4.0, 4.0), as_is))
    assert found.mask_zyx.shape == image.shape
    assert set(np.unique(found.mask_zyx)) <= {0, 1}


def test_running_again_trains_nothing_anew(trained):
    options, scores = trained
    before = _checkpoints(options)
    assert before.keys() == {"fold_0", "fold_1", "fold_all"}

    assert train(options) == scores
    assert _checkpoints(options) == before


def test_command_prints_each_score_and_their_mean(trained, monkeypatch, capsys):
    options, scores = trained
    # The command has no option for so small a network.
    monkeypatch.setattr(pipeline, "train", lambda _asked: train(options))
    arguments = ["--data", str(options.data_dir), "--work-dir", str(options.work_dir)]

    assert main(["train", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{scores[0].case} T2: Dice {scores[0].dice:.4f}, Hausdorff ")
    assert len(lines) == 5
    mean = np.mean([score.dice for score in scores])
    assert lines[-1] == f"mean Dice of 4 images by cross-validation: {mean:.4f}"


def test_changed_data_are_refused_before_anything_is_trained(trained):
    options, _ = trained
    before = _checkpoints(options)
    fifth = write_labelled_case(options.data_dir / "case5", seed=5)

    try:
        with pytest.raises(UsageError, match="other images, masks or settings"):
            train(options)
    finally:
        for path in fifth.path.parent.iterdir():
            path.unlink()
    assert _checkpoints(options) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 1e-4}, r"fold 0 .*learning_rate was 0.001, is 0.0001"),
        ({"final_epochs": 99}, "fold all .*epochs was 1, is 99"),
    ],
)
def test_other_settings_than_a_fold_was_trained_with_are_refused(trained, changed, message):
    options, _ = trained
    before = _checkpoints(options)

    with pytest.raises(UsageError, match=message):
        train(replace(options, **changed))
    assert _checkpoints(options) == before


def test_another_share_than_a_training_was_begun_with_is_refused(tmp_path):
    write_labelled_cases(tmp_path / "data", count=2)
    write_labelled_case(tmp_path / "more" / "other", seed=3)
    options = replace(
        TrainOptions(tmp_path / "data", tmp_path / "work", (tmp_path / "more",), preset=PRESET),
        folds=0,
        final_epochs=1,
        iterations_per_epoch=1,
    )
    train(options)
    before = _checkpoints(options)

    with pytest.raises(UsageError, match=r"a share of 0\.75 of .*, not 0\.5 to 2\."):
        train(replace(options, share=0.5))
    train(options)
    assert _checkpoints(options) == before


def test_a_patient_whose_name_is_spelled_in_two_ways_counts_once(tmp_path):
    for name in ("case1", "Case1", "case2", "CASE2"):
        sequence = "T2" if name.islower() else "T1"
        write_labelled_case(tmp_path / "data" / name, sequence=sequence)
    options = TrainOptions(data_dir=tmp_path / "data", work_dir=tmp_path / "work", folds=2)

    with pytest.raises(UsageError, match=r"2 labelled case\(s\) are too few for 2 folds"):
        train(options)


def test_a_patient_whose_name_is_spelled_in_two_ways_is_on_one_side_of_each_fold(
    tmp_path, monkeypatch
):
    for name in ("P1", "p1", "p2", "p3", "p4"):
        sequence = "T1" if name == "P1" else "T2"
        write_labelled_case(tmp_path / "data" / name, sequence=sequence)
    monkeypatch.setattr(pipeline, "train_fold", lambda *_, **__: None)

    train(TrainOptions(tmp_path / "data", tmp_path / "work", preset=PRESET))

    (path,) = (tmp_path / "work").rglob("splits_final.json")
    for split in json.loads(path.read_text()):
        assert ("P1__T1" in split["val"]) == ("p1__T2" in split["val"])


def test_one_labelled_scan_is_enough_without_folds(tmp_path):
    write_labelled_cases(tmp_path / "data", count=1)
    options = TrainOptions(
        data_dir=tmp_path / "data",
        work_dir=tmp_path / "work",
        folds=0,
        final_epochs=1,
        iterations_per_epoch=2,
        weights_dir=tmp_path / "weights",
        preset=PRESET,
    )

    assert train(options) == ()

    [model] = locate_models(tmp_path / "weights")
    assert model.name == "liver"


def test_scoring_stops_after_an_image_and_goes_on_with_the_next_fold(
    trained, tmp_path, monkeypatch
):
    before, expected = trained
    shutil.copytree(before.work_dir, tmp_path / "work")
    scored = sorted((tmp_path / "work").rglob("scores.json"))
    assert len(scored) == 2
    scored[1].unlink()
    options = replace(before, work_dir=tmp_path / "work", weights_dir=None)
    images = []
    real = pipeline.score_fold

    def score(held_out, **more):
        images.extend(held_out)
        if len(images) == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(held_out, **more)

    monkeypatch.setattr(pipeline, "score_fold", score)

    assert train(options) is None
    assert len(images) == 1
    assert train(options) == expected
    assert len(images) == 3


def test_a_stop_while_the_last_image_is_scored_begins_no_final_training(
    trained, tmp_path, monkeypatch
):
    before, _ = trained
    shutil.copytree(before.work_dir, tmp_path / "work")
    sorted((tmp_path / "work").rglob("scores.json"))[1].unlink()
    options = replace(before, work_dir=tmp_path / "work", weights_dir=None)
    begun, images = [], []
    real_score, real_train = pipeline.score_fold, pipeline._is_trained

    def score(held_out, **more):
        images.extend(held_out)
        if len(images) == 2:
            signal.raise_signal(signal.SIGTERM)
        return real_score(held_out, **more)

    def is_trained(fold, *args, **more):
        begun.append(fold)
        return real_train(fold, *args, **more)

    monkeypatch.setattr(pipeline, "score_fold", score)
    monkeypatch.setattr(pipeline, "_is_trained", is_trained)

    assert train(options) is None
    assert begun == [0, 1]


def test_other_number_of_folds_is_refused(trained, tmp_path):
    options, _ = trained
    # Four cases are too few for three folds, so more are needed to come that far.
    images = write_labelled_cases(tmp_path / "data", count=6)
    options = replace(
        options, data_dir=tmp_path / "data", work_dir=tmp_path / "work", folds=3, weights_dir=None
    )
    dataset = build_dataset(
        images, preprocessed_dir=preprocessed_dir(options.work_dir), preset=options.preset
    )
    write_splits(dataset, [])

    with pytest.raises(UsageError, match="other folds"):
        train(options)


@pytest.mark.parametrize(
    ("count", "folds", "reason"),
    [
        (3, 2, r"3 labelled case\(s\) are too few for 2 folds"),
        (4, 1, "one fold leaves nothing to train on"),
        (0, 0, "no labelled image found"),
        (0, 2, r"0 labelled case\(s\) are too few"),
    ],
)
def test_too_few_cases_for_the_folds_are_refused(tmp_path, count, folds, reason):
    (tmp_path / "data").mkdir()
    write_labelled_cases(tmp_path / "data", count=count)
    options = TrainOptions(data_dir=tmp_path / "data", work_dir=tmp_path / "work", folds=folds)

    with pytest.raises(UsageError, match=reason):
        train(options)
    assert not (tmp_path / "work").exists()


def test_command_ends_with_the_error_and_its_code(tmp_path, capsys):
    data = tmp_path / "data"
    code = main(["train", "--data", str(data), "--work-dir", str(tmp_path / "work")])

    assert code == 3
    assert "data: there is no such folder" in capsys.readouterr().err


def test_a_name_that_could_not_be_frozen_is_refused_before_any_training(tmp_path):
    with pytest.raises(ModelError, match="no plain folder name"):
        train(
            TrainOptions(
                data_dir=tmp_path / "data",
                work_dir=tmp_path / "work",
                weights_dir=tmp_path / "weights",
                name="my model",
            )
        )
    assert not (tmp_path / "work").exists()
