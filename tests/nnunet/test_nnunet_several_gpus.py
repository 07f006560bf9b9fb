"""One fold trained in several processes, on a CPU instead of several GPUs."""

from dataclasses import replace

import pytest
import torch
from gloo_training import run_rank_on_a_cpu
from tiny_training import PRESET, read_curves, write_labelled_cases

from sslmedsam2.errors import SslMedSam2Error, UsageError
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.nnunet.dataset import (
    UnlabelledCase,
    alternating_splits,
    build_dataset,
    case_key,
    write_splits,
    write_unlabelled,
)
from sslmedsam2.nnunet.online import OnlineSettings
from sslmedsam2.nnunet.trainer import TrainingSettings
from sslmedsam2.nnunet.training import (
    FoldTraining,
    check_gpus,
    preprocessed_dir,
    train_on_several_gpus,
    trained_model_dir,
)

SETTINGS = TrainingSettings(epochs=2, iterations_per_epoch=2, validation_iterations=1)


@pytest.fixture
def work_dir(tmp_path):
    """Preprocessed data of which a batch holds three patches."""
    images = write_labelled_cases(tmp_path / "data", count=2)
    folder = tmp_path / "work"
    preset = replace(PRESET, batch_size=3)
    dataset = build_dataset(images, preprocessed_dir=preprocessed_dir(folder), preset=preset)
    write_splits(dataset, alternating_splits(images, n_folds=2))
    return folder


def _train(training, notes, rendezvous="rendezvous"):
    args = (training, notes / rendezvous, notes)
    torch.multiprocessing.spawn(run_rank_on_a_cpu, args=args, nprocs=2)


@pytest.mark.slow
def test_processes_share_batch_and_gradients_and_write_one_checkpoint(work_dir, tmp_path):
    _train(FoldTraining(work_dir, 0, SETTINGS, "cpu", gpus=2), tmp_path)

    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert [len(batch) for batch in first["drawn"]] == [2] * 4
    assert [len(batch) for batch in second["drawn"]] == [1] * 4
    for one, other in zip(first["drawn"], second["drawn"], strict=True):
        assert not any(torch.equal(patch, other[0]) for patch in one)
    fold = trained_model_dir(work_dir) / "fold_0"
    written = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    for name, weights in written["training_weights"].items():
        assert torch.equal(weights, first["weights"][name]), name
        assert torch.equal(weights, second["weights"][name]), name
    assert written["current_epoch"] == 2
    assert [epoch for epoch, _ in read_curves(fold)["loss/train"]] == [0, 1]

    # A checkpoint of one process, or of several, warm-starts several.
    short, start = replace(SETTINGS, epochs=1), fold / "checkpoint_final.pth"
    again = FoldTraining(work_dir, 1, short, "cpu", warm_start=start, gpus=2)
    _train(again, tmp_path, "another_rendezvous")
    other_fold = fold.with_name("fold_1") / "checkpoint_final.pth"
    warm = torch.load(other_fold, weights_only=False)["network_weights"]
    for name, weights in written["network_weights"].items():
        torch.testing.assert_close(warm[name], weights, atol=0.01, rtol=0)


@pytest.mark.slow
def test_processes_share_gradients_of_unlabelled_patches(tmp_path):
    images = write_labelled_cases(tmp_path / "data", count=4)
    folder = tmp_path / "work"
    preset = replace(PRESET, batch_size=2)
    dataset = build_dataset(images, preprocessed_dir=preprocessed_dir(folder), preset=preset)
    keys = [case_key(image) for image in images]
    write_splits(dataset, [{"train": keys[:3], "val": keys[3:]}])
    write_unlabelled(dataset, {key: UnlabelledCase(0.8) for key in keys[1:3]})
    online = OnlineSettings(warm_up=0.25, ramp=0.0, sure_above=0.5)
    settings = replace(SETTINGS, seed=1, online=online)
    _train(FoldTraining(folder, 0, settings, "cpu", gpus=2), tmp_path)

    first, second = (torch.load(tmp_path / f"{rank}.pt")["weights"] for rank in (0, 1))
    assert not torch.equal(*(torch.load(tmp_path / f"{rank}.pt")["drawn"][0] for rank in (0, 1)))
    for name, weights in first.items():
        assert torch.equal(weights, second[name]), name


@pytest.mark.slow
def test_process_that_fails_ends_the_others_and_is_named(tmp_path):
    with pytest.raises(SslMedSam2Error, match=r"fold 0 on 2 GPUs: .*nnUNetPlans\.json"):
        train_on_several_gpus(
            FoldTraining(tmp_path / "nothing", 0, SETTINGS, "cpu", gpus=2), StopRequest()
        )


@pytest.mark.parametrize(
    ("gpus", "device", "batch", "reason"),
    [
        (2, "cpu", 2, "0 can be used"),
        (4, "cuda", 4, "3 can be used"),
        (3, "cuda", 2, "the batch of the preset is 2"),
    ],
)
def test_gpus_that_cannot_share_are_refused(monkeypatch, gpus, device, batch, reason):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    with pytest.raises(UsageError, match=f"--gpus {gpus}: {reason}"):
        check_gpus(gpus, device=device, batch_size=batch)


@pytest.mark.parametrize(("gpus", "device"), [(1, "cpu"), (1, "cuda"), (3, "cuda")])
def test_gpus_that_can_share_are_taken(monkeypatch, gpus, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    check_gpus(gpus, device=device, batch_size=4)
