"""The kit for a GPU machine, packed from a small training and run on the CPU."""

import argparse
import csv
import itertools
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
from tiny_training import PRESET, write_labelled_cases

from sslmedsam2.nnunet.dataset import build_dataset
from sslmedsam2.nnunet.trainer import TrainingSettings
from sslmedsam2.nnunet.training import preprocessed_dir, train_fold
from sslmedsam2.weights.checkpoint import read_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import gpu_kit

pytestmark = pytest.mark.usefixtures("no_progress_png", "one_thread")


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """Train two tiny epochs on two abdomens."""
    folder = tmp_path_factory.mktemp("training")
    images = write_labelled_cases(folder / "scans", count=2)
    build_dataset(images, preprocessed_dir=preprocessed_dir(folder / "work"), preset=PRESET)
    settings = TrainingSettings(epochs=1, iterations_per_epoch=1, validation_iterations=1)
    train_fold(folder / "work", fold="all", settings=settings, device="cpu")
    return folder / "work"


@pytest.fixture(scope="module")
def kit(work_dir, tmp_path_factory):
    """Pack it."""
    folder = tmp_path_factory.mktemp("kit")
    checkpoint = next(work_dir.rglob("checkpoint_final.pth"))
    gpu_kit.pack(argparse.Namespace(kit=folder, work_dir=work_dir, checkpoint=checkpoint))
    return folder


def test_packed_volumes_differ_by_rounding_and_labels_not_at_all(work_dir, kit, tmp_path):
    shutil.unpack_archive(kit / "data.tar.xz", tmp_path)
    originals = sorted(preprocessed_dir(work_dir).rglob("*.b2nd"))
    assert len(originals) == 4
    for path in originals:
        packed = blosc2.open(str(next(tmp_path.rglob(path.name))))[:]
        original = blosc2.open(str(path))[:]
        if path.stem.endswith("_seg"):
            np.testing.assert_array_equal(packed, original)
        else:
            assert packed.dtype == np.float16
            np.testing.assert_allclose(packed, original, rtol=2**-8 + 2**-10, atol=1e-6)


def test_the_kit_trains_on_from_its_checkpoint_until_the_time_is_over(kit, tmp_path, monkeypatch):
    # Each look at the clock takes a quarter of a second, however busy the machine is.
    looks = itertools.count()
    monkeypatch.setattr(gpu_kit, "time", SimpleNamespace(monotonic=lambda: 0.25 * next(looks)))
    options = argparse.Namespace(
        kit=kit,
        out=tmp_path,
        minutes=(gpu_kit.SECONDS_FOR_THE_END + 4) / 60,
        batch=2,
        iterations_per_epoch=1,
        contrast_probability=0.5,
        learning_rate=8e-4,
        device="cpu",
    )
    gpu_kit.train_network(options, tmp_path / "work")

    before = read_checkpoint(kit / "start.pth")["network_weights"]
    after = read_checkpoint(tmp_path / "liver.pth")["network_weights"]
    assert before.keys() == after.keys()
    assert any(not bool((before[name] == after[name]).all()) for name in before)
    with (tmp_path / "curve.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[0]["lrs"]) == 8e-4
    assert float(rows[-1]["lrs"]) < 8e-4 or len(rows) == 1
