"""``predict`` on a cluster of processes: the masks are those of a run without."""

import hashlib

import pytest
from dying_workers import two_workers_one_of_which_dies
from tiny_scans import abdomen

from sslmedsam2.cli.cluster_option import open_executor
from sslmedsam2.errors import ExitCode
from sslmedsam2.reporting.run_report import SeriesStatus

pytest.importorskip("distributed")

CASES = [f"Vendor-A/000{number}-A/{name}.nii.gz" for number in (1, 2, 3) for name in ("GED4", "T1")]


def masks(output):
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*.nii.gz")
    }


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_masks_are_the_same_to_the_bit_whatever_the_number_of_workers(workplace, workers):
    for seed, case in enumerate(CASES):
        workplace.add(case, array_zyx=abdomen(seed=seed)[0])
    (workplace.input / "Vendor-A/0004-A").mkdir()
    (workplace.input / "Vendor-A/0004-A/GED4.nii.gz").write_bytes(b"no image")
    alone = workplace.run(previews=True)
    output = workplace.root / "cluster"

    with open_executor(f"local:{workers}") as executor:
        together = workplace.run(output_dir=output, previews=True, executor=executor)
        again = workplace.run(output_dir=output, previews=True, executor=executor, resume=True)

    assert masks(output) == masks(workplace.output)
    assert len(masks(output)) == len(CASES)
    assert together.exit_code == alone.exit_code == ExitCode.SOME_CASES_FAILED
    assert without_times(together.report) == without_times(alone.report)
    assert again.report.counts[SeriesStatus.SKIPPED_RESUME] == len(CASES)
    assert not list(output.glob(".run-*"))


@pytest.mark.slow
def test_a_worker_killed_in_mid_run_changes_no_mask(workplace):
    for seed, case in enumerate(CASES):
        workplace.add(case, array_zyx=abdomen(seed=seed)[0])
    alone = workplace.run()
    output = workplace.root / "cluster"

    with two_workers_one_of_which_dies(once=lambda: masks(output)) as (executor, died):
        together = workplace.run(output_dir=output, executor=executor)
        assert died.wait(0)

    assert masks(output) == masks(workplace.output)
    assert together.exit_code == ExitCode.OK
    assert without_times(together.report) == without_times(alone.report)


def without_times(report):
    series = sorted(report.series, key=lambda result: result.key)
    return (
        report.backend,
        report.device,
        [(one.key, one.status, one.liver_volume_ml, one.warnings, one.error) for one in series],
    )
