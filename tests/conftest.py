"""What tests share: a log that no earlier test has redirected, and a small model."""

import logging

import pytest


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


@pytest.fixture(scope="session")
def bright_model(tmp_path_factory):
    """Make a model folder whose network calls liver what is bright."""
    from tiny_models import bright_tissue_model

    return bright_tissue_model(tmp_path_factory.mktemp("weights") / "bright")
