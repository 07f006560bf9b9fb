"""One network or one a sequence: a choice in `retrain`, made by measurement.

Phantoms of two sequences: one network on both, against one on each, with as many iterations
altogether; random first weights, and other bodies to test on.

    python benchmarks/retrain_choices.py --json FILE
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

from accuracy import canonical_pair
from common import parser, report

SEQUENCES = ("T2", "GED4")
TRAINING, TEST = 8, 3
EPOCHS_ALTOGETHER = 10
SEED = 7100


def main() -> None:
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report({"networks": networks(Path(scratch))}, options.json)


def networks(scratch: Path) -> dict[str, dict[str, float]]:
    """Mean Dice a sequence, of one network for both and of one for each."""
    from sslmedsam2.nnunet.training import trained_model_dir
    from sslmedsam2.phantom.studies import write_training_cases
    from sslmedsam2.train.pipeline import TrainOptions, train

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
        work_dir = scratch / f"{name}_work"
        train(
            TrainOptions(
                scratch / name, work_dir, folds=0, final_epochs=epochs, contrast_probability=0.15
            )
        )
        return trained_model_dir(work_dir)

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
