"""A call that writes may fail at any place: what is on disk stays whole, and a rerun completes it.

See ``fault_runs.py``. In CI some calls of each command fail; otherwise all calls of a run, or, of
``retrain``, one of each place.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Build what makes calls fail."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    source = str(TESTS / "faults.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), source, "-ldl"], check=True)
    return path


def disturbed(library: Path, command: str, scratch: Path, *, step: str) -> dict:
    """Run a command with failing calls, and return what came of it."""
    result = scratch / "result.json"
    program = [sys.executable, str(TESTS / "fault_runs.py"), command, str(scratch / "runs")]
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
    }
    done = subprocess.run(
        [*program, str(result), step],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(result.read_text())


@pytest.mark.parametrize(
    ("command", "step"),
    [
        *(("predict", "40"), ("pseudo-label", "20"), ("retrain", "250")),
        *(("predict", "1"), ("pseudo-label", "1"), ("retrain", "sites")),
    ],
)
def test_no_failing_write_leaves_a_partial_file_or_costs_the_result(
    library, command, step, tmp_path
):
    found = disturbed(library, command, tmp_path, step=step)

    least = found["places"] if step == "sites" else found["calls"] // int(step)
    assert found["calls_failed"] >= least > 0
    assert found["losses"] == []
