import errno
import json
import os
import shutil

import pytest
import torch
from weights_samples import CARD, MACHINE_FOLDER

from sslmedsam2.errors import ModelError
from sslmedsam2.weights.freeze import freeze_model, move_model
from sslmedsam2.weights.locate import locate_models
from sslmedsam2.weights.manifest import read_manifest


def _visible_files(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_frozen_model_is_an_ordinary_model_folder_and_listed(weights_dir):
    assert _visible_files(weights_dir) == [
        "liver/dataset.json",
        "liver/fold_0/checkpoint_final.pth",
        "liver/fold_1/checkpoint_final.pth",
        "liver/plans.json",
        "manifest.json",
    ]


def test_nnunets_own_predictor_loads_a_frozen_model(training, weights_dir):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(weights_dir / "liver"), None)
    image = torch.randn(1, 1, 8, 16, 16)

    assert len(predictor.list_of_parameters) == 2
    for fold, weights in enumerate(predictor.list_of_parameters):
        predictor.network.load_state_dict(weights)
        with torch.no_grad():
            assert torch.equal(predictor.network(image), training.networks[fold](image))
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    probabilities = predictor.predict_logits_from_preprocessed_data(torch.randn(1, 10, 20, 20))
    assert probabilities.shape == (2, 10, 20, 20)


def test_nothing_of_the_training_machine_is_shipped(training, weights_dir):
    assert MACHINE_FOLDER in (training.folder / "dataset.json").read_text()
    for path in weights_dir.rglob("*.*"):
        assert MACHINE_FOLDER.encode() not in (path.read_bytes() if path.is_file() else b"")


def test_chosen_folds_only(training, tmp_path):
    entry = freeze_model(
        training.folder, tmp_path, name="one", sequences=("*",), card=CARD, folds=("1",)
    )

    assert entry.folds == ("1",)
    assert not (tmp_path / "one" / "fold_0").exists()


def test_network_trained_on_all_cases_is_frozen_from_among_numbered_folds(training, tmp_path):
    folder = shutil.copytree(training.folder, tmp_path / "training")
    shutil.copytree(folder / "fold_1", folder / "fold_all")

    freeze_model(folder, tmp_path / "w", name="final", sequences=("*",), card=CARD, folds=("all",))
    (model,) = locate_models(tmp_path / "w")
    assert model.folds == ("all",)
    assert not (model.path / "fold_0").exists()


def test_freezing_again_replaces_the_model_and_keeps_the_others(training, weights_dir):
    freeze_model(training.folder, weights_dir, name="other", sequences=("GED4",), card=CARD)
    freeze_model(
        training.folder, weights_dir, name="liver", sequences=("*",), card=CARD, folds=("0",)
    )

    models = {model.name: model.folds for model in locate_models(weights_dir)}
    assert models == {"other": ("0", "1"), "liver": ("0",)}
    assert not (weights_dir / "liver" / "fold_1").exists()


def test_missing_fold_is_refused(training, tmp_path):
    with pytest.raises(ModelError, match=r"fold_3/checkpoint_final\.pth: it is missing"):
        freeze_model(
            training.folder, tmp_path, name="m", sequences=("*",), card=CARD, folds=("0", "3")
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "sequences"), [("second", ("*",)), ("../escaped", ("T1",)), ("liver", ())]
)
def test_contradictory_entry_changes_nothing(training, weights_dir, name, sequences):
    before = _visible_files(weights_dir.parent)
    manifest = read_manifest(weights_dir / "manifest.json")

    with pytest.raises(ModelError):
        freeze_model(
            training.folder, weights_dir, name=name, sequences=sequences, card=CARD, folds=("0",)
        )
    assert _visible_files(weights_dir.parent) == before
    assert read_manifest(weights_dir / "manifest.json") == manifest
    locate_models(weights_dir)


def test_unreadable_plans_are_refused(training, tmp_path):
    folder = shutil.copytree(training.folder, tmp_path / "training")
    (folder / "plans.json").write_text("{")

    with pytest.raises(ModelError, match=r"plans\.json"):
        freeze_model(folder, tmp_path / "w", name="m", sequences=("*",), card=CARD)


def test_plans_reach_the_model_unchanged(training, weights_dir):
    shipped = json.loads((weights_dir / "liver" / "plans.json").read_text())

    assert shipped == json.loads((training.folder / "plans.json").read_text())


@pytest.mark.parametrize("other_disk", [False, True])
def test_moved_model_is_listed_and_the_same_to_the_bit(training, tmp_path, monkeypatch, other_disk):
    entry = freeze_model(training.folder, tmp_path / "a", name="m", sequences=("*",), card=CARD)
    before = {file.path: (tmp_path / "a" / "m" / file.path).read_bytes() for file in entry.files}
    if other_disk:

        def refuse(*_args, **_kwargs):
            raise OSError(errno.EXDEV, "another disk")

        monkeypatch.setattr(os, "rename", refuse)

    moved = move_model(tmp_path / "a" / "m", tmp_path / "b", entry)

    assert moved == entry
    (model,) = locate_models(tmp_path / "b")
    assert model.verified
    assert {name: (model.path / name).read_bytes() for name in before} == before
    assert not (tmp_path / "a" / "m").exists()
    assert _visible_files(tmp_path / "b") == sorted(
        ["manifest.json", *(f"m/{name}" for name in before)]
    )
