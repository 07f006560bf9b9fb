"""The pictures of the guide are of the weights that ship."""

import json
from pathlib import Path

from sslmedsam2.weights.manifest import read_manifest

REPOSITORY = Path(__file__).parents[1]
IMAGES = REPOSITORY / "docs" / "images"


def test_the_pictures_of_results_are_of_the_shipped_weights():
    made = json.loads((IMAGES / "pictures.json").read_text(encoding="utf-8"))["checkpoints"]
    entry = read_manifest(REPOSITORY / "weights" / "manifest.json").entry("liver")
    assert made == entry.checkpoints, "the weights are others: run python scripts/make_pictures.py"
    for name in ("report_table.png", "report_case.png", "result.png"):
        assert (IMAGES / name).is_file()
