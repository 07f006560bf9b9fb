"""Limits of a container, in both versions of the control groups, and living within them."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sslmedsam2.execution.host import Limits, keep_to_limits, read_limits, usable_processors

NO_LIMITS = Limits(None, None, None, None, None)


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def limits_of(tmp_path: Path, own: str, files: dict[str, str]) -> Limits:
    write_tree(tmp_path / "groups", files)
    (tmp_path / "own").write_text(own)
    return read_limits(cgroups=tmp_path / "groups", own_cgroup=tmp_path / "own")


def test_limits_of_version_2_at_the_root_of_a_container(tmp_path):
    files = {
        "cpu.max": "150000 100000",
        "memory.max": "8589934592",
        "memory.current": "1000",
        "pids.max": "128",
        "pids.current": "7",
    }
    assert limits_of(tmp_path, "0::/\n", files) == Limits(1.5, 8589934592, 1000, 128, 7)


def test_the_tightest_limit_on_the_way_to_the_root_counts(tmp_path):
    files = {
        "job/pids.max": "100",
        "job/step/pids.max": "max",
        "job/step/memory.max": "4000000",
        "job/memory.max": "5000000",
        "job/step/cpu.max": "max 100000",
    }
    found = limits_of(tmp_path, "0::/job/step\n", files)
    assert found == Limits(None, 4000000, None, 100, None)


def test_limits_of_version_1_where_the_path_is_the_hosts(tmp_path):
    own = "4:memory:/docker/abc\n8:pids:/docker/abc\n1:cpu,cpuacct:/docker/abc\n9:name=systemd:/\n"
    files = {
        "cpu/cpu.cfs_quota_us": "200000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "8589934592",
        "memory/memory.usage_in_bytes": "77",
        "pids/pids.max": "128",
        "pids/pids.current": "3",
    }
    assert limits_of(tmp_path, own, files) == Limits(2.0, 8589934592, 77, 128, 3)


def test_what_version_1_writes_for_no_limit_is_no_limit(tmp_path):
    files = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "pids/pids.max": "max",
    }
    assert limits_of(tmp_path, "4:memory:/\n8:pids:/\n1:cpu:/\n", files) == NO_LIMITS


def test_a_system_without_control_groups_has_no_limits(tmp_path):
    assert read_limits(cgroups=tmp_path, own_cgroup=tmp_path / "absent") == NO_LIMITS


@pytest.mark.parametrize(
    ("limits", "allowed", "usable"),
    [
        (NO_LIMITS, 64, 64),
        (Limits(None, None, None, 128, 5), 64, 24),
        (Limits(None, None, None, 128, 5), 2, 2),
        (Limits(1.5, None, None, 128, 5), 64, 2),
        (Limits(None, None, None, 10, 5), 64, 1),
    ],
)
def test_processors_follow_the_tightest_limit(limits, allowed, usable):
    assert usable_processors(limits, allowed=allowed) == usable


def test_threads_of_numpy_keep_to_a_limit_set_before_it_is_loaded():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one processor only")
    code = (
        "from sslmedsam2.execution import host\n"
        "host.read_limits = lambda: host.Limits(1.0, None, None, None, None)\n"
        "host.keep_to_limits()\n"
        "import numpy, os\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"


def test_without_a_limit_all_processors_stay(monkeypatch, caplog):
    monkeypatch.setattr("sslmedsam2.execution.host.read_limits", lambda: NO_LIMITS)
    before = os.sched_getaffinity(0)
    with caplog.at_level(logging.INFO, "sslmedsam2"):
        keep_to_limits()
    assert os.sched_getaffinity(0) == before
    assert caplog.messages == []


@pytest.mark.parametrize(("megabytes", "warns"), [(256, True), (2000, False)])
def test_little_memory_is_reported_before_the_system_can_end_the_run(
    monkeypatch, caplog, megabytes, warns
):
    limits = replace(NO_LIMITS, memory_bytes=megabytes * 10**6)
    monkeypatch.setattr("sslmedsam2.execution.host.read_limits", lambda: limits)
    keep_to_limits()
    assert [f"{megabytes} MB" in line for line in caplog.messages] == [True] * warns


_COUNT_PAGES = """
import resource
import numpy as np
from sslmedsam2.execution.host import keep_freed_memory

def pages_cleared():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use_and_free():
    np.empty(64 * 2**20, np.uint8).fill(1)

before = pages_cleared()
use_and_free()
first = pages_cleared() - before
keep_freed_memory()
use_and_free()
before = pages_cleared()
use_and_free()
print(first, pages_cleared() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_used_again_without_the_system_clearing_it():
    # In a process of its own, because the setting stays.
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_PAGES], capture_output=True, text=True, check=True
    )
    first, again = map(int, done.stdout.split())

    assert first > 10
    assert again < first / 5
