"""The command ``pseudo-label``: options in, exit code and one summary line out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pseudo_label_samples import Workplace

from sslmedsam2.cli.main import main
from sslmedsam2.contract.pseudo_label_outputs import Shard
from sslmedsam2.errors import ExitCode
from sslmedsam2.pseudo_label import pipeline
from sslmedsam2.pseudo_label.pipeline import PseudoLabelSummary
from sslmedsam2.pseudo_label.records import PseudoLabelRecord

REPOSITORY = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workplace(tmp_path, small_sam2):
    """One labelled volume, two queries and a small SAM2."""
    place = Workplace(tmp_path, small_sam2)
    place.add_support("1001-A-S1")
    place.add_query("0001-A/T2.nii.gz", n_slices=3)
    place.add_query("0002-A/T2.nii.gz", n_slices=3)
    return place


@pytest.fixture
def run(workplace):
    """Run the command on the workplace."""

    def call(*args):
        return main(
            ["pseudo-label", "--support", str(workplace.support), "--query", str(workplace.query),
             "--output", str(workplace.output), "--sam2", str(workplace.sam2), "--device", "cpu",
             *args]
        )  # fmt: skip

    return call


@pytest.fixture
def instead(monkeypatch):
    """Let the command call a function that computes nothing; returns what it was called with."""

    def put(summary):
        asked = []

        def run(options, **_):
            asked.append(options)
            return summary

        monkeypatch.setattr(pipeline, "pseudo_label", run)
        return asked

    return put


def _summary(*records, **changes):
    plain = PseudoLabelSummary(
        records=records,
        kept=0,
        problems=(),
        support_errors=(),
        table_path=Path("out/pseudo_labels.csv"),
        interrupted=False,
    )
    return replace(plain, **changes)


def _record(case, **changes):
    return PseudoLabelRecord(case, "T2", None, f"{case}/T2.nii.gz", **changes)


def test_a_good_run_ends_with_0_and_says_where_to_look(run, workplace, capsys):
    assert run() == ExitCode.OK

    printed = capsys.readouterr()
    assert printed.out.strip() == f"2 reject; see {workplace.output / 'pseudo_labels.csv'}"
    assert "2/2 0002-A T2: reject, Dice about" in printed.err


def test_options_reach_the_run_also_from_a_file(run, workplace, instead, tmp_path):
    asked = instead(_summary())
    config = tmp_path / "options.json"
    config.write_text(json.dumps({"harmonise": False, "seed": 3, "sequences": ["T2", "T1"]}))

    assert run("--config", str(config), "--shard", "2/2", "--resume") == ExitCode.OK

    (options,) = asked
    assert options.settings.harmonise is False
    assert options.settings.seed == 3
    assert options.sequences == ("T1", "T2")
    assert options.resume is True
    assert options.shard == Shard(2, 2)
    assert (options.support_dir, options.query_dir) == (workplace.support, workplace.query)
    assert options.output_dir == workplace.output


def test_what_was_left_out_is_in_the_summary(run, instead, capsys):
    summary = _summary(
        _record("0002-A", verdict="reject"),
        _record("0001-A", error="0001-A/T2.nii.gz: it cannot be read"),
        support_errors=("mask_GED4.nii.gz: it cannot be read",),
    )
    instead(summary)

    assert run() == ExitCode.SOME_CASES_FAILED
    assert "1 reject, 1 failed; 1 labelled volume(s) left out; see" in capsys.readouterr().out


def test_an_interrupted_run_says_so(run, instead, capsys):
    instead(_summary(_record("0001-A", verdict="accept"), interrupted=True))

    assert run() == ExitCode.INTERRUPTED
    said = capsys.readouterr().out
    assert said.startswith("interrupted after: 1 accept; the same command with --resume continues;")


def test_a_run_that_was_interrupted_before_any_mask_says_how_to_go_on(run, instead, capsys):
    instead(_summary(interrupted=True))

    assert run() == ExitCode.INTERRUPTED
    said = capsys.readouterr().out
    assert said.startswith("interrupted before any mask; the same command with --resume continues;")


@pytest.mark.parametrize(
    "args", [["--shard", "3/2"], ["--sequences", "T9"], ["--strategy", "none"], ["--seed", "-1"]]
)
def test_wrong_options_end_with_2(run, workplace, args):
    assert run(*args) == ExitCode.USAGE
    assert not workplace.output.exists()


def test_a_checkpoint_that_is_not_there_ends_with_4(run, tmp_path):
    assert run("--sam2", str(tmp_path / "none.pt")) == ExitCode.MODEL_INVALID
