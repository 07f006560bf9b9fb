"""What tests share: a log that no earlier test has redirected, and a small model."""

import logging
import os

import pytest

# Threads of networks as small as these only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Files outlive the process that wrote them; on a busy disk, waiting for it takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _restore_logging():
    """Undo what the command line does to the log of its process."""
    root, project = logging.getLogger(), logging.getLogger("sslmedsam2")
    handlers, levels = root.handlers[:], (root.level, project.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    project.setLevel(levels[1])
    logging.captureWarnings(False)


@pytest.fixture(scope="module", autouse=True)
def _restore_nnunet_environment():
    """Keep nnU-Net's settings, which live in the environment, from reaching other modules."""

    def settings():
        return {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}

    before = settings()
    yield
    for name in settings():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def no_progress_png():
    """Keep nnU-Net from drawing its curves, which takes longer than an epoch of these tests."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def bright_model(tmp_path_factory):
    """Make a model folder whose network calls liver what is bright."""
    from tiny_models import bright_tissue_model

    return bright_tissue_model(tmp_path_factory.mktemp("weights") / "bright")


@pytest.fixture
def workplace(tmp_path, bright_model):
    """An empty input folder and a small model, ready to predict."""
    from predict_samples import Workplace

    return Workplace(tmp_path, bright_model)


@pytest.fixture(scope="session")
def small_sam2(tmp_path_factory):
    """Make the file of a small SAM2 of random weights."""
    from tiny_sam2 import write_tiny_compact

    return write_tiny_compact(tmp_path_factory.mktemp("sam2") / "small.safetensors")


@pytest.fixture(scope="module")
def one_thread():
    """Let torch use one thread: with networks this small more only wait for each other."""
    import torch

    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)
