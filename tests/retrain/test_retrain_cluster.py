"""``retrain`` on a cluster of processes: the weights are those of a run without."""

import hashlib

import pytest
import torch
from dying_workers import two_workers_one_of_which_dies
from retrain_samples import content, options, read, write_data

from sslmedsam2.cli.cluster_option import open_executor
from sslmedsam2.retrain.pipeline import retrain
from sslmedsam2.retrain.stopping import StoppingRule

pytest.importorskip("distributed")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_progress_png")]


def networks(work_dir):
    """Return the hash of the weights of each fold."""
    found = {}
    for path in sorted(work_dir.rglob("checkpoint_final.pth")):
        weights = torch.load(path, map_location="cpu", weights_only=False)["network_weights"]
        digest = hashlib.sha256()
        for name, tensor in sorted(weights.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        found[path.parent.relative_to(work_dir).as_posix()] = digest.hexdigest()
    return found


def masks(work_dir):
    return {
        name: value
        for name, value in content(work_dir / "round_1" / "relabelled").items()
        if name.endswith(".nii.gz")
    }


def scores(work_dir):
    # The hashes of checkpoints differ, because nnU-Net logs times in them.
    found = read(work_dir / "round_1" / "validation.json")
    return [{**score, "checkpoint_sha256": None} for score in found]


def test_folds_and_new_masks_are_the_same_to_the_bit(tmp_path):
    write_data(tmp_path)
    one_round = {"rule": StoppingRule(most_rounds=1, fixed=True), "weights_dir": None}
    retrain(options(tmp_path, **one_round))
    cluster_dir = tmp_path / "cluster"

    with open_executor("local:2") as executor:
        summary = retrain(options(tmp_path, work_dir=cluster_dir, **one_round), executor=executor)

    assert len(summary.rounds) == 1
    assert networks(cluster_dir) == networks(tmp_path / "work")
    assert len(networks(cluster_dir)) == 2
    assert masks(cluster_dir) == masks(tmp_path / "work")
    assert scores(cluster_dir) == scores(tmp_path / "work")
    assert read(cluster_dir / "round_1" / "outcome.json") == read(
        tmp_path / "work" / "round_1" / "outcome.json"
    )


def test_a_worker_killed_while_folds_train_changes_no_weight(tmp_path):
    write_data(tmp_path)
    one_round = {"rule": StoppingRule(most_rounds=1, fixed=True), "weights_dir": None}
    retrain(options(tmp_path, **one_round))
    cluster_dir = tmp_path / "cluster"

    def both_train():
        return len(list(cluster_dir.glob("round_1/results/*/*/fold_*/training_log*"))) == 2

    with two_workers_one_of_which_dies(once=both_train) as (executor, died):
        retrain(options(tmp_path, work_dir=cluster_dir, **one_round), executor=executor)
        assert died.wait(0)

    assert networks(cluster_dir) == networks(tmp_path / "work")
    assert masks(cluster_dir) == masks(tmp_path / "work")
