"""What every test gets: a log that no earlier test has redirected."""

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
