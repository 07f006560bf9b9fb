"""What a record is read back as, what is refused and how, and what is moved aside."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslmedsam2.errors import InputError, OutputError
from sslmedsam2.imaging.records import (
    key_of,
    move_aside,
    read_record,
    read_record_or_none,
    write_record,
)


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Leaf:
    size: float
    place: tuple[int, int]
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...]
    height: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    alive: bool = True
    image: Path | None = None


def tree(**changes):
    return {"name": "oak", "leaves": [{"size": 2, "place": [3, 4], "colour": "blue"}]} | changes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.json"


def read(path, value):
    path.write_text(json.dumps(value))
    return read_record(path, Tree)


def test_a_record_is_made_with_all_that_it_holds(path):
    given = tree(height=2.5, seconds={"a": 1}, options={"b": [None]}, alive=False, image="/a/b.nii")
    assert read(path, given) == Tree(
        "oak",
        (Leaf(2.0, (3, 4), Colour.BLUE),),
        2.5,
        {"a": 1},
        {"b": [None]},
        alive=False,
        image=Path("/a/b.nii"),
    )


def test_a_record_survives_the_round_trip(path):
    whole = Tree("oak", (Leaf(0.1 + 0.2, (3, 4)),), seconds={"a": 1e-9}, image=path)
    write_record(path, whole)
    assert read_record(path, Tree) == whole
    write_record(path, (whole, whole))
    assert read_record(path, tuple[Tree, ...]) == (whole, whole)


def test_numbers_of_numpy_and_such_that_are_not_finite_can_be_written(path):
    write_record(path, Tree("oak", (Leaf(np.float32(2), (np.int64(3), 4)),), float("inf")))
    assert read_record(path, Tree) == Tree("oak", (Leaf(2.0, (3, 4)),), None)


def test_what_json_cannot_hold_leaves_the_old_file(path):
    write_record(path, Tree("oak", ()))
    with pytest.raises(TypeError, match="object"):
        write_record(path, Tree("oak", (), options={"a": object()}))
    assert read_record(path, Tree) == Tree("oak", ())
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_names_of_files_that_are_no_utf_8_are_written_with_backslashes(path):
    name = "M\udcfcller"
    leaf = Leaf(float("nan"), (3, 4), Colour.BLUE)
    write_record(
        path, Tree(name, (leaf,), seconds={name: 1}, options={"a": [name]}, image=Path(name))
    )

    said = r"M\udcfcller"
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "name": said,
        "leaves": [{"size": None, "place": [3, 4], "colour": "blue"}],
        "height": None,
        "seconds": {said: 1},
        "options": {"a": [said]},
        "alive": True,
        "image": said,
    }


def test_what_may_be_missing_takes_its_default(path):
    assert read(path, {"name": "oak", "leaves": []}) == Tree("oak", ())
    assert read(path, tree(height=None)).height is None


def test_fields_of_a_newer_version_are_ignored(path):
    newer = tree(fruit=3, leaves=[{"size": 1, "place": [1, 2], "veins": 9}])
    assert read(path, newer) == Tree("oak", (Leaf(1.0, (1, 2)),))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "Expected 'object', got 'array'"),
        (None, "Expected 'object', got 'null'"),
        ({"name": "oak"}, "missing required field 'leaves'"),
        (tree(name=None), "name: Expected 'str', got 'null'"),
        (tree(name=3), "name: Expected 'str', got 'int'"),
        (tree(height="tall"), "height: Expected 'float"),
        (tree(height=True), "height: Expected 'float"),
        (tree(alive=1), "alive: Expected 'bool'"),
        (tree(seconds=[]), "seconds: Expected 'object'"),
        (tree(seconds={"a": "b"}), "seconds.*: Expected 'float'"),
        (tree(leaves={}), "leaves: Expected 'array'"),
        (tree(leaves="ab"), "leaves: Expected 'array'"),
        (tree(leaves=[3]), r"leaves\[0\]: Expected 'object'"),
        (tree(leaves=[{"size": 1, "place": [1]}]), r"leaves\[0\].place: .* of length 2"),
        (tree(leaves=[{"size": 1, "place": [1, 2.5]}]), r"place\[1\]: Expected 'int'"),
        (tree(leaves=[{"size": 1, "place": [1, True]}]), r"place\[1\]: Expected 'int'"),
        (tree(leaves=[{"size": 1, "place": [1, 2], "colour": "x"}]), "colour: Invalid .* 'x'"),
        (tree(leaves=[{"size": 1, "place": [1, 2], "colour": []}]), "colour: Expected 'str'"),
    ],
)
def test_what_does_not_fit_is_named(path, value, words):
    with pytest.raises(InputError, match=rf"tree\.json: it is not usable \(.*{words}") as caught:
        read(path, value)
    assert caught.value.kind == "bad_record"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"\x00"])
def test_what_is_no_json_is_one_named_error(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tree\.json: it is not usable") as caught:
        read_record(path, Tree)
    assert len(str(caught.value)) < 400


def test_a_missing_record_is_named_or_none(path, caplog):
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_record(path, Tree)
    assert caught.value.kind == "unreadable_record"
    assert read_record_or_none(path, Tree) is None
    assert not caplog.records
    path.write_text("{")
    assert read_record_or_none(path, Tree) is None
    assert "passed over" in caplog.text


def test_a_key_depends_on_content_and_not_on_order():
    assert key_of({"a": 1, "b": (2, 3)}) == key_of({"b": [2, 3], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of({"\udcfc": 1, "a": "\udcfc"}) == key_of({"a": "\udcfc", "\udcfc": 1})


def test_what_is_moved_aside_keeps_its_content_and_never_replaces_another(tmp_path, caplog):
    found = []
    for number in range(3):
        folder = tmp_path / "round_2"
        folder.mkdir()
        (folder / "mask").write_text(str(number))
        found.append(move_aside(folder, why="the labels have changed"))
        assert not folder.exists()
    assert [(one / "mask").read_text() for one in found] == ["0", "1", "2"]
    assert all(one.name.startswith("round_2.replaced-2") for one in found)
    assert caplog.text.count("the labels have changed") == 3


def test_what_cannot_be_moved_aside_is_an_output_error(tmp_path):
    with pytest.raises(OutputError):
        move_aside(tmp_path / "nothing", why="it is not there")
