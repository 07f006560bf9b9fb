"""A run that is killed again and again ends with the weights of one that was left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from retrain_samples import content, options, write_data

from sslmedsam2.retrain.pipeline import retrain

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_progress_png")]

TESTS = Path(__file__).parents[1]
KILLS = [
    # (module, function, just before which call of it in that process)
    ("sslmedsam2.pseudo_label.query", "write_record", 3),
    ("sslmedsam2.retrain.select", "write_labels", 2),
    ("sslmedsam2.nnunet.dataset", "_preprocess", 4),
    # There are two steps an epoch: this is the second epoch of fold 0, then the first of fold 1.
    ("sslmedsam2.nnunet.trainer", "LiverTrainer.train_step", 4),
    ("sslmedsam2.nnunet.trainer", "LiverTrainer.train_step", 4),
    ("sslmedsam2.retrain.train_round", "write_record", 1),
    ("sslmedsam2.retrain.relabel", "write_record", 3),
    # Between the outcome of a round and the summary of all rounds: of the first, then of the last.
    ("sslmedsam2.retrain.pipeline", "write_record", 2),
    ("sslmedsam2.retrain.pipeline", "write_record", 2),
    ("sslmedsam2.retrain.pipeline", "freeze_round", 1),
]


def _killed_run(root, kill):
    command = [sys.executable, "-m", "retrain_samples", str(root), *map(str, kill)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _frozen(root):
    return content(root / "weights" / "tiny")


def test_run_that_was_killed_within_each_stage_ends_like_an_uninterrupted_one(tmp_path):
    whole, broken = (write_data(tmp_path / name) for name in ("whole", "broken"))
    assert torch.get_num_threads() == 1
    retrain(options(whole))

    for kill in KILLS:
        process = _killed_run(broken, kill)
        assert process.returncode == -signal.SIGKILL, (kill, process.stderr)
        assert not (broken / "weights").exists()
    summary = retrain(options(broken))

    assert not summary.interrupted
    assert _frozen(broken) == _frozen(whole)
    for name in ("rounds.json", "round_1/outcome.json", "round_2/outcome.json"):
        assert (broken / "work" / name).read_text() == (whole / "work" / name).read_text(), name
