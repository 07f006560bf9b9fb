"""Few-shot labels from one modality to another: the height that is found, and the Dice.

Random sets of five labelled volumes label six others: CT (`btcv_ct`) labels T2 (`chaos_mr_t2`), T2
labels CT, and each its own kind. The height alone is measured without any propagation; `--dice`
adds the pseudo labels themselves, with the estimated Dice and the verdicts, of each kind and of all
kinds together.

    python benchmarks/fewshot_place.py --json benchmarks/results/fewshot_place.json
    python benchmarks/fewshot_place.py --dice --sets 20 --kinds CT-T2 --rows ROWS.jsonl

`--rows` writes a line for each query as it is done; a run that is started again goes on there.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser, report, require_real_data
from fewshot import COMPACT, Case, load
from scipy import stats

from sslmedsam2.fewshot.alignment import Place, align, find_place
from sslmedsam2.fewshot.checkpoint import load_sam2
from sslmedsam2.fewshot.outcome import Reliability, calibrate, judge, score
from sslmedsam2.fewshot.retrieval import Retrieval
from sslmedsam2.fewshot.slices import cut_masks, cut_slices
from sslmedsam2.fewshot.store import EncodedVolume, Encoder
from sslmedsam2.fewshot.strategy import Evidence, FewShotSettings, Query, Support
from sslmedsam2.imaging.volume import mask_dice

FOLDERS = {"CT": "btcv_ct", "T2": "chaos_mr_t2"}
N_SUPPORTS, N_QUERIES = 5, 6
KNOWN_BAD = (
    ("btcv00", "btcv03", "btcv07", "btcv11", "btcv18"),
    ("chaos01", "chaos05", "chaos10", "chaos20", "chaos33", "chaos37"),
)
"""CT supports and T2 queries for which mean Dice was 0.445 when means over unequal sets of slices
were compared."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sam2", type=Path, default=COMPACT)
    arguments.add_argument("--sets", type=int, default=20)
    arguments.add_argument("--kinds", nargs="+", default=["CT-T2", "T2-CT", "T2-T2", "CT-CT"])
    arguments.add_argument("--dice", action="store_true")
    arguments.add_argument(
        "--calibrated-sets", type=int, default=1000, help="of the rest, Dice only"
    )
    arguments.add_argument("--rows", type=Path, help="with --dice: what is done already")
    options = arguments.parse_args()
    cases = {
        kind: [load(path, kind) for path in sorted(require_real_data(folder).iterdir())]
        for kind, folder in FOLDERS.items()
    }
    measured = propagated if options.dice else placed
    found = {
        kinds: measured(options, *(cases[kind] for kind in kinds.split("-")), kinds)
        for kinds in options.kinds
    }
    if options.dice and len(found) > 1:
        found["together"] = [row for rows in found.values() for row in rows]
    figures = {k: summary(rows) for k, rows in found.items()} if options.dice else found
    report(figures, options.json)


def draws(
    supports: Sequence[Case], queries: Sequence[Case], *, n_sets: int, kinds: str
) -> Iterator[tuple[list[Case], list[Case]]]:
    """Draw sets of supports and queries, no case in both; of CT for T2, the known bad one first."""
    generator = np.random.default_rng(16)
    if kinds == "CT-T2":
        yield tuple(
            [case for case in group if case.name in names]
            for group, names in zip((supports, queries), KNOWN_BAD, strict=True)
        )
    for _ in range(n_sets):
        chosen = [supports[k] for k in generator.permutation(len(supports))[:N_SUPPORTS]]
        left = [case for case in queries if case not in chosen]
        yield chosen, [left[k] for k in generator.permutation(len(left))[:N_QUERIES]]


@dataclass(frozen=True)
class Height:
    """Where a volume's organ is along z; of the volume only what the alignment compares."""

    volume: EncodedVolume
    has_liver: np.ndarray
    place: Place


def see(encoder: Encoder, case: Case) -> Height:
    stack = cut_slices(case.image, size=encoder.sam2.image_size)
    masks = cut_masks(case.mask_zyx, stack.crop, size=encoder.sam2.image_size)
    volume = encoder.volume(stack)
    light = replace(volume, features=volume.features[slice(0, 0)])
    return Height(light, masks.any((1, 2)), find_place(masks, volume.z_mm))


def placed(options: Any, supports: Sequence[Case], queries: Sequence[Case], kinds: str) -> Any:
    """Measure how far the liver of queries as they are is from where their partners have it."""
    encoder = Encoder(load_sam2(options.sam2, device=torch.device("cpu")))
    every = {case.name: case for case in (*supports, *queries)}
    known = {name: see(encoder, case) for name, case in every.items()}
    errors, overlaps = [], []
    for chosen, asked in draws(supports, queries, n_sets=options.sets, kinds=kinds):
        given = [known[case.name] for case in chosen]
        for case in asked:
            query = known[case.name]
            found = align(query.volume, [(one.volume, one.place) for one in given])[0]
            pairs = zip(given, found, strict=True)
            shown = np.mean([one.has_liver[partners.indices] for one, partners in pairs], 0) > 0.5
            true, z_mm = query.has_liver, query.volume.z_mm
            overlaps.append(float((true & shown).sum() / (true | shown).sum()))
            errors.append(float(z_mm[shown].mean() - z_mm[true].mean()) if shown.any() else np.inf)
    distance = np.abs(errors)
    return {
        "n": len(errors),
        "median_error_mm": round(float(np.median(distance)), 1),
        **{f"over_{mm}_mm": round(float((distance > mm).mean()), 3) for mm in (20, 40, 80)},
        "largest_error_mm": round(float(distance.max()), 1),
        "overlap": round(statistics.mean(overlaps), 3),
    }


def propagated(options: Any, supports: Sequence[Case], queries: Sequence[Case], kinds: str) -> Any:
    """Label the queries, and the supports of each set by one another for the calibration."""
    rows = [] if options.rows is None or not options.rows.is_file() else _read_rows(options.rows)
    done = {(row["kinds"], row["set"], row["case"]): row for row in rows}
    sam2 = load_sam2(options.sam2, device=torch.device("cpu"))
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        given = [
            Support(case.name, case.name, case.image, case.geometry, case.mask_zyx)
            for case in supports
        ]
        # All supports are encoded once; each set then sees its own only.
        strategy = Retrieval(FewShotSettings(), sam2, given, scratch_dir=Path(scratch))
        sets = draws(supports, queries, n_sets=options.sets, kinds=kinds)
        for number, (chosen, asked) in enumerate(sets):
            names = {case.name for case in chosen}
            seen = copy.copy(strategy)
            seen._known = [known for known in strategy._known if known.name in names]
            calibrated = chosen if number < options.calibrated_sets else []
            for case in (*calibrated, *asked):
                row = done.get((kinds, number, case.name))
                if row is None:
                    result = seen.segment(
                        Query(case.name, case.name, case.image, case.geometry),
                        leave_out_case=case.name,
                    )
                    row = {
                        "kinds": kinds,
                        "set": number,
                        "case": case.name,
                        "role": "support" if case in chosen else "query",
                        "dice": round(mask_dice(result.mask_zyx > 0, case.mask_zyx > 0), 4),
                        "evidence": asdict(result.evidence),
                        "supports": [asdict(one) for one in result.supports],
                        "warnings": result.warnings,
                    }
                    if options.rows is not None:
                        with options.rows.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                found.append(row)
    return found


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Judge each query by the calibration of its own set, and compare with the truth."""
    by_set: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        by_set.setdefault((row["kinds"], row["set"]), []).append(row)
    judged, plain, means = [], [], []
    for group in by_set.values():
        known = [(Evidence(**r["evidence"]), r["dice"]) for r in group if r["role"] == "support"]
        asked = [row for row in group if row["role"] == "query"]
        means.append(statistics.mean(row["dice"] for row in asked))
        plain += [(row["dice"], score(Evidence(**row["evidence"]))) for row in asked]
        if known:
            calibration = calibrate(known)
            judged += [(r["dice"], judge(Evidence(**r["evidence"]), calibration)) for r in asked]
    dice = [one for one, _ in plain]
    figures = {
        "n": len(dice),
        "sets": len(means),
        "mean_dice": round(statistics.mean(dice), 4),
        "lowest_mean_of_a_set": round(min(means), 4),
        "first_set": round(means[0], 4),
        "lowest": sorted(dice)[:8],
        "spearman_score": round(float(stats.spearmanr(*zip(*plain, strict=True)).statistic), 3),
    }
    return figures if not judged else figures | {"calibrated": _verdicts(judged)}


def _verdicts(judged: Sequence[tuple[float, Reliability]]) -> dict[str, Any]:
    """Compare estimates, intervals and verdicts with the true Dice."""
    dice, found = zip(*judged, strict=True)
    accepted = [one for one, verdict in judged if verdict.verdict == "accept"]
    inside = [verdict.interval[0] <= one <= verdict.interval[1] for one, verdict in judged]
    estimates = [verdict.estimated_dice for verdict in found]
    return {
        "n": len(judged),
        "below_0.4_not_rejected": sum(one < 0.4 and v.verdict != "reject" for one, v in judged),
        "spearman": round(float(stats.spearmanr(estimates, dice).statistic), 3),
        "interval_coverage": round(statistics.mean(inside), 3),
        "accepted": len(accepted),
        "accepted_of_0.80": sum(one >= 0.80 for one in accepted),
        "rejected": sum(v.verdict == "reject" for v in found),
    }


if __name__ == "__main__":
    sys.exit(main())
