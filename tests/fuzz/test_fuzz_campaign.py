"""Some hundred mutated inputs of each format find no fault; a fault that is there is found."""

import multiprocessing
import os
import signal
from pathlib import Path
from unittest import mock

import pytest

from fuzz import campaign
from fuzz.campaign import input_of, run
from fuzz.formats import FORMATS, Format

# A process for each input; CI runs it by its name.
pytestmark = pytest.mark.slow

INPUTS = {"dicom": 20, "plans": 40, "checkpoint": 40, "engine": 3, "resume": 4, "page": 4}
PATIENCE_SECONDS = 300


@pytest.fixture(scope="module")
def run_apart():
    """Run a campaign in a fresh process: it forks, which no process with other threads may do."""
    with (
        mock.patch.dict(os.environ, OMP_NUM_THREADS="1"),
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        yield lambda function, *args: pool.apply_async(function, args).get(PATIENCE_SECONDS)


def campaign_of(name):
    return run(name, inputs=INPUTS.get(name, 100), seed=11)


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_inputs_are_read_or_refused(run_apart, name):
    found = run_apart(campaign_of, name)

    assert found.inputs == INPUTS.get(name, 100)
    assert found.findings == {}


def formats_of_inputs_that_differ():
    return [
        name for name, chosen in FORMATS.items() if input_of(chosen, 3, 5) != input_of(chosen, 3, 5)
    ]


def test_an_input_is_the_same_whenever_it_is_made(run_apart):
    assert run_apart(formats_of_inputs_that_differ) == []


def spinning(_folder: Path) -> None:
    while True:
        pass


def hungry(_folder: Path) -> None:
    bytearray(1000 * 2**20)


def dying(folder: Path) -> None:
    if (folder / "x").read_bytes() == b"3":
        os.kill(os.getpid(), signal.SIGSEGV)


def campaign_of_a_faulty_reader(read):
    faulty = Format(
        "faulty",
        seeds=lambda: ({"x": b""},),
        mutate=lambda _seed, random: {"x": b"%d" % random.randrange(4)},
        read=read,
    )
    with (
        mock.patch.dict(FORMATS, faulty=faulty),
        mock.patch.object(campaign, "SECONDS", 0.1 if read is spinning else 2.0),
    ):
        return run("faulty", inputs=12, seed=0)


@pytest.mark.parametrize(
    ("read", "said"),
    [(spinning, "more than"), (hungry, "MemoryError"), (dying, "crash by signal 11")],
)
def test_endless_loops_memory_and_crashes_are_found_and_the_rest_is_read(run_apart, read, said):
    found = run_apart(campaign_of_a_faulty_reader, read)

    assert found.inputs == 12
    [finding] = found.findings.values()
    assert said in finding.what
