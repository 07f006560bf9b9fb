"""Some hundred mutated inputs of each format find no fault; a fault that is there is found."""

import os
import signal
from pathlib import Path

import pytest

from fuzz import campaign
from fuzz.campaign import input_of, run
from fuzz.formats import FORMATS, Format

INPUTS = {"dicom": 20, "plans": 40, "checkpoint": 40, "engine": 3, "resume": 4, "page": 4}


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_inputs_are_read_or_refused(name):
    found = run(name, inputs=INPUTS.get(name, 100), seed=11)

    assert found.inputs == INPUTS.get(name, 100)
    assert found.findings == {}


def test_an_input_is_the_same_whenever_it_is_made():
    for chosen in FORMATS.values():
        assert input_of(chosen, 3, 5) == input_of(chosen, 3, 5)


def spinning(_folder: Path) -> None:
    while True:
        pass


def hungry(_folder: Path) -> None:
    bytearray(1000 * 2**20)


def dying(folder: Path) -> None:
    if (folder / "x").read_bytes() == b"3":
        os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("read", "said"),
    [(spinning, "more than"), (hungry, "MemoryError"), (dying, "crash by signal 11")],
)
def test_endless_loops_memory_and_crashes_are_found_and_the_rest_is_read(monkeypatch, read, said):
    faulty = Format(
        "faulty",
        seeds=lambda: ({"x": b""},),
        mutate=lambda _seed, random: {"x": b"%d" % random.randrange(4)},
        read=read,
    )
    monkeypatch.setitem(FORMATS, "faulty", faulty)
    monkeypatch.setattr(campaign, "SECONDS", 0.1 if read is spinning else 2.0)

    found = run("faulty", inputs=12, seed=0)

    assert found.inputs == 12
    [finding] = found.findings.values()
    assert said in finding.what
