"""Executors on plain functions: the same results anywhere, and what faults of a cluster cost.

The clusters are real: a scheduler, and workers that are processes of their own.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from square_work import SquareWork, began

from sslmedsam2.cli.cluster_option import open_executor
from sslmedsam2.errors import InputError, ModelError, OutputError, SslMedSam2Error, UsageError
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import ThisProcess

pytest.importorskip("distributed")

from sslmedsam2.execution.dask_cluster import UNITS_AT_ONCE, AddressSpec, LocalSpec, connected
from sslmedsam2.execution.dask_executor import DaskExecutor

UNITS = list(range(12))
PATIENCE_S = 300
"""As usual: on a loaded machine a lost worker takes half a minute to come back, and units that
wait for it in vain for longer than this are given up for another reason than their own."""
TESTS = Path(__file__).parents[1]
PYTHON_PATH = os.pathsep.join(map(str, (TESTS, TESTS.parent)))


@contextmanager
def local(workers, **how):
    with connected(LocalSpec(workers)) as client:
        client.wait_for_workers(workers, timeout=60)
        yield DaskExecutor(client, patience_s=PATIENCE_S, **how)


def test_workers_that_end_late_do_not_fail_a_finished_run(monkeypatch, caplog):
    from distributed import SpecCluster

    close = SpecCluster.close

    def close_late(cluster, *args):
        close(cluster, *args)
        raise asyncio.TimeoutError

    monkeypatch.setattr(SpecCluster, "close", close_late)
    with local(1) as executor:
        assert isinstance(executor, DaskExecutor)
    assert "did not confirm in time" in caplog.text


def environment():
    return os.environ.get("OMP_NUM_THREADS"), sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def environment_before():
    """What this process sets before any cluster is started: no number of threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        yield environment() if hasattr(os, "sched_getaffinity") else None


@pytest.fixture(scope="module")
def client(environment_before):  # noqa: ARG001
    with connected(LocalSpec(2)) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def two_workers(client):
    return DaskExecutor(client, patience_s=PATIENCE_S)


def results(executor, work, units=UNITS):
    with executor.open(work):
        return dict(executor.map(work, units, stop=StopRequest()))


def errors(found):
    return {unit: one for unit, one in found.items() if isinstance(one, SslMedSam2Error)}


def squares(found):
    return {unit: one.square for unit, one in found.items() if unit not in errors(found)}


def test_in_this_process_units_come_in_order(tmp_path):
    found = results(ThisProcess(), SquareWork(tmp_path))
    assert list(found) == UNITS
    assert {one.pid for one in found.values()} == {os.getpid()}


def test_without_a_cluster_nothing_of_dask_is_imported():
    code = (
        "import sys\n"
        "from sslmedsam2.cli.cluster_option import open_executor\n"
        "with open_executor('none'): pass\n"
        "assert not {'dask', 'distributed', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_workers_give_the_same_and_set_up_once_each(tmp_path, two_workers):
    found = results(two_workers, SquareWork(tmp_path, seconds=0.05))

    assert squares(found) == squares(results(ThisProcess(), SquareWork(tmp_path)))
    pids = {one.pid for one in found.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert all(one.set_ups == 1 for one in found.values())
    assert not list(tmp_path.glob(".run-*"))


def test_a_units_own_error_is_not_tried_again(tmp_path, two_workers):
    found = results(two_workers, SquareWork(tmp_path, wrong=frozenset({3})))

    error = found[3]
    assert isinstance(error, InputError)
    assert (error.kind, error.subject, error.reason) == ("odd", "number 3", "it is odd")
    assert len(began(tmp_path, 3)) == 1
    assert len(squares(found)) == len(UNITS) - 1


def test_a_chance_failure_is_tried_again(tmp_path, two_workers):
    found = results(two_workers, SquareWork(tmp_path, shaky=frozenset({5})))

    assert squares(found) == {unit: unit * unit for unit in UNITS}
    assert len(began(tmp_path, 5)) == 2


def test_what_fails_everywhere_is_named_after_a_few_tries(tmp_path, two_workers):
    missing = tmp_path / "data" / "scan.nii.gz"

    found = results(two_workers, SquareWork(tmp_path, needs=(missing,)), units=[1])

    assert list(errors(found)) == [1]
    assert found[1].subject == "number 1"
    assert str(missing) in found[1].reason


def test_an_error_of_the_set_up_is_raised_before_any_unit(tmp_path, two_workers):
    with pytest.raises(ModelError, match="there is none"):
        results(two_workers, SquareWork(tmp_path, refuses=True))


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, two_workers):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        results(two_workers, SquareWork(tmp_path / "file"))


def test_a_stop_leaves_the_units_that_have_not_begun(tmp_path, two_workers):
    stop, work = StopRequest(), SquareWork(tmp_path, seconds=0.1)
    with two_workers.open(work):
        for _ in two_workers.map(work, range(100), stop=stop):
            stop.set()
    assert len(list((tmp_path / "log").iterdir())) < 20


@pytest.mark.parametrize("why", ["stop", "command gone"])
def test_a_long_unit_ends_when_the_command_does_and_no_worker_is_lost(tmp_path, two_workers, why):
    """Before, leaving waited in the worker's event loop until the unit had ended."""
    address = two_workers._client.scheduler.address
    stop, work = StopRequest(), SquareWork(tmp_path, endless=frozenset({0}))
    with connected(AddressSpec(address)) as client:
        pids = set(client.run(os.getpid).values())
        executor = DaskExecutor(client, patience_s=PATIENCE_S)
        with executor.open(work):
            results = executor.map(work, [0, 1], stop=stop)
            assert next(results)[0] == 1
            if why == "stop":
                stop.set()
                assert list(results) == []
            asked = time.monotonic()
        assert time.monotonic() - asked < 10
        assert set(client.run(os.getpid).values()) == pids

    deadline = time.monotonic() + 30
    while not (tmp_path / "stopped_0").exists():
        assert time.monotonic() < deadline, "the unit goes on"
        time.sleep(0.05)
    found = results_of_next(two_workers, tmp_path)
    assert {one.pid for one in found.values()} <= pids


def results_of_next(executor, tmp_path):
    """Return what another command gets on the same workers."""
    return results(executor, SquareWork(tmp_path / "next", seconds=0.05))


def test_progress_counts_to_the_end(tmp_path, client):
    seen = []
    executor = DaskExecutor(client, on_progress=seen.append)
    results(executor, SquareWork(tmp_path, wrong=frozenset({2})), units=UNITS)
    assert (seen[-1].done, seen[-1].failed, seen[-1].running) == (len(UNITS) - 1, 1, 0)
    assert seen[-1].total == len(UNITS)
    assert seen[-1].seconds_left == 0
    assert all(one.running <= 2 * UNITS_AT_ONCE for one in seen)


def kill_who_began(shared_dir, unit):
    """Kill the worker that works on a unit, as soon as there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if pids := began(shared_dir, unit):
            os.kill(pids[0], signal.SIGKILL)
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_a_worker_killed_in_mid_run_changes_nothing(tmp_path):
    with local(2) as executor:
        killer = threading.Thread(target=kill_who_began, args=(tmp_path, 4))
        killer.start()
        found = results(executor, SquareWork(tmp_path, seconds=0.3))
        killer.join()

    assert squares(found) == {unit: unit * unit for unit in UNITS}
    assert sum(len(began(tmp_path, unit)) for unit in UNITS) > len(UNITS)


@pytest.mark.slow
def test_a_unit_that_takes_workers_down_is_named_and_no_other(tmp_path):
    with local(2) as executor:
        found = results(executor, SquareWork(tmp_path, deadly=frozenset({2}), seconds=0.02))

    assert set(errors(found)) == {2}, errors(found)
    assert found[2].subject == "number 2"
    assert "died" in found[2].reason
    assert len(squares(found)) == len(UNITS) - 1
    assert len(began(tmp_path, 2)) <= 6


@contextmanager
def process(*arguments, **how):
    running = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHON_PATH},
        **how,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@contextmanager
def scheduler(tmp_path):
    """Start a scheduler of its own and give its process and address."""
    file = tmp_path / "scheduler.json"
    arguments = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    with process(
        "distributed.cli.dask_scheduler", *arguments, "--scheduler-file", str(file)
    ) as running:
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text().strip():
            assert time.monotonic() < deadline, "no scheduler came up"
            time.sleep(0.1)
        yield running, json.loads(file.read_text())["address"]


@contextmanager
def worker(address, **how):
    arguments = ("--nthreads", "3", "--no-dashboard", "--host", "127.0.0.1")
    with process("distributed.cli.dask_worker", address, *arguments, **how) as running:
        yield running


@pytest.mark.slow
def test_a_worker_that_sees_another_folder_is_left_out(tmp_path, monkeypatch):
    """A relative path leads elsewhere on one worker, as a mount may on one machine."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        (folder / "out").mkdir(parents=True)
    monkeypatch.chdir(here)

    with (
        scheduler(tmp_path) as (_, address),
        worker(address, cwd=here),
        worker(address, cwd=elsewhere),
        connected(AddressSpec(address)) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        work = SquareWork(Path("out"), seconds=0.05)
        found = results(DaskExecutor(client, patience_s=PATIENCE_S), work)

    assert squares(found) == {unit: unit * unit for unit in UNITS}
    assert not list((elsewhere / "out").iterdir())


@pytest.mark.slow
def test_a_scheduler_that_goes_away_leaves_what_was_done_and_names_the_rest(tmp_path):
    found = {}
    with (
        scheduler(tmp_path) as (running, address),
        worker(address),
        connected(AddressSpec(address), connect_timeout_s=10) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        executor, work = DaskExecutor(client, patience_s=5), SquareWork(tmp_path, seconds=0.2)
        with executor.open(work):
            for unit, one in executor.map(work, UNITS, stop=StopRequest()):
                found[unit] = one
                if len(found) == 2:
                    running.kill()

    assert set(found) == set(UNITS)
    assert 2 <= len(squares(found)) < len(UNITS)
    assert all(error.subject == f"number {unit}" for unit, error in errors(found).items())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a process may not choose here")
def test_workers_share_the_processors_and_this_process_keeps_its_own(
    tmp_path, client, environment_before
):
    mine = environment_before
    results(DaskExecutor(client), SquareWork(tmp_path))
    threads = client.run(environment).values()
    share = max(1, len(mine[1]) // 2)
    assert {int(count) for count, _ in threads} <= {share, share + 1}
    assert environment() == mine


def test_an_address_where_nobody_answers_is_a_usage_error():
    with (
        pytest.raises(UsageError, match="no scheduler answers"),
        connected(AddressSpec("tcp://127.0.0.1:9"), connect_timeout_s=1),
    ):
        pass


def test_without_a_cluster_the_executor_is_this_process():
    with open_executor("none") as executor:
        assert isinstance(executor, ThisProcess)
