"""Patches loaded by nnU-Net's worker processes, as on a GPU."""

import os
import time

import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from tiny_training import write_dataset

from sslmedsam2.nnunet.trainer import LiverTrainer, TrainingSettings
from sslmedsam2.nnunet.training import _make_trainer, set_environment

N_LOADERS = 2
SETTINGS = TrainingSettings(epochs=1, iterations_per_epoch=1, validation_iterations=1)

pytestmark = pytest.mark.usefixtures("no_progress_png")


class _FirstDraw(BasicTransform):
    """Replaces a patch by its process and the first number that torch drew in it."""

    drawn: dict[int, float] = {}  # noqa: RUF012

    def apply(self, data_dict, **_):
        process = os.getpid()
        draw = self.drawn.setdefault(process, torch.rand(()).item())
        data_dict["image"] = torch.tensor([process, draw]).view(1, 1, 1, 2)
        return data_dict


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("loaders"))


def _first_draws(work_dir, *, epoch, seed=1):
    """Return what torch draws first in each loader process of a training that begins there."""
    set_environment(work_dir, device="cpu", settings=SETTINGS)
    os.environ["nnUNet_n_proc_DA"] = str(N_LOADERS)  # noqa: SIM112
    trainer = _make_trainer(work_dir, fold=0, device="cpu")
    trainer.use(TrainingSettings(seed=seed))
    trainer.initialize()
    trainer.current_epoch = epoch
    training, validation = trainer.get_dataloaders()
    first = {}
    give_up = time.monotonic() + 60
    try:
        while len(first) < N_LOADERS:
            assert time.monotonic() < give_up, f"only {len(first)} processes gave patches"
            process, draw = next(training)["data"][0].flatten().tolist()
            first[process] = draw
    finally:
        training._finish()
        validation._finish()
    return set(first.values())


# nnU-Net's thread that collects patches may still wait for one when its processes end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_each_loader_process_draws_numbers_of_its_own(work_dir, monkeypatch):
    # nnU-Net takes no more processes than there are cores.
    monkeypatch.setattr(os, "cpu_count", lambda: N_LOADERS)
    monkeypatch.setattr(LiverTrainer, "get_training_transforms", lambda *_, **__: _FirstDraw())

    first = _first_draws(work_dir, epoch=0)
    assert len(first) == N_LOADERS, "several processes draw the same"
    # A resumed training must not begin the same numbers again.
    assert first.isdisjoint(_first_draws(work_dir, epoch=1))
    assert first.isdisjoint(_first_draws(work_dir, epoch=0, seed=2))
    assert first == _first_draws(work_dir, epoch=0)
