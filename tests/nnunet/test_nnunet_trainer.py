import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from held_locks import held_elsewhere
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from tiny_models import make_plans
from tiny_scans import abdomen
from tiny_training import (
    PRESET,
    read_curves,
    write_dataset,
    write_labelled_case,
    write_labelled_cases,
)

from sslmedsam2.errors import ModelError, SslMedSam2Error, UsageError
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.imaging.atomic import write_text_atomic
from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.inference.device import choose_device
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.nnunet import cpu, training
from sslmedsam2.nnunet import trainer as trainer_module
from sslmedsam2.nnunet.dataset import (
    DATASET_NAME,
    Sampling,
    alternating_splits,
    build_dataset,
    write_sampling,
    write_splits,
)
from sslmedsam2.nnunet.organs import N_CLASSES, without_organs
from sslmedsam2.nnunet.plans import TRAINED_LABELS_WITH_IGNORE
from sslmedsam2.nnunet.trainer import LiverTrainer, PatchLoader, TrainingSettings
from sslmedsam2.nnunet.training import preprocessed_dir, train_fold, trained_model_dir
from sslmedsam2.weights.freeze import freeze_model
from sslmedsam2.weights.locate import locate_models
from sslmedsam2.weights.manifest import ModelCard

pytestmark = pytest.mark.usefixtures("no_progress_png")

SETTINGS = TrainingSettings(epochs=2, iterations_per_epoch=2, validation_iterations=1)
NNUNETS_PLOT = LocalLogger.plot_progress_png
ONE_STEP = TrainingSettings(epochs=1, iterations_per_epoch=1, validation_iterations=1)

_TRAIN_AND_DIE = """
import os, signal, sys
from pathlib import Path
from sslmedsam2.nnunet.trainer import LiverTrainer, TrainingSettings
from sslmedsam2.nnunet.training import train_fold

class _Doomed(LiverTrainer):
    def train_step(self, batch):
        result = LiverTrainer.step(self, batch)
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

LiverTrainer.step, LiverTrainer.train_step = LiverTrainer.train_step, _Doomed.train_step
settings = TrainingSettings(epochs=2, iterations_per_epoch=2, validation_iterations=1)
train_fold(Path(sys.argv[1]), fold=0, settings=settings, device="cpu")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A work directory with preprocessed data and splits, and nothing trained."""
    return write_dataset(tmp_path_factory.mktemp("training"))


@pytest.fixture
def work_dir(data, tmp_path):
    return shutil.copytree(data, tmp_path / "work")


def _weights(checkpoint):
    return torch.load(checkpoint, weights_only=False)["network_weights"]


def _train(work_dir, **options):
    return train_fold(work_dir, fold=0, settings=SETTINGS, device="cpu", **options)


@pytest.mark.slow
def test_killed_and_resumed_training_ends_like_an_uninterrupted_one(data, tmp_path):
    whole, broken = (shutil.copytree(data, tmp_path / name) for name in ("whole", "broken"))
    uninterrupted = _train(whole)

    command = [sys.executable, "-c", _TRAIN_AND_DIE, str(broken)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    fold = trained_model_dir(broken) / "fold_0"
    assert torch.load(fold / "checkpoint_latest.pth", weights_only=False)["current_epoch"] == 1
    assert not (fold / "checkpoint_final.pth").exists()

    resumed = _train(broken)
    first, second = _weights(uninterrupted), _weights(resumed)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A work directory with a trained fold, and the fold's checkpoint."""
    work_dir = tmp_path_factory.mktemp("trained") / "work"
    return work_dir, _train(shutil.copytree(data, work_dir))


def _initialized_trainer(work_dir, monkeypatch, fold="all"):
    for name in ("nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA", "nnUNet_compile"):
        monkeypatch.setenv(name, "")
    training.set_environment(work_dir, device="cpu", settings=SETTINGS)
    trainer = training._make_trainer(work_dir, fold=fold, device="cpu")
    trainer.use(SETTINGS)
    trainer.initialize()
    return trainer


def test_cases_are_drawn_as_often_as_the_data_set_says(work_dir, monkeypatch):
    keys = sorted(path.stem for path in preprocessed_dir(work_dir).rglob("*.pkl"))
    write_sampling(preprocessed_dir(work_dir) / DATASET_NAME, Sampling((keys[0],), 0.9))
    trainer = _initialized_trainer(work_dir, monkeypatch)

    loader, _ = trainer.get_dataloaders()

    np.random.seed(0)
    drawn = [key for _ in range(40) for key in next(loader)["keys"]]
    assert drawn.count(keys[0]) > 30
    assert keys[1] in drawn


def test_share_is_met_in_a_fold_that_holds_out_some_of_the_images(tmp_path, monkeypatch):
    *images, other = write_labelled_cases(tmp_path / "data", count=3)
    dataset = build_dataset(
        [*images, other], preprocessed_dir=preprocessed_dir(tmp_path), preset=PRESET
    )
    write_splits(dataset, alternating_splits(images, n_folds=2, others=[other]))
    write_sampling(dataset, Sampling(("case1__T2", "case2__T2"), 0.75))
    trainer = _initialized_trainer(tmp_path, monkeypatch, fold=0)

    loader = trainer.get_dataloaders()[0].data_loader

    drawn = dict(zip(loader.indices, loader.sampling_probabilities, strict=True))
    assert drawn == {"case2__T2": 0.75, "case3__T2": 0.25}


def test_coarse_outputs_of_organs_count_less_and_the_coarsest_not_at_all(work_dir, monkeypatch):
    trainer = _initialized_trainer(work_dir, monkeypatch)
    target = torch.tensor([0, 3]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    right = 12.0 * torch.nn.functional.one_hot(target, N_CLASSES).movedim(-1, 1).float()
    wrong = right.flip(2)
    n_outputs = len(trainer.loss.weight_factors)

    losses = [
        float(
            trainer._organ_loss(
                [wrong if level == k else right for level in range(n_outputs)],
                [target] * n_outputs,
            )
        )
        for k in range(n_outputs)
    ]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == n_outputs
    assert losses[-1] == pytest.approx(-1, abs=1e-3)


def test_trained_fold_is_left_alone(trained):
    work_dir, checkpoint = trained
    written = checkpoint.stat().st_mtime_ns
    names = {path.name for path in checkpoint.parent.iterdir()}

    assert checkpoint == trained_model_dir(work_dir) / "fold_0" / "checkpoint_final.pth"
    assert not any(name.endswith(".partial") for name in names)
    assert "checkpoint_latest.pth" not in names
    assert _train(work_dir) == checkpoint
    assert checkpoint.stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["checkpoint_final.pth", "checkpoint_latest.pth"])
def test_truncated_checkpoint_of_a_fold_is_named_with_what_brings_the_fold_back(
    trained, work_dir, name
):
    checkpoint = trained_model_dir(work_dir) / "fold_0" / name
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(trained[1].read_bytes()[:-1000])

    remedy = "or move the file away and run the same command"
    with pytest.raises(ModelError, match=rf"{name}: .* {remedy}"):
        train_fold(work_dir, fold=0, settings=ONE_STEP, device="cpu")
    checkpoint.unlink()

    assert train_fold(work_dir, fold=0, settings=ONE_STEP, device="cpu").is_file()


def test_checkpoint_of_another_optimiser_is_named_with_what_brings_the_fold_back(trained, work_dir):
    content = torch.load(trained[1], weights_only=False)
    weights = [torch.nn.Parameter(weight) for weight in content["network_weights"].values()]
    latest = trained_model_dir(work_dir) / "fold_0" / "checkpoint_latest.pth"
    latest.parent.mkdir(parents=True)
    optimizer_state = torch.optim.AdamW(weights).state_dict()
    torch.save({**content, "optimizer_state": optimizer_state}, latest)

    reason = "earlier version, which trained otherwise"
    with pytest.raises(SslMedSam2Error, match=rf"{reason}.*move the file away"):
        train_fold(work_dir, fold=0, settings=SETTINGS, device="cpu")


def test_curves_of_every_epoch_are_kept_for_tensorboard(trained):
    _, checkpoint = trained
    curves = read_curves(checkpoint.parent)

    assert curves.keys() == {"loss/train", "loss/validation", "pseudo_dice", "learning_rate"}
    logged = torch.load(checkpoint, weights_only=False)["logging"]
    for name, key in (("loss/train", "train_losses"), ("learning_rate", "lrs")):
        assert [epoch for epoch, _ in curves[name]] == [0, 1]
        assert [value for _, value in curves[name]] == pytest.approx(logged[key])


def test_curves_are_drawn_as_nnunet_draws_them(work_dir, monkeypatch):
    monkeypatch.setattr(LocalLogger, "plot_progress_png", NNUNETS_PLOT)

    checkpoint = train_fold(work_dir, fold=0, settings=ONE_STEP, device="cpu")
    assert (checkpoint.parent / "progress.png").stat().st_size > 0


def test_residual_network_is_trained_and_served(tmp_path):
    images = write_labelled_cases(tmp_path / "data", count=2)
    plans = make_plans(
        residual=True,
        patch=PRESET.patch_zyx,
        spacing_mm=PRESET.spacing_zyx_mm,
        strides=PRESET.strides_zyx,
    )
    residual = tmp_path / "residual"
    dataset = build_dataset(
        images, preprocessed_dir=preprocessed_dir(residual), preset=PRESET, plans=plans
    )
    write_splits(dataset, alternating_splits(images, n_folds=2))

    checkpoint = train_fold(residual, fold=0, settings=ONE_STEP, device="cpu")
    freeze_model(
        checkpoint.parents[1],
        tmp_path / "weights",
        name="residual",
        sequences=("*",),
        folds=("0",),
        half=True,
        card=ModelCard("abdomens", "a test", "Apache-2.0", "2026-01-31", {}),
    )
    (model,) = locate_models(tmp_path / "weights")
    assert "ResidualEncoderUNet" in (model.path / "plans.json").read_text()
    segmenter = CanonicalSegmenter(
        read_model_spec(model.path, folds=model.folds), EngineOptions(device="cpu")
    )
    image = abdomen()[0]
    as_is = Reorientation(axes=(0, 1, 2), flipped_axes=())
    found = segmenter.segment(CanonicalVolume(image, (7.0, 4.0, 4.0), as_is))
    assert found.mask_zyx.shape == image.shape


def test_deterministic_training_holds_torch_to_it_and_lets_it_go(data, tmp_path, monkeypatch):
    seen = []
    step = LiverTrainer.train_step

    def watched(self, batch):
        seen.append(
            (torch.are_deterministic_algorithms_enabled(), type(self.loss.loss.ce).__module__)
        )
        return step(self, batch)

    monkeypatch.setattr(LiverTrainer, "train_step", watched)
    weights = []
    for name, deterministic in (("a", True), ("b", False)):
        folder = shutil.copytree(data, tmp_path / name)
        settings = replace(ONE_STEP, iterations_per_epoch=2, deterministic=deterministic)
        weights.append(_weights(train_fold(folder, fold=0, settings=settings, device="cpu")))

    assert seen[:2] == [(True, "sslmedsam2.nnunet.deterministic")] * 2
    assert [enabled for enabled, _ in seen[2:]] == [False, False]
    assert not torch.are_deterministic_algorithms_enabled()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-3, rtol=0)


def _shared_memory(monkeypatch, *, megabytes):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(training.shutil, "disk_usage", lambda _: usage(megabytes * 2**20))


def test_no_worker_processes_where_a_container_has_little_shared_memory(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    _shared_memory(monkeypatch, megabytes=64)

    training.set_environment(tmp_path, device="cuda", settings=SETTINGS)
    reported = dict(os.environ)
    assert reported["nnUNet_n_proc_DA"] == "0"
    assert "--shm-size" in caplog.text


@pytest.mark.parametrize(
    ("device", "deterministic", "compiler", "workers", "compiled"),
    [
        ("cpu", False, True, "0", "f"),
        ("cuda", False, True, "3", None),
        ("cuda", True, True, "0", "f"),
        ("cuda", False, False, "3", "f"),
    ],
)
def test_nnunet_is_told_how_to_load_and_whether_to_compile(
    tmp_path, monkeypatch, device, deterministic, compiler, workers, compiled
):
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    monkeypatch.delenv("nnUNet_compile", raising=False)
    monkeypatch.setattr(cpu.shutil, "which", lambda name: name if compiler else None)
    # Triton comes with the CUDA builds of torch alone.
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda _: "found")
    _shared_memory(monkeypatch, megabytes=8000)
    # One of four processors stays for the training itself.
    monkeypatch.setattr(training.os, "sched_getaffinity", lambda _: set(range(4)))
    settings = replace(SETTINGS, deterministic=deterministic)

    training.set_environment(tmp_path, device=device, settings=settings)
    reported = dict(os.environ)
    assert reported.get("nnUNet_n_proc_DA") == workers
    assert reported.get("nnUNet_compile") == compiled
    assert reported["nnUNet_results"] == str(tmp_path / "results")


def test_a_cpu_trains_in_the_arithmetic_that_was_measured_quickest(trained, work_dir, monkeypatch):
    measured = {"float32": 0.4, "bfloat16": 0.1}
    monkeypatch.setattr(cpu, "_MEASURED", {})
    # Which is quickest differs between machines, and compiling takes half a minute.
    monkeypatch.setattr(cpu, "can_compile", lambda: False)
    monkeypatch.setattr(cpu, "_may_know_bfloat16", lambda: True)
    monkeypatch.setattr(
        cpu,
        "_seconds_a_step",
        lambda _call, _patch, *, bfloat16: measured["bfloat16" if bfloat16 else "float32"],
    )
    settings = replace(SETTINGS, measure_cpu=True)
    checkpoint = train_fold(work_dir, fold=0, settings=settings, device="cpu")

    noted = json.loads((checkpoint.parent / "cpu_arithmetic.json").read_text())
    assert noted["bfloat16"]
    assert not noted["compiled"]
    exact, found = _weights(trained[1]), _weights(checkpoint)
    assert not all(torch.equal(exact[name], found[name]) for name in exact)
    for name, weight in exact.items():
        # Four steps move a weight by a few thousandths, whatever the rounding.
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-2)


def test_served_weights_are_the_average_of_the_last_steps(trained):
    content = torch.load(trained[1], weights_only=False)
    newest, served = content["training_weights"], content["network_weights"]
    assert without_organs(newest).keys() == served.keys()
    # A parameter of a compiled network carries marks that the reader of checkpoints refuses.
    assert {type(weight) for weight in served.values()} == {torch.Tensor}
    moved = [name for name in served if not torch.equal(newest[name], served[name])]
    assert len(moved) > len(served) / 2
    for name in served:
        torch.testing.assert_close(served[name], newest[name], rtol=0, atol=1e-2)


def test_a_map_of_organs_is_learned_and_not_served(tmp_path):
    layers = {}
    for name, with_organs in (("liver", False), ("organs", True)):
        images = [
            write_labelled_case(tmp_path / name / f"case{n}", seed=n, with_organs=with_organs)
            for n in (1, 2)
        ]
        folder = preprocessed_dir(tmp_path / name)
        build_dataset(images, preprocessed_dir=folder, preset=PRESET)
        checkpoint = train_fold(tmp_path / name, fold="all", settings=ONE_STEP, device="cpu")
        content = torch.load(checkpoint, weights_only=False)
        assert not [key for key in content["network_weights"] if "organs" in key]
        layers[name] = content["training_weights"]["decoder.seg_layers.1.organs.bias"]

    # The first step of AdamW moves each weight that has a gradient by the learning rate.
    assert (layers["organs"] - layers["liver"]).abs().min() > ONE_STEP.learning_rate / 2


def test_patches_of_data_with_an_ignore_label_lie_within_the_image(tmp_path, monkeypatch):
    images = write_labelled_cases(tmp_path / "data", count=2)
    work_dir = tmp_path / "work"
    build_dataset(
        images,
        preprocessed_dir=preprocessed_dir(work_dir),
        preset=PRESET,
        labels=TRAINED_LABELS_WITH_IGNORE,
    )
    loaders = []

    class Remembered(PatchLoader):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            loaders.append(self)

    monkeypatch.setattr(trainer_module, "PatchLoader", Remembered)
    train_fold(work_dir, fold="all", settings=ONE_STEP, device="cpu")

    assert len(loaders) == 2
    patch = np.array(loaders[0].patch_size)
    image = 3 * patch
    # Centred on the image's far corner, most of a patch would be empty.
    corner = {loaders[0].annotated_classes_key: np.array([[0, *(image - 1)]])}
    first = np.array([loaders[0].get_bbox(image, False, corner)[0] for _ in range(20)])
    margin = loaders[0].need_to_pad
    assert (first >= -margin).all()
    assert (first + patch <= image + margin).all()


def test_warm_start_begins_with_the_given_weights(trained, work_dir, tmp_path):
    content = torch.load(trained[1], weights_only=False)
    for tensor in content["network_weights"].values():
        tensor.zero_()
    torch.save(content, tmp_path / "zeros.pth")

    # One step moves no weight far: what began at zero is still near it.
    warm = train_fold(
        work_dir, fold=0, settings=ONE_STEP, device="cpu", warm_start=tmp_path / "zeros.pth"
    )
    assert max(tensor.abs().max().item() for tensor in _weights(warm).values()) < 0.01
    assert max(tensor.abs().max().item() for tensor in _weights(trained[1]).values()) > 0.1


@pytest.mark.parametrize("damage", ["other_network", "no_checkpoint"])
def test_warm_start_that_does_not_fit_is_refused(trained, work_dir, tmp_path, damage):
    checkpoint = tmp_path / "start.pth"
    if damage == "other_network":
        content = torch.load(trained[1], weights_only=False)
        content["network_weights"].popitem()
        torch.save(content, checkpoint)
    else:
        checkpoint.write_bytes(b"nothing")

    with pytest.raises(ModelError, match=r"start\.pth"):
        _train(work_dir, warm_start=checkpoint)
    assert not (trained_model_dir(work_dir) / "fold_0" / "checkpoint_final.pth").exists()


def test_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="no usable CUDA device"):
        choose_device("cuda")


def test_a_stop_ends_the_training_after_its_epoch_and_it_goes_on_to_the_same_weights(
    work_dir, trained, caplog
):
    caplog.set_level("INFO", "sslmedsam2")
    whole = _weights(trained[1])
    looks = iter([False, True])
    stop = StopRequest(lambda: next(looks, True))

    assert _train(work_dir, stop=stop) is None

    fold = trained_model_dir(work_dir) / "fold_0"
    latest = torch.load(fold / "checkpoint_latest.pth", weights_only=False)
    assert latest["current_epoch"] == 1
    assert not (fold / "checkpoint_final.pth").exists()
    for name, weights in _weights(_train(work_dir)).items():
        assert torch.equal(weights, whole[name]), name
    reported = [line for line in caplog.messages if "epoch" in line]
    assert re.search(r"epoch 1 of \d: .*, about 1 min left$", reported[0]), reported
    assert "left" not in reported[-1]


def test_a_fold_that_another_process_trains_is_refused_until_that_ends(work_dir):
    fold = trained_model_dir(work_dir) / "fold_0"
    with (
        held_elsewhere(fold, name="training.lock"),
        pytest.raises(UsageError, match="another process is training this fold"),
    ):
        _train(work_dir)

    # A lock ends with its process, however that ends.
    assert train_fold(work_dir, fold=0, settings=ONE_STEP, device="cpu").is_file()


def test_what_a_killed_training_had_begun_to_write_is_removed(work_dir):
    fold = trained_model_dir(work_dir) / "fold_0"
    fold.mkdir(parents=True)
    begun = fold / ".0123abcd.partial-checkpoint_latest.pth"
    begun.write_bytes(b"half a checkpoint")

    train_fold(work_dir, fold=0, settings=ONE_STEP, device="cpu")

    assert not begun.exists()


def test_what_nnunet_notes_of_a_training_is_written_whole_or_not_at_all(work_dir, monkeypatch):
    def full_disk(path, content):
        if path.name == "debug.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_text_atomic(path, content)

    monkeypatch.setattr(trainer_module, "write_text_atomic", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train_fold(work_dir, fold=0, settings=ONE_STEP, device="cpu")

    folder = trained_model_dir(work_dir)
    assert json.loads((folder / "plans.json").read_text())["plans_name"] == "nnUNetPlans"
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "liver": 1,
    }
    assert not (folder / "fold_0" / "debug.json").exists()
