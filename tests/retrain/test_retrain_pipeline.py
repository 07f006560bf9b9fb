"""The whole loop on small abdomens, and what it leaves behind."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from retrain_samples import (
    LABELLED,
    NOISE,
    UNLABELLED,
    content,
    options,
    read,
    write_data,
    write_unlabelled,
)
from tiny_training import PRESET

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode, UsageError
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.nnunet.plans import IGNORE, UNSURE_LIVER
from sslmedsam2.retrain import pipeline as run
from sslmedsam2.retrain.pipeline import retrain
from sslmedsam2.retrain.select import weight_of_first
from sslmedsam2.retrain.stopping import StoppingRule
from sslmedsam2.weights.locate import locate_models

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_progress_png")]

SAME_PATIENT = f"{LABELLED[0]}/GED4"
DATASET = "preprocessed/Dataset001_Liver"


@pytest.fixture(scope="module")
def done(tmp_path_factory, one_thread):  # noqa: ARG001
    """A folder where ``retrain`` has run, its summary, and the data as they were before."""
    root = write_data(tmp_path_factory.mktemp("retrain"))
    before = content(root)
    return root, retrain(options(root)), before


@pytest.fixture
def copy(done, tmp_path):
    """A copy of the folder where ``retrain`` has run, to spoil."""
    return shutil.copytree(done[0], tmp_path / "copy")


def _rounds(root):
    return [root / "work" / f"round_{number}" for number in (1, 2)]


def _weights(root):
    """Return the hashes of what was frozen, without the card's date."""
    return content(root / "weights" / "tiny")


def _shift(path):
    """Move a mask by one slice, as a correction by hand might."""
    image = nib.load(path)
    moved = np.roll(np.asarray(image.dataobj), 1, axis=2)
    nib.save(nib.Nifti1Image(moved, image.affine, image.header), path)
    return moved


def test_two_rounds_are_done_and_the_best_is_frozen(done):
    root, summary, _ = done

    assert summary.exit_code == ExitCode.OK
    assert [figures.round for figures in summary.rounds] == [1, 2]
    assert all(0 <= figures.change_dice <= 1 for figures in summary.rounds)
    best = max(summary.rounds, key=lambda figures: (figures.validation_dice, figures.round))
    assert summary.decision.best_round == best.round
    record = read(root / "work" / "rounds.json")
    assert record["best_round"] == best.round
    assert record["ended"]
    assert [one["round"] for one in record["rounds"]] == [1, 2]
    for one, figures in zip(record["rounds"], summary.rounds, strict=True):
        assert one["validation_dice"] == figures.validation_dice
        assert one["change_dice"] == figures.change_dice
        assert (one["trained"], one["rejected"], one["failed"]) == (4, 1, 0)


def test_card_tells_what_the_model_was_made_from(done):
    root, summary, _ = done

    (model,) = locate_models(root / "weights")
    assert model.verified
    assert (model.name, model.folds) == ("tiny", ("0", "1"))
    card = model.card
    assert (card.training_data, card.licence) == ("computed abdomens", "Apache-2.0")
    assert "3 labelled and 5 unlabelled images, 4 pseudo labels" in card.recipe
    assert f"round {summary.decision.best_round} frozen as ensemble" in card.recipe
    best = summary.rounds[summary.decision.best_round - 1]
    assert card.measured["validation_dice"] == best.validation_dice
    assert card.measured["validation_images"] == 3


def test_predict_serves_the_frozen_weights(done, tmp_path):
    root, *_ = done
    arguments = ["--input", str(root / "unlabelled"), "--output", str(tmp_path)]

    assert main(["predict", *arguments, "--model", str(root / "weights"), "--device", "cpu"]) == 0
    for case in (*UNLABELLED, NOISE):
        mask = tmp_path / "LiSeg_pred" / case / "T2_pred.nii.gz"
        image = nib.load(root / "unlabelled" / case / "T2.nii.gz")
        assert nib.load(mask).shape == image.shape
        np.testing.assert_array_equal(nib.load(mask).affine, image.affine)
        assert set(np.unique(read_mask(mask).array_zyx)) <= {0, 1}


def test_data_are_never_altered(done):
    root, _, before = done
    after = content(root)

    assert {name: after[name] for name in before} == before
    kept = ("labelled/", "unlabelled/", "work/", "weights/")
    assert all(name.startswith(kept) for name in after)
    assert not any("partial" in name for name in after)


def test_reference_masks_train_unchanged_in_every_round(done):
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    cases = []
    for round_dir in _rounds(done[0]):
        folder = str(round_dir / DATASET / "nnUNetPlans_3d_fullres")
        dataset = infer_dataset_class(folder)(folder)
        cases.append({key: dataset.load_case(f"{key}__T2")[1][:] for key in LABELLED})
        assert set(read(round_dir / DATASET / "dataset.json")["labels"]) == {
            "background", "liver", "ignore",
        }  # fmt: skip
    for case in LABELLED:
        np.testing.assert_array_equal(cases[0][case], cases[1][case])
        assert IGNORE not in cases[0][case]


def test_no_fold_trains_on_a_patient_that_it_validates(done):
    for round_dir in _rounds(done[0]):
        splits = read(round_dir / DATASET / "splits_final.json")
        validated = sorted(key for split in splits for key in split["val"])
        assert validated == sorted(f"{case}__T2" for case in LABELLED)
        for fold, split in enumerate(splits):
            trained_cases = {key.split("__")[0] for key in split["train"]}
            assert not trained_cases & {key.split("__")[0] for key in split["val"]}
            scored = [
                one["case"] for one in read(round_dir / "validation.json") if one["fold"] == fold
            ]
            assert sorted(f"{case}__T2" for case in scored) == split["val"]


def test_no_fold_relabels_a_patient_that_it_trained_on_in_this_round_or_before(done):
    # A round starts from the networks of the one before.
    trained_cases = [set(), set()]
    for round_dir in _rounds(done[0]):
        splits = read(round_dir / DATASET / "splits_final.json")
        for cases, split in zip(trained_cases, splits, strict=True):
            cases |= {key.split("__")[0] for key in split["train"]}
        records = [read(path) for path in sorted((round_dir / "relabelled").rglob("*_pseudo.json"))]
        assert len(records) == 5
        for record in records:
            if record["case"] == NOISE:
                assert (record["trained"], record["folds"]) == (False, [0, 1])
            else:
                assert record["trained"]
                assert len(record["folds"]) == 1
            for fold in record["folds"]:
                assert record["case"] not in trained_cases[fold]


def test_other_scan_of_a_labelled_case_stays_with_it(done):
    for round_dir in _rounds(done[0]):
        for split in read(round_dir / DATASET / "splits_final.json"):
            together = {key for key in split["train"] if key.startswith(LABELLED[0])}
            assert together in (set(), {f"{LABELLED[0]}__T2", f"{LABELLED[0]}__GED4"})


def test_rejected_label_never_trains(done):
    for round_dir in _rounds(done[0]):
        choices = {one["name"]: one for one in read(round_dir / "selection.json")["choices"]}
        assert choices.keys() == {*(f"{c}/T2" for c in (*UNLABELLED, NOISE)), SAME_PATIENT}
        assert not choices[f"{NOISE}/T2"]["trains"]
        assert "rejected" in choices[f"{NOISE}/T2"]["reason"]
        assert not (round_dir / "training_masks" / NOISE).exists()
        assert NOISE not in (round_dir / DATASET / "splits_final.json").read_text()


def test_later_round_trains_on_the_new_masks(done):
    first, second = _rounds(done[0])
    for case in UNLABELLED:
        learnt = read_mask(first / "relabelled" / case / "T2_pred.nii.gz").array_zyx
        labels = np.asarray(
            nib.load(second / "training_masks" / case / "T2_train.nii.gz").dataobj
        ).T
        seen = ~np.isin(labels, (IGNORE, UNSURE_LIVER))
        np.testing.assert_array_equal(labels[seen], learnt[seen])
    records = [read(path) for path in (second / "relabelled").rglob("*_pseudo.json")]
    changes = {f"{one['case']}/{one['sequence']}": one["change_dice"] for one in records}
    assert read(second / "outcome.json")["changes"] == changes


def test_new_masks_come_from_both_branches_unless_one_rejected_the_image(done):
    work = done[0] / "work"
    calibration = read(work / "pseudo_labels" / "calibration.json")["cases"]
    fewshot = np.mean([case["dice"] for case in calibration])
    for round_dir in _rounds(done[0]):
        networks = np.mean([score["dice"] for score in read(round_dir / "validation.json")])
        weight = weight_of_first(fewshot, networks)
        assert 0 < weight <= 1
        for path in (round_dir / "relabelled").rglob("*_pseudo.json"):
            record = read(path)
            expected = 0 if record["case"] == NOISE else weight
            if f"{record['case']}/{record['sequence']}" == SAME_PATIENT:
                expected = 0.5  # No reference mask is of its sequence.
            assert record["fewshot_weight"] == pytest.approx(expected, abs=1e-4)


def test_reference_masks_fill_their_share_of_the_patches(done):
    sampling = read(_rounds(done[0])[0] / DATASET / "sampling.json")

    assert sampling == {"cases": [f"{case}__T2" for case in LABELLED], "share": 0.5}


def test_plans_are_the_same_in_all_rounds(done):
    root, *_ = done
    plans = read(root / "work" / "plans.json")

    for round_dir in _rounds(root):
        assert read(round_dir / DATASET / "nnUNetPlans.json") == plans


def test_later_round_starts_from_the_one_before(copy):
    work = copy / "work"
    shutil.rmtree(work / "round_2")
    (before,) = (work / "round_1").rglob("fold_0/checkpoint_final.pth")
    checkpoint = torch.load(before, weights_only=False)
    for tensor in checkpoint["network_weights"].values():
        tensor.zero_()
    torch.save(checkpoint, before)

    retrain(options(copy, weights_dir=None))
    largest = []
    for fold in (0, 1):
        (after,) = (work / "round_2").rglob(f"fold_{fold}/checkpoint_final.pth")
        weights = torch.load(after, weights_only=False)["network_weights"]
        largest.append(max(tensor.abs().max().item() for tensor in weights.values()))
    # Four steps move no weight far.
    assert largest[0] < 0.02
    assert largest[1] > 0.1


def test_running_again_does_nothing_anew(copy):
    before = content(copy)
    weights = _weights(copy)

    summary = retrain(options(copy))
    assert [figures.round for figures in summary.rounds] == [1, 2]
    assert _weights(copy) == weights
    after = content(copy)
    changed = {name for name in after | before if after.get(name) != before.get(name)}
    # The data have moved with the copy, which their records say.
    moving = {"work/index.json", "work/options.json", "work/pseudo_labels/run.json"}
    assert {name for name in changed if "/report/" not in name} == moving


def test_more_rounds_may_be_asked_for_later(copy):
    finished = content(copy / "work" / "round_2")

    summary = retrain(options(copy, rule=StoppingRule(most_rounds=3, fixed=True)))
    assert [figures.round for figures in summary.rounds] == [1, 2, 3]
    assert content(copy / "work" / "round_2") == finished


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"epochs": 3}, "epochs"),
        ({"folds": 3}, "folds"),
        ({"seed": 1, "ignore_above": 0.5}, r"ignore_above, seed"),
        ({"sequences": ("T2",)}, "sequences"),
    ],
)
def test_changed_option_is_refused_by_name(done, change, name):
    root, *_ = done
    before = content(root / "work")

    with pytest.raises(UsageError, match=rf"other options \({name}\)"):
        retrain(options(root, **change))
    assert content(root / "work") == before


@pytest.mark.parametrize("change", ["new_case", "other_mask", "other_image", "gone"])
def test_changed_data_are_refused(copy, change):
    before = content(copy / "work")
    if change == "new_case":
        write_unlabelled(copy / "unlabelled" / "0015-A", seed=15)
    elif change == "other_mask":
        _shift(copy / "labelled" / LABELLED[1] / "mask_T2.nii.gz")
    elif change == "other_image":
        write_unlabelled(copy / "unlabelled" / UNLABELLED[0], seed=99)
    else:
        shutil.rmtree(copy / "unlabelled" / UNLABELLED[2])

    with pytest.raises(UsageError, match="other images or masks"):
        retrain(options(copy))
    assert content(copy / "work") == before


@pytest.mark.parametrize(
    "rule",
    [
        StoppingRule(most_rounds=2, fixed=True),
        # Any change at all counts as settled, but only once a pseudo mask has trained.
        StoppingRule(most_rounds=2, settled_at=0.0),
    ],
    ids=["fixed", "until-settled"],
)
def test_a_round_of_reference_masks_alone_is_followed_by_one_with_pseudo_masks(copy, rule):
    shutil.rmtree(copy / "work")

    summary = retrain(options(copy, reference_masks_first=True, weights_dir=None, rule=rule))

    first, second = _rounds(copy)
    assert [figures.round for figures in summary.rounds] == [1, 2]
    assert not any(choice["trains"] for choice in read(first / "selection.json")["choices"])
    prepared = {path.stem for path in (first / DATASET).glob("nnUNetPlans_3d_fullres/*.pkl")}
    assert prepared == {f"{case}__T2" for case in LABELLED}
    records = [read(path) for path in (first / "relabelled").rglob("*_pseudo.json")]
    # No network had seen any of them, so all label each.
    assert all(record["agreement"] is not None for record in records)
    assert sum(choice["trains"] for choice in read(second / "selection.json")["choices"]) == 4


def test_another_start_is_refused(done):
    root, *_ = done
    (start,) = (root / "work" / "round_1").rglob("fold_0/checkpoint_final.pth")

    with pytest.raises(UsageError, match="with another --start"):
        retrain(options(root, start=start))


def test_pseudo_label_edited_by_hand_is_trained_on(copy):
    work = copy / "work"
    edited = work / "pseudo_labels" / UNLABELLED[0] / "T2_pred.nii.gz"
    moved = _shift(edited)

    summary = retrain(options(copy))
    np.testing.assert_array_equal(np.asarray(nib.load(edited).dataobj), moved)
    trained_on = work / "round_1" / "training_masks" / UNLABELLED[0] / "T2_train.nii.gz"
    np.testing.assert_array_equal(np.asarray(nib.load(trained_on).dataobj), moved)
    assert [figures.round for figures in summary.rounds] == [1, 2]
    prepared = read(work / "round_1" / DATASET / "inputs.json")["sha256"]
    assert prepared[f"{UNLABELLED[0]}__T2"]["mask"] == sha256_file(trained_on)
    for round_dir in _rounds(copy):
        new = round_dir / "relabelled" / UNLABELLED[0] / "T2_pred.nii.gz"
        np.testing.assert_array_equal(np.asarray(nib.load(new).dataobj), moved)


def test_new_mask_edited_by_hand_is_what_the_next_round_starts_from(copy):
    work = copy / "work"
    shutil.rmtree(work / "round_2")
    moved = _shift(work / "round_1" / "relabelled" / UNLABELLED[0] / "T2_pred.nii.gz")

    retrain(options(copy))
    trained_on = work / "round_2" / "training_masks" / UNLABELLED[0] / "T2_train.nii.gz"
    labels = np.asarray(nib.load(trained_on).dataobj)
    np.testing.assert_array_equal(labels[labels < IGNORE], moved[labels < IGNORE])


def test_stages_one_by_one_end_like_the_whole(done, tmp_path, monkeypatch, capsys):
    root, *_ = done
    # The command has no option for so small a network.
    plan = run.plan
    monkeypatch.setattr(run, "plan", lambda asked, stop: plan(replace(asked, preset=PRESET), stop))
    work, weights = str(tmp_path / "work"), tmp_path / "weights"
    folders = ["--labelled", str(root / "labelled"), "--unlabelled", str(root / "unlabelled")]
    schedule = ["--folds", "2", "--epochs", "2", "--iterations-per-epoch", "2", "--rounds", "2"]

    assert main(["refine", "plan", *folders, *schedule, "--work-dir", work, "--device", "cpu"]) == 0
    assert "4 accept, 1 reject; next: refine train" in capsys.readouterr().out
    assert main(["refine", "train", "--work-dir", work, "--fold", "1"]) == 0
    assert main(["refine", "train", "--work-dir", work]) == 0
    assert main(["refine", "relabel", "--work-dir", work]) == 0
    assert "next: refine train" in capsys.readouterr().out
    assert main(["refine", "train", "--work-dir", work]) == 0
    assert main(["refine", "relabel", "--work-dir", work]) == 0
    assert "next: refine freeze" in capsys.readouterr().out
    assert (
        main(["refine", "freeze", "--work-dir", work, "--weights-out", str(weights), "--force"])
        == 0
    )
    (model,) = locate_models(weights)
    frozen = json.loads((weights / "manifest.json").read_text())["models"][0]["files"]
    assert {one["path"]: one["sha256"] for one in frozen} == _weights(root)
    assert model.verified


def test_relabelling_before_training_is_refused(done, tmp_path, capsys):
    root, *_ = done
    retrain_options = options(root, work_dir=tmp_path / "work", weights_dir=None)
    run.plan(retrain_options, StopRequest())
    assert main(["refine", "relabel", "--work-dir", str(tmp_path / "work")]) == ExitCode.USAGE
    assert "round_1: fold 0 is not trained yet" in capsys.readouterr().err
    assert (
        main(
            [
                "refine",
                "freeze",
                "--work-dir",
                str(tmp_path / "work"),
                "--weights-out",
                str(tmp_path),
            ]
        )
        == ExitCode.USAGE
    )
    assert "no round is finished" in capsys.readouterr().err


@pytest.mark.parametrize(("final", "folds"), [("best-fold", 1), ("ensemble", 2)])
def test_freezing_as_asked(copy, final, folds):
    summary = retrain(options(copy, final=final, weights_dir=copy / "other"))

    assert len(summary.model.folds) == folds
    (model,) = locate_models(copy / "other")
    assert model.folds == summary.model.folds


def test_mean_of_all_folds_is_frozen_and_nnunet_loads_it(done, tmp_path):
    root, *_ = done
    (start,) = (root / "work" / "round_1").rglob("fold_0/checkpoint_final.pth")
    asked = options(
        root,
        work_dir=tmp_path / "work",
        weights_dir=tmp_path / "weights",
        start=start,
        final="average",
        rule=StoppingRule(most_rounds=1),
        epochs=1,
    )

    summary = retrain(asked)
    assert summary.model.folds == ("all",)
    model_dir = tmp_path / "weights" / "tiny"
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(model_dir), ("all",))
    frozen = torch.load(model_dir / "fold_all" / "checkpoint_final.pth")
    folds = [
        torch.load(path, weights_only=False)["network_weights"]
        for path in sorted((tmp_path / "work").rglob("fold_[01]/checkpoint_final.pth"))
    ]
    name = "decoder.seg_layers.1.weight"
    mean = (folds[0][name] + folds[1][name]) / 2
    torch.testing.assert_close(frozen["network_weights"][name], mean.half())
    (loaded,) = predictor.list_of_parameters
    torch.testing.assert_close(loaded[name], mean.half())
