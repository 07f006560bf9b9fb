"""nnU-Net's trainer on a GPU: mixed precision, near the CPU's weights, resumable."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_training import PRESET, write_dataset, write_labelled_cases

import fakecuda
from sslmedsam2.errors import SslMedSam2Error, UsageError
from sslmedsam2.nnunet import cpu, training
from sslmedsam2.nnunet import trainer as trainer_module
from sslmedsam2.nnunet.dataset import (
    UnlabelledCase,
    build_dataset,
    case_key,
    write_splits,
    write_unlabelled,
)
from sslmedsam2.nnunet.online import OnlineSettings
from sslmedsam2.nnunet.trainer import LiverTrainer, TrainingSettings
from sslmedsam2.nnunet.training import (
    check_gpus,
    preprocessed_dir,
    train_fold,
    trained_model_dir,
)

SETTINGS = TrainingSettings(epochs=1, iterations_per_epoch=2, validation_iterations=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A work directory with preprocessed data and splits, and nothing trained."""
    return write_dataset(tmp_path_factory.mktemp("training"))


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """Load patches in this process, uncompiled, unless a test asks for more."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "f")


def trained(data, folder, *, device="cuda", settings=SETTINGS, **options):
    if not folder.exists():
        shutil.copytree(data, folder)
    final = train_fold(folder, fold=0, settings=settings, device=device, **options)
    return torch.load(final, map_location="cpu", weights_only=False)


def furthest(one, other):
    pairs = (
        (one["network_weights"][name], value) for name, value in other["network_weights"].items()
    )
    return max(float((a.float() - b.float()).abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def on_cpu(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setenv("nnUNet_compile", "f")
        return trained(data, tmp_path_factory.mktemp("cpu") / "work", device="cpu")


def test_training_on_a_gpu_steps_in_mixed_precision_and_stays_near_the_cpu(data, tmp_path, on_cpu):
    seen = trained(data, tmp_path / "work")
    assert all(torch.isfinite(value).all() for value in seen["network_weights"].values())
    assert furthest(seen, on_cpu) < 0.05
    assert seen["grad_scaler_state"]["scale"] > 0
    operations = fakecuda.native.ops()
    assert any(kinds.startswith("Half,Half") for kinds in operations["aten::convolution"])
    assert "aten::mm.out" in operations  # of the optimiser; the network has no matrix product


def test_training_on_a_gpu_learns_from_unlabelled_patches_and_stays_near_the_cpu(
    tmp_path, monkeypatch
):
    folder = tmp_path / "data"
    images = write_labelled_cases(folder / "data", count=3)
    dataset = build_dataset(images, preprocessed_dir=preprocessed_dir(folder), preset=PRESET)
    keys = [case_key(image) for image in images]
    write_splits(dataset, [{"train": keys[:1] + keys[2:], "val": keys[1:2]}])
    write_unlabelled(dataset, {keys[2]: UnlabelledCase(0.8)})
    settings = replace(SETTINGS, online=OnlineSettings(warm_up=0.0, ramp=0.0, sure_above=0.5))
    losses = []
    loss = trainer_module.deep_unlabelled_loss

    def noting(*args, **kwargs):
        losses.append(loss(*args, **kwargs))
        return losses[-1]

    monkeypatch.setattr(trainer_module, "deep_unlabelled_loss", noting)
    seen, expected = (
        trained(folder, tmp_path / device, device=device, settings=settings)
        for device in ("cuda", "cpu")
    )
    assert furthest(seen, expected) < 0.05
    assert [one.device.type for one in losses] == ["cuda"] * 2 + ["cpu"] * 2
    assert seen["grad_scaler_state"]["scale"] > 0


def test_deterministic_training_on_a_gpu_repeats_to_the_bit(data, tmp_path):
    settings = replace(SETTINGS, deterministic=True)
    first, second = (trained(data, tmp_path / name, settings=settings) for name in "ab")
    assert furthest(first, second) == 0


def test_training_goes_on_from_its_checkpoint_on_a_gpu(data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    settings = replace(SETTINGS, epochs=2)

    class StoppedError(Exception):
        pass

    def stop(self):
        if self.current_epoch == 1:
            raise StoppedError
        start(self)

    start = LiverTrainer.on_train_epoch_start
    monkeypatch.setattr(LiverTrainer, "on_train_epoch_start", stop)
    with pytest.raises(StoppedError):
        trained(data, tmp_path / "work", settings=settings)
    monkeypatch.setattr(LiverTrainer, "on_train_epoch_start", start)

    seen = trained(data, tmp_path / "work", settings=settings)
    assert seen["current_epoch"] == 2
    assert len(seen["logging"]["train_losses"]) == 2


def test_fold_starts_from_another_networks_weights_on_a_gpu(data, tmp_path, on_cpu):
    start = tmp_path / "start.pth"
    torch.save(on_cpu, start)
    still = replace(SETTINGS, learning_rate=1e-9)
    assert (
        furthest(trained(data, tmp_path / "work", settings=still, warm_start=start), on_cpu) < 1e-3
    )


def test_second_gpu_can_train(data, tmp_path, monkeypatch):
    devices = []
    step = LiverTrainer.train_step

    def noting(self, batch):
        result = step(self, batch)
        devices.append(next(self.network.parameters()).device)
        return result

    monkeypatch.setattr(LiverTrainer, "train_step", noting)
    trained(data, tmp_path / "work", device="cuda:1")
    assert set(devices) == {torch.device("cuda", 1)}
    with pytest.raises(UsageError, match="single one"):
        check_gpus(2, device="cuda:1", batch_size=2)
    check_gpus(2, device="cuda", batch_size=2)


def test_patches_come_from_worker_processes_on_a_gpu(data, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    monkeypatch.setattr(training, "_shared_memory_is_small", lambda: False)
    assert torch.isfinite(torch.tensor(trained(data, tmp_path / "work")["logging"]["train_losses"]))


def test_workers_are_as_many_as_this_process_has_processors_left(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_shared_memory_is_small", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for allowed, expected in ((1, "1"), (2, "1"), (8, "7"), (64, "12")):
        monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=allowed: set(range(n)))
        training.set_environment(tmp_path, device="cuda", settings=SETTINGS)
        assert os.environ["nnUNet_n_proc_DA"] == expected


def test_checkpoints_on_a_gpu_come_by_time(data, tmp_path, monkeypatch):
    written = []
    save = LiverTrainer.save_checkpoint

    def noting(self, filename):
        save(self, filename)
        written.append(os.path.basename(filename))  # noqa: PTH119

    monkeypatch.setattr(LiverTrainer, "save_checkpoint", noting)
    trained(data, tmp_path / "work", settings=replace(SETTINGS, epochs=3, iterations_per_epoch=1))
    assert "checkpoint_latest.pth" not in written
    fold = trained_model_dir(tmp_path / "work") / "fold_0"
    assert [path.name for path in fold.glob("*.pth")] == ["checkpoint_final.pth"]


def test_cudnn_looks_for_its_quickest_algorithms_while_it_trains(data, tmp_path, monkeypatch):
    seen = []
    step = LiverTrainer.train_step

    def noting(self, batch):
        seen.append(torch.backends.cudnn.benchmark)
        return step(self, batch)

    monkeypatch.setattr(LiverTrainer, "train_step", noting)
    before = torch.backends.cudnn.benchmark
    for name, deterministic in (("a", False), ("b", True)):
        settings = replace(SETTINGS, iterations_per_epoch=1, deterministic=deterministic)
        trained(data, tmp_path / name, settings=settings)
    assert seen == [True, False]
    assert torch.backends.cudnn.benchmark == before


def test_card_too_small_for_a_training_is_one_clear_line(data, tmp_path):
    with fakecuda.memory_limit(200_000), pytest.raises(SslMedSam2Error) as refused:
        trained(data, tmp_path / "work")
    assert "memory of the GPU" in str(refused.value)
    assert "--preset" in str(refused.value)


@pytest.mark.parametrize(
    ("device", "programs", "triton", "expected"),
    [
        ("cuda", {"gcc"}, True, True),
        ("cuda", {"clang"}, True, True),
        ("cuda", {"g++"}, True, False),
        ("cuda", {"gcc"}, False, False),
        ("cuda:1", {"gcc"}, True, True),
        ("cpu", {"g++"}, False, True),
        ("cpu", {"gcc"}, True, False),
    ],
)
def test_compiling_needs_the_compiler_that_the_device_calls(
    monkeypatch, device, programs, triton, expected
):
    monkeypatch.setattr(cpu.shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda _: object() if triton else None)
    assert cpu.can_compile(device) is expected
    monkeypatch.setattr(cpu.sysconfig, "get_path", lambda _: "/nowhere")
    assert not cpu.can_compile(device), "without Python.h"
