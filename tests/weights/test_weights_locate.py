import logging
import shutil
from pathlib import Path

import pytest
from weights_samples import CARD

from sslmedsam2.errors import ModelError
from sslmedsam2.inference.model_folder import load_checkpoint, read_model_spec
from sslmedsam2.weights import locate
from sslmedsam2.weights.freeze import freeze_model
from sslmedsam2.weights.locate import locate_models, model_for_sequence


@pytest.fixture
def places(monkeypatch, tmp_path):
    """The platform's folder and the shipped one, both absent at first."""
    platform, shipped = tmp_path / "opt" / "ml" / "model", tmp_path / "app" / "weights"
    monkeypatch.setattr(locate, "PLATFORM_DIR", platform)
    monkeypatch.setattr(locate, "SHIPPED_DIR", shipped)
    return platform, shipped


def test_folder_with_a_manifest_is_verified(weights_dir):
    (model,) = locate_models(weights_dir)

    assert model.path == weights_dir / "liver"
    assert (model.name, model.sequences, model.folds) == ("liver", ("*",), ("0", "1"))
    assert model.verified
    assert model.card == CARD
    assert [file.path for file in model.files] == [
        "dataset.json",
        "plans.json",
        "fold_0/checkpoint_final.pth",
        "fold_1/checkpoint_final.pth",
    ]


def test_one_model_folder_beside_its_manifest_is_verified(weights_dir, monkeypatch):
    monkeypatch.chdir(weights_dir / "liver")
    assert locate_models(Path()) == locate_models(weights_dir)


def test_altered_model_is_refused_also_when_named_directly(weights_dir):
    with (weights_dir / "liver" / "plans.json").open("a") as file:
        file.write(" ")

    for named in (weights_dir, weights_dir / "liver"):
        with pytest.raises(ModelError, match=r"plans\.json"):
            locate_models(named)


def test_ordinary_training_folder_is_accepted_unverified(training, caplog):
    with caplog.at_level(logging.WARNING):
        (model,) = locate_models(training.folder)

    assert not model.verified
    assert model.sequences == ("*",)
    assert model.folds == ("0", "1")
    assert len(model.files) == 4
    assert "not verified" in caplog.text


@pytest.mark.parametrize("lacking", ["dataset.json", "plans.json", "fold_*"])
def test_folder_that_is_no_model_is_refused_with_what_it_lacks(training, tmp_path, lacking):
    folder = shutil.copytree(training.folder, tmp_path / "model")
    for path in folder.glob(lacking):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    with pytest.raises(ModelError) as refusal:
        locate_models(folder)
    assert lacking in refusal.value.reason


def test_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"")

    (tmp_path / "circle").symlink_to("circle")

    for name in ("absent", "model.zip", "circle"):
        with pytest.raises(ModelError, match="no such folder"):
            locate_models(tmp_path / name)


def test_platform_folder_comes_before_the_shipped_one(weights_dir, places):
    platform, shipped = places
    shutil.copytree(weights_dir, shipped)
    assert locate_models()[0].path == shipped / "liver"

    platform.mkdir(parents=True)
    (platform / ".keep").touch()
    assert locate_models()[0].path == shipped / "liver"

    shutil.copytree(weights_dir, platform, dirs_exist_ok=True)
    assert locate_models()[0].path == platform / "liver"


def test_named_folder_comes_before_all(weights_dir, training, places):
    shutil.copytree(weights_dir, places[0])

    assert locate_models(training.folder)[0].path == training.folder


def test_broken_platform_model_is_not_passed_over(weights_dir, places):
    platform, shipped = places
    shutil.copytree(weights_dir, shipped)
    (platform / "upload").mkdir(parents=True)

    with pytest.raises(ModelError, match="holds no dataset"):
        locate_models()


def test_a_platform_folder_that_may_not_be_read_is_not_passed_over(
    weights_dir, places, monkeypatch
):
    platform, shipped = places
    shutil.copytree(weights_dir, shipped)
    platform.mkdir(parents=True)
    iterdir = Path.iterdir

    # Permissions do not bind root, who runs tests in containers.
    def guarded(path):
        if path == platform:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", guarded)

    with pytest.raises(ModelError, match=r"cannot be listed \(Permission denied\)"):
        locate_models()


@pytest.mark.usefixtures("places")
def test_no_model_anywhere_is_an_error_with_the_way_out():
    with pytest.raises(ModelError, match="--model"):
        locate_models()


def test_sequence_gets_its_own_model_before_the_general_one(training, weights_dir):
    freeze_model(
        training.folder, weights_dir, name="ged4", sequences=("GED4",), card=CARD, folds=("0",)
    )
    models = locate_models(weights_dir)

    assert model_for_sequence(models, "GED4").name == "ged4"
    assert model_for_sequence(models, "T1").name == "liver"


def test_sequence_that_no_model_serves_is_an_error(training, tmp_path):
    freeze_model(
        training.folder, tmp_path / "w", name="ged4", sequences=("GED4", "GED3"), card=CARD
    )

    with pytest.raises(ModelError, match=r"T1: no model serves .* GED3, GED4"):
        model_for_sequence(locate_models(tmp_path / "w"), "T1")


def test_a_training_with_only_its_best_checkpoint_is_used_with_a_note(training, tmp_path, caplog):
    folder = shutil.copytree(training.folder, tmp_path / "model")
    for final in folder.glob("fold_*/checkpoint_final.pth"):
        final.rename(final.with_name("checkpoint_best.pth"))

    (model,) = locate_models(folder)

    assert model.folds == ("0", "1")
    assert model.files[-1].path == "fold_1/checkpoint_best.pth"
    assert "checkpoint_best.pth is used" in caplog.text
    spec = read_model_spec(model.path, folds=model.folds, sha256=model.sha256)
    assert load_checkpoint(spec, "1").weights


def test_where_the_model_lies_is_said(training, tmp_path):
    inside = tmp_path / "results" / "Dataset001" / "trainer"
    shutil.copytree(training.folder, inside)
    archive = Path(shutil.make_archive(str(tmp_path / "zipped" / "model"), "zip", inside))

    for given, said in (
        (tmp_path / "results", "Give Dataset001/trainer in it"),
        (inside / "fold_0", "Give the folder above it"),
        (archive, "Unpack it"),
        (archive.parent, "Unpack model.zip in it"),
    ):
        with pytest.raises(ModelError) as refusal:
            locate_models(given)
        assert said in refusal.value.remedy


def test_a_pointer_of_git_lfs_is_named(training, tmp_path):
    folder = shutil.copytree(training.folder, tmp_path / "model")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7996299\n"
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(pointer)

    (model,) = locate_models(folder)
    with pytest.raises(ModelError, match="Git LFS pointer"):
        read_model_spec(model.path, folds=model.folds)
