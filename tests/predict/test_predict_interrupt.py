"""SIGTERM and Ctrl-C: the running write is finished, the record saved, the rest resumable."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from predict_samples import assert_valid_mask
from tiny_models import bright_tissue_model

from sslmedsam2.errors import ExitCode, InputError
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.reporting.run_report import SeriesStatus, load_report
from sslmedsam2.submission.package import plan_package

REPOSITORY = Path(__file__).parents[2]
N_CASES = 24


def done_so_far(workplace):
    try:
        return len(load_report(workplace.output / "run_report.json").series)
    except InputError:
        return 0


def assert_whole(workplace, report):
    """Check that there is a valid mask for each result, and nothing else."""
    assert workplace.written() == {
        "liver_volumes.csv",
        "run_report.json",
        *(result.output_path for result in report.series),
    }
    for result in report.series:
        assert_valid_mask(workplace.mask_of(result), workplace.input / result.input_path)


@pytest.mark.slow
def test_sigterm_half_way_leaves_a_report_that_resume_completes(workplace):
    for number in range(N_CASES):
        workplace.add(f"{number:04}-A/GED4.nii.gz")
    options = {"model_dir": workplace.model, "device": "cpu", "mirror": False, "previews": False}
    command = [
        sys.executable, str(REPOSITORY / "entrypoint.py"), "predict",
        "--input", str(workplace.input), "--output", str(workplace.output),
        "--model", str(workplace.model), "--device", "cpu", "--no-mirror", "--no-previews",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    give_up = time.monotonic() + 120
    while done_so_far(workplace) < 2 and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == ExitCode.INTERRUPTED, output
    report = load_report(workplace.output / "run_report.json")
    assert report.interrupted
    assert report.exit_code == ExitCode.INTERRUPTED
    assert report.finished is not None
    assert 2 <= len(report.series) < N_CASES
    assert_whole(workplace, report)

    resumed = workplace.run(resume=True, **options)

    assert resumed.exit_code == ExitCode.OK
    assert not resumed.report.interrupted
    assert len(resumed.report.series) == N_CASES
    assert resumed.report.counts["skipped_resume"] == len(report.series)
    assert_whole(workplace, resumed.report)


class Interrupter:
    """Sends this process a signal, once or more, when the first result comes."""

    def __init__(self, number, *, times=1):
        self.number = number
        self.left = times

    def __call__(self, _result, _done, _total):
        while self.left:
            self.left -= 1
            signal.raise_signal(self.number)


def run_interrupted(workplace, interrupter, **more):
    for number in range(6):
        workplace.add(f"{number:04}-A/GED4.nii.gz")
    options = PredictOptions(
        workplace.input,
        workplace.output,
        model_dir=workplace.model,
        device="cpu",
        mirror=False,
        previews=False,
        **more,
    )
    return predict(options, on_result=interrupter)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_after_the_current_write_and_resume_completes(workplace, number):
    former = signal.getsignal(number)

    report = run_interrupted(workplace, Interrupter(number))

    assert report.interrupted
    assert report.exit_code == ExitCode.INTERRUPTED
    assert report.finished is not None
    assert 1 <= len(report.series) < 6
    assert all(result.status is SeriesStatus.OK for result in report.series)
    assert_whole(workplace, report)
    assert signal.getsignal(number) is former

    resumed = workplace.run(resume=True)

    assert resumed.exit_code == ExitCode.OK
    assert not resumed.report.interrupted
    assert len(resumed.report.series) == 6
    assert resumed.report.counts["skipped_resume"] == len(report.series)
    assert_whole(workplace, resumed.report)


def test_guesses_that_an_interrupted_resumption_did_not_reach_are_no_masks_of_the_run(
    workplace, tmp_path
):
    hopeless = bright_tissue_model(tmp_path / "hopeless", threshold=50.0)
    for number in range(6):
        workplace.add(f"{number:04}-A/GED4.nii.gz")
    guessed = workplace.run(model_dir=hopeless, on_failure="fallback")
    assert all(one.status is SeriesStatus.FALLBACK for one in guessed.report.series)

    report = run_interrupted(workplace, Interrupter(signal.SIGINT), resume=True)

    assert 1 <= len(report.series) < 6
    assert all(result.status is SeriesStatus.OK for result in report.series)
    assert [name for name, _ in plan_package(workplace.output).masks] == [
        result.output_path for result in report.series
    ]


def test_a_second_signal_ends_at_once(workplace):
    # A shell's background job inherits that SIGINT is ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_interrupted(workplace, Interrupter(signal.SIGINT, times=2))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert load_report(workplace.output / "run_report.json").finished is None


def test_outside_the_main_thread_a_run_works_without_signals(workplace):
    workplace.add("0001-A/GED4.nii.gz")
    ended = []

    thread = threading.Thread(target=lambda: ended.append(workplace.run()))
    thread.start()
    thread.join()

    assert ended[0].exit_code == ExitCode.OK
