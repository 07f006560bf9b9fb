"""Write the JSON Schema of every published file to ``docs/schemas``; ``--check`` only compares."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from sslmedsam2.inference.confidence import Calibration as DiceCalibration
from sslmedsam2.pseudo_label.records import CalibrationRun, PseudoLabelRecord
from sslmedsam2.reporting.run_report import RunReport
from sslmedsam2.retrain.index import Index
from sslmedsam2.retrain.select import Selection
from sslmedsam2.retrain.state import RelabelRecord, RetrainOptions
from sslmedsam2.retrain.stopping import RoundFigures
from sslmedsam2.retrain.train_round import RoundScore
from sslmedsam2.train.fold_scores import FoldScore
from sslmedsam2.weights.manifest import StoredManifest

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
PUBLISHED = {
    "run_report": (RunReport, "run_report.json of predict"),
    "pseudo_label": (PseudoLabelRecord, "<SEQ>_pseudo.json of pseudo-label"),
    "calibration": (CalibrationRun, "calibration.json of pseudo-label"),
    "retrain_options": (RetrainOptions, "options.json of retrain"),
    "retrain_index": (Index, "index.json of retrain"),
    "retrain_selection": (Selection, "round_N/selection.json of retrain"),
    "cross_validation": (tuple[FoldScore, ...], "cross_validation.json of train"),
    "retrain_validation": (tuple[RoundScore, ...], "round_N/validation.json of retrain"),
    "retrain_relabelled": (RelabelRecord, "round_N/relabelled/.../<SEQ>_pseudo.json of retrain"),
    "retrain_outcome": (RoundFigures, "round_N/outcome.json of retrain"),
    "confidence": (DiceCalibration, "confidence.json of a model folder"),
    "manifest": (StoredManifest, "manifest.json of a folder of weights"),
}


def schema_of(kind: Any, *, title: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a record, without the text of docstrings."""
    schema = _without_descriptions(msgspec.json.schema(kind, schema_hook=_schema_hook))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}


def _schema_hook(kind: type) -> dict[str, Any]:
    return {"type": "string" if kind is Path else "object"}


def _without_descriptions(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            name: _without_descriptions(value)
            for name, value in schema.items()
            if name != "description" or not isinstance(value, str)
        }
    return [_without_descriptions(one) for one in schema] if isinstance(schema, list) else schema


def schemas() -> dict[str, str]:
    """Return the text of each schema by the name of its file."""
    return {
        f"{name}.json": json.dumps(schema_of(kind, title=title), indent=1) + "\n"
        for name, (kind, title) in PUBLISHED.items()
    }


def stale() -> list[str]:
    """Return the names of the files that are missing, changed or no longer published."""
    wanted = schemas()
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )


def main() -> int:
    """Write or compare; 1 if something was stale and not written."""
    if "--check" in sys.argv[1:]:
        names = stale()
        if names:
            sys.stderr.write(f"stale: {', '.join(names)}; run python scripts/write_schemas.py\n")
        return int(bool(names))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale():
        (FOLDER / name).unlink(missing_ok=True)
    for name, text in schemas().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
