"""The published JSON Schemas are those of the records as they are now."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "write_schemas.py"


def test_schemas_in_the_documentation_are_those_of_the_records():
    """If this fails: python scripts/write_schemas.py."""
    assert runpy.run_path(str(SCRIPT))["stale"]() == []


def test_a_schema_says_what_is_required():
    schemas = runpy.run_path(str(SCRIPT))["schemas"]()
    assert '"required"' in schemas["manifest.json"]
    assert '"image_sha256"' in schemas["run_report.json"]
