"""What the options of ``retrain``, ``refine plan`` and ``train`` come to."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from retrain_samples import options, write_data
from tiny_training import PRESET

from sslmedsam2.cli import retrain as retrain_command
from sslmedsam2.cli.main import main
from sslmedsam2.errors import UsageError
from sslmedsam2.execution.units import ThisProcess
from sslmedsam2.inference import device as inference_device
from sslmedsam2.nnunet.plans import PRESETS
from sslmedsam2.retrain import index
from sslmedsam2.retrain import pipeline as retrain_pipeline
from sslmedsam2.retrain.stopping import StoppingRule
from sslmedsam2.train import pipeline as train_pipeline


class _AskedError(Exception):
    """Carries the options that a pipeline was called with."""


@pytest.fixture
def asked(monkeypatch):
    """Return the options that a command line comes to, on a machine with or without a GPU."""

    def stop(options, *_, **__):
        raise _AskedError(options)

    monkeypatch.setattr(retrain_pipeline, "retrain", stop)
    monkeypatch.setattr(retrain_pipeline, "plan", stop)
    monkeypatch.setattr(train_pipeline, "train", stop)

    def run(*arguments, gpu=False):
        monkeypatch.setattr(inference_device, "_usual_device", lambda: "cuda" if gpu else "cpu")
        monkeypatch.setattr(inference_device, "gpu_fault", lambda _: None)
        folders = {
            "train": ["--data", "d", "--work-dir", "w"],
            "retrain": ["--labelled", "l", "--unlabelled", "u", "--work-dir", "w"],
        }
        needed = folders["train" if arguments[0] == "train" else "retrain"]
        try:
            main([*arguments, *needed])
        except _AskedError as caught:
            return caught.args[0]
        raise AssertionError(f"{arguments} were refused")

    return run


COMMANDS = [("retrain",), ("refine", "plan")]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("gpu", "preset", "epochs", "iterations"),
    [(False, "compact", 30, 50), (True, "resenc-m", 100, 250)],
)
def test_network_and_length_follow_the_device(asked, command, gpu, preset, epochs, iterations):
    options = asked(*command, gpu=gpu)

    assert options.preset == PRESETS[preset]
    assert (options.epochs, options.iterations_per_epoch) == (epochs, iterations)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_given_wins_over_the_device(asked, command):
    options = asked(*command, "--preset", "compact", "--epochs", "7", "--device", "cuda", gpu=True)

    assert options.preset == PRESETS["compact"]
    assert (options.epochs, options.iterations_per_epoch) == (7, 50)
    assert asked(*command, "--device", "cpu", gpu=True).preset == PRESETS["compact"]


@pytest.mark.parametrize("command", [*COMMANDS, ("train",)])
def test_switches_of_the_gpu_arrive(asked, command):
    plain = asked(*command)
    assert (plain.deterministic, plain.gpus) == (False, 1)

    options = asked(*command, "--deterministic", "--gpus", "2", "--preset", "resenc-l")
    assert (options.deterministic, options.gpus) == (True, 2)
    assert options.preset == PRESETS["resenc-l"]


def test_training_on_labels_alone_follows_its_own_schedule(asked):
    options = asked("train")
    assert options.preset == PRESETS["compact"]
    assert (options.epochs, options.final_epochs, options.iterations_per_epoch) == (28, 18, 50)

    options = asked("train", "--device", "cuda", "--final-epochs", "9")
    assert options.preset == PRESETS["resenc-m"]
    assert (options.epochs, options.final_epochs, options.iterations_per_epoch) == (100, 9, 250)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ([], StoppingRule(most_rounds=5, settled_at=0.97, fixed=False)),
        (["--rounds", "3"], StoppingRule(most_rounds=3, settled_at=0.97, fixed=True)),
        (["--max-rounds", "9", "--settled-at", "0.9"], StoppingRule(9, 0.9, fixed=False)),
    ],
)
def test_rounds_become_a_rule(asked, given, rule):
    assert asked("retrain", *given).rule == rule


def test_sequences_and_folders_are_read(asked):
    options = asked(
        "retrain", "--sequences", "t2,GED4", "--from-scratch", "--reference-masks-first"
    )

    assert set(options.sequences) == {"T2", "GED4"}
    assert (options.labelled_dir, options.work_dir) == (Path("l"), Path("w"))
    assert not options.warm_start
    assert options.reference_masks_first


class _GpuWorkers(ThisProcess):
    """Stands for a cluster whose workers have two GPUs, asked from a machine without one."""

    def call(self, function, *args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inference_device, "_usual_device", lambda: "cuda")
            patch.setattr(inference_device, "gpu_fault", lambda _: None)
            patch.setattr(torch.cuda, "device_count", lambda: 2)
            return super().call(function, *args, **kwargs)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_with_a_cluster_the_workers_gpus_count_and_not_this_machines(asked, monkeypatch, device):
    monkeypatch.setattr(retrain_command, "open_executor", lambda _: nullcontext(_GpuWorkers()))

    options = asked("retrain", "--cluster", "local", "--device", device, "--gpus", "2")

    assert options.preset == PRESETS["resenc-m"]
    assert (options.epochs, options.device, options.gpus) == (100, device, 2)


def test_gpus_are_counted_where_they_train(tmp_path):
    write_data(tmp_path)
    wanted = options(tmp_path, device="cuda", gpus=2, preset=replace(PRESET, batch_size=2))

    index.index_data(wanted, executor=_GpuWorkers())

    with pytest.raises(UsageError, match="--gpus 3: 2 can be used"):
        index.index_data(
            replace(wanted, gpus=3, work_dir=tmp_path / "other"), executor=_GpuWorkers()
        )


@pytest.mark.parametrize("command", ["train", "retrain"])
def test_deterministic_training_is_told_to_cublas_before_a_network_computes(
    asked, monkeypatch, command
):
    """It looks once in a process, and SAM2 may be its first user."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    asked(command)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    asked(command, "--deterministic")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
