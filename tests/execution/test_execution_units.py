"""The executor without a cluster, and stopping by signals."""

import os
import signal
import threading

import pytest
from square_work import SquareWork

from sslmedsam2.execution.interrupt import StopRequest, stop_on_signals
from sslmedsam2.execution.units import ThisProcess, map_units


def test_a_stop_reaches_a_unit_that_is_being_computed(tmp_path):
    stop, work = StopRequest(), SquareWork(tmp_path, endless=frozenset({1}))
    threading.Timer(0.5, stop.set).start()

    found = map_units(work, [0, 1, 2], stop=stop, executor=ThisProcess())

    assert [unit for unit, _ in found] == [0, 1]
    assert (tmp_path / "stopped_1").exists()


@pytest.fixture
def interruptible():
    """A shell's background job inherits that SIGINT is ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_ends_at_once_in_a_pipeline_that_another_one_calls():
    with stop_on_signals() as outer, stop_on_signals() as inner:
        signal.raise_signal(signal.SIGINT)
        assert inner
        assert outer
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_requests_end_with_their_context():
    with stop_on_signals() as first:
        signal.raise_signal(signal.SIGINT)
    with stop_on_signals() as second:
        assert first
        assert not second
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_forked_loader_ignores_ctrl_c_and_can_be_terminated(number, status):
    """Ctrl-C in a terminal reaches loaders too, and the epoch that they load for is to end."""
    with stop_on_signals() as stop:
        child = os.fork()
        if child == 0:
            signal.raise_signal(number)
            os._exit(0)
        _, found = os.waitpid(child, 0)
        assert not stop
    assert os.waitstatus_to_exitcode(found) == status
