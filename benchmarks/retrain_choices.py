"""Two defaults of `retrain`, chosen by measurement.

- **Warm or from scratch.** The second round of `semi_supervised.py`, first draw, as it was, and
  again with networks that begin where those of the first round began.
- **One network or one a sequence.** Phantoms of two sequences: one network on both, against one on
  each, with as many iterations altogether; random first weights, and other bodies to test on.

    python benchmarks/retrain_choices.py --proof-dir WORK --json FILE

WORK is the `--work-dir` of a finished `semi_supervised.py`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import semi_supervised as proof
from accuracy import canonical_pair
from common import parser, report, require_real_data

SEQUENCES = ("T2", "GED4")
TRAINING, TEST = 8, 3
EPOCHS_ALTOGETHER = 10
SEED = 7100


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--proof-dir", type=Path, required=True)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = {
            "second_round": second_round(options.proof_dir, Path(scratch) / "rounds"),
            "networks": networks(Path(scratch) / "sequences"),
        }
    report(figures, options.json)


def second_round(proof_dir: Path, scratch: Path) -> dict[str, Any]:
    """Test Dice and HD of the second round's ensemble, warm and from scratch."""
    from sslmedsam2.nnunet.training import trained_model_dir
    from sslmedsam2.retrain.pipeline import retrain

    draw = proof_dir / "draw_1"
    options = proof.ssl_options(
        {name: draw / name for name in ("labelled", "unlabelled")},
        scratch,
        proof.phantom_start(proof_dir),
    )
    # Without its options: a work directory holds on to those it was begun with.
    left_out = shutil.ignore_patterns("round_2", "options.json")
    shutil.copytree(draw / "c", scratch, ignore=left_out)
    retrain(replace(options, warm_start=False))
    data = require_real_data("chaos_mr_t2")
    tests = sorted(data / path.name for path in (draw / "test").iterdir())
    folds = tuple(str(fold) for fold in range(proof.FOLDS))
    model = trained_model_dir(scratch / "round_2")
    figures = json.loads((draw / "figures.json").read_text())
    rounds = {
        "warm": figures["ssl"]["rounds"][1],
        "from_scratch": proof.predicted(model, folds, tests, scratch / "predicted"),
    }
    return {
        name: {metric: found[metric] for metric in ("dice", "hausdorff_mm")}
        for name, found in rounds.items()
    }


def networks(scratch: Path) -> dict[str, dict[str, float]]:
    """Mean Dice a sequence, of one network for both and of one for each."""
    from sslmedsam2.phantom.studies import write_training_cases

    cases = TRAINING + TEST
    write_training_cases(scratch / "data", cases=cases, labelled=cases, seed=SEED)
    bodies = sorted((scratch / "data").glob("*/*"), key=lambda path: path.name)
    for body in bodies[:TRAINING]:
        for sequence in SEQUENCES:
            for folder in ("both", sequence):
                home = scratch / folder / body.name
                home.mkdir(parents=True, exist_ok=True)
                for name in (f"{sequence}.nii.gz", f"mask_{sequence}.nii.gz"):
                    shutil.copy(body / name, home / name)

    def trained(name: str, epochs: int) -> Path:
        return proof.trained(scratch / name, scratch / f"{name}_work", epochs=epochs, start=None)

    one = trained("both", EPOCHS_ALTOGETHER)
    found: dict[str, dict[str, float]] = {"one": {}, "one_a_sequence": {}}
    for sequence in SEQUENCES:
        own = trained(sequence, EPOCHS_ALTOGETHER // len(SEQUENCES))
        for name, model in (("one", one), ("one_a_sequence", own)):
            found[name][sequence] = dice(model, bodies[TRAINING:], sequence)
    return found


def dice(model: Path, bodies: list[Path], sequence: str) -> float:
    """Return the mean Dice of a network on one sequence of these bodies."""
    from sslmedsam2.inference.model_folder import read_model_spec
    from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
    from sslmedsam2.submission.metrics import measure

    spec = read_model_spec(model, folds=("all",))
    segmenter = CanonicalSegmenter(spec, EngineOptions(device="cpu"))
    found = []
    for body in bodies:
        image, mask_path = body / f"{sequence}.nii.gz", body / f"mask_{sequence}.nii.gz"
        volume, truth = canonical_pair(image, mask_path)
        mask = segmenter.segment(volume).mask_zyx
        found.append(measure(mask, truth, spacing_zyx_mm=volume.spacing_zyx_mm).dice)
    return round(statistics.mean(found), 4)


if __name__ == "__main__":
    main()
