"""``plan-cluster``: the arithmetic, and that its costs are the measured ones."""

import json
import statistics
from pathlib import Path

import pytest
from retrain_samples import write_data

from sslmedsam2.cli.main import main
from sslmedsam2.errors import UsageError
from sslmedsam2.retrain.estimate import UnitCosts, count_volumes, plan_cluster, read_costs

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SIMPLE = UnitCosts(
    predict_s=10, label_s=5, encode_s=0, iteration_s=1, volume_mb=10, checkpoint_mb=5
)


def test_stages_follow_each_other_and_units_are_shared_out():
    plan = plan_cluster(5, 8, folds=2, epochs=10, iterations_per_epoch=10, rounds=2, costs=SIMPLE)
    # 5 s a support and query; training 100 s a fold; 2.5 volumes scored a fold; 15 s to relabel.
    one_round = 2 * 100 + 2 * 25 + 8 * 15
    assert plan.worker_hours == pytest.approx((5 * 5 + 8 * 5 + 2 * one_round) / 3600)
    assert plan.wall_hours(1) == pytest.approx(plan.worker_hours)
    assert plan.wall_hours(4) == pytest.approx((2 * 5 + 2 * 5 + 2 * (100 + 25 + 2 * 15)) / 3600)
    # More workers than units are of no use.
    assert plan.wall_hours(64) == plan.wall_hours(8)
    assert plan.disk_gb == pytest.approx(2 * (13 * 10 + 2 * 5) / 1000)


def test_faster_workers_take_less():
    slow, fast = (plan_cluster(5, 20, speedup=speedup) for speedup in (1, 4))
    assert slow.wall_hours(8) == pytest.approx(4 * fast.wall_hours(8))


def test_costs_are_those_of_the_benchmarks():
    costs = UnitCosts()
    predicted = json.loads((RESULTS / "predict_vs_nnunet.json").read_text())
    labelled = json.loads((RESULTS / "fewshot.json").read_text())["retrieval"]

    assert costs.predict_s == pytest.approx(
        predicted["exact_seconds"] / len(predicted["cases"]), rel=0.1
    )
    assert costs.predict_mb == predicted["exact_peak_memory_mb"]
    seconds = statistics.mean(row["seconds"] for row in labelled["rows"])
    assert costs.label_s == pytest.approx(seconds, rel=0.2)
    assert costs.label_mb == labelled["peak_memory_mb"]
    assert costs.encode_s == pytest.approx(labelled["prepare_seconds"] / 5, rel=0.1)


def test_folders_are_counted_and_numbers_taken(tmp_path):
    write_data(tmp_path)
    folders = str(tmp_path / "labelled"), str(tmp_path / "unlabelled")
    assert count_volumes(*folders) == (3, 5)
    assert count_volumes("30", "1320") == (30, 1320)


def test_costs_measured_elsewhere_replace_some(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text('{"iteration_s": 0.1, "date": "today"}')
    assert read_costs(path).iteration_s == 0.1
    assert read_costs(path).predict_s == UnitCosts().predict_s
    path.write_text("[1]")
    with pytest.raises(UsageError, match="not usable"):
        read_costs(path)


def test_the_command_prints_an_estimate(capsys):
    assert main(["plan-cluster", "--labelled", "30", "--unlabelled", "1320"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("an estimate")
    assert [line for line in printed.splitlines() if " workers: " in line]
    assert "64 workers" in printed
