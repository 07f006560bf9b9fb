from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from sslmedsam2.reporting.plain_records import record_from_plain


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
    age: int = field(init=False, default=7)


def tree(**changes):
    return {"name": "oak", "leaves": [{"size": 2, "place": [3, 4], "colour": "blue"}]} | changes


def test_a_record_is_made_with_all_that_it_holds():
    made = record_from_plain(
        Tree, tree(height=2.5, seconds={"a": 1}, options={"b": [None]}, alive=False), where="tree"
    )
    assert made == Tree(
        "oak", (Leaf(2.0, (3, 4), Colour.BLUE),), 2.5, {"a": 1}, {"b": [None]}, alive=False
    )


def test_what_may_be_missing_takes_its_default():
    assert record_from_plain(Tree, {"name": "oak", "leaves": []}, where="tree") == Tree("oak", ())
    assert record_from_plain(Tree, tree(height=None), where="tree").height is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "tree is not an object"),
        (None, "tree is not an object"),
        ({"name": "oak"}, "tree lacks leaves"),
        (tree(age=3), "tree has no field age"),
        (tree(fruit=3), "tree has no field fruit"),
        (tree(name=None), "tree.name is not a text"),
        (tree(name=3), "tree.name is not a text"),
        (tree(height="tall"), "tree.height is not a number"),
        (tree(height=True), "tree.height is not a number"),
        (tree(alive=1), "tree.alive is not true or false"),
        (tree(seconds=[]), "tree.seconds is not an object"),
        (tree(seconds={"a": "b"}), "tree.seconds.a is not a number"),
        (tree(leaves={}), "tree.leaves is not a list"),
        (tree(leaves="ab"), "tree.leaves is not a list"),
        (tree(leaves=[3]), r"tree.leaves\[0\] is not an object"),
        (tree(leaves=[{"size": 1, "place": [1]}]), r"place has 1 entries, not 2"),
        (tree(leaves=[{"size": 1, "place": [1, 2.5]}]), r"place\[1\] is not a whole number"),
        (tree(leaves=[{"size": 1, "place": [1, True]}]), r"place\[1\] is not a whole number"),
        (tree(leaves=[{"size": 1, "place": [1, 2], "colour": "x"}]), "is none of red, blue"),
        (tree(leaves=[{"size": 1, "place": [1, 2], "colour": []}]), "is none of red, blue"),
    ],
)
def test_what_does_not_fit_is_named(value, words):
    with pytest.raises(ValueError, match=words):
        record_from_plain(Tree, value, where="tree")
