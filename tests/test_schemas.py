"""The published JSON Schemas are those of the records as they are now."""

import runpy
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "write_schemas.py"


@dataclass(frozen=True)
class Leaf:
    """A part of a record."""

    size: float


@dataclass(frozen=True)
class Tree:
    """A record."""

    name: str
    leaves: tuple[Leaf, ...]
    note: str = ""


def test_schemas_in_the_documentation_are_those_of_the_records():
    """If this fails: python scripts/write_schemas.py."""
    assert runpy.run_path(str(SCRIPT))["stale"]() == []


def test_a_schema_says_what_is_required():
    schemas = runpy.run_path(str(SCRIPT))["schemas"]()
    assert '"required"' in schemas["manifest.json"]
    assert '"image_sha256"' in schemas["run_report.json"]


def test_a_schema_names_the_fields_and_which_are_required():
    schema = runpy.run_path(str(SCRIPT))["schema_of"](Tree, title="A tree")
    assert schema["title"] == "A tree"
    assert schema["$defs"]["Tree"]["required"] == ["name", "leaves"]
    assert schema["$defs"]["Leaf"]["properties"]["size"] == {"type": "number"}
