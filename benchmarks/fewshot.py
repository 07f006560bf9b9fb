"""Few-shot pseudo labels on real volumes: strategies, contrasts, reliability, budget.

Five volumes of `chaos_mr_t2` are supports, the other eleven queries; the same compact SAM2 serves
every strategy. Dice is that of the final mask on the volume's own grid.

    python benchmarks/fewshot.py --json benchmarks/results/fewshot.json

`--baseline-queries N` lets the slow published procedure answer the first N queries only; the
strategies are then compared on those. `--part` measures that part alone, for a file of its own.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, parser, report, require_real_data

SUPPORTS = (0, 3, 6, 9, 12)
"""Places of the support volumes in the sorted list of cases: every third."""
PARTS = ("strategies", "contrasts", "own_sequence", "reliability", "hiera_tiny")
COMPACT = ROOT / "weights" / "sam2-compact" / "sam2-compact.safetensors"


@dataclass(frozen=True)
class Case:
    """A real volume with its mask, both canonical."""

    name: str
    image: Any
    geometry: Any
    mask_zyx: Any


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--baseline-queries", type=int, default=3)
    arguments.add_argument("--sam2", type=Path, default=COMPACT)
    arguments.add_argument("--part", choices=PARTS, action="append", help="default: all of them")
    options = arguments.parse_args()
    parts = options.part or PARTS
    folder = require_real_data("chaos_mr_t2")
    cases = [load(path, "T2") for path in sorted(folder.iterdir()) if path.is_dir()]
    supports = [cases[k] for k in SUPPORTS]
    queries = [case for case in cases if case not in supports]
    figures: dict[str, Any] = {"supports": [case.name for case in supports]}
    if "strategies" in parts:
        figures |= strategies(options.sam2, supports, queries, n_baseline=options.baseline_queries)
    if "contrasts" in parts:
        figures["contrasts"] = contrasts(options.sam2, supports, queries)
    if "own_sequence" in parts:
        figures["own_sequence"] = own_sequence(options.sam2, supports, queries)
    if "reliability" in parts:
        figures |= reliability(options.sam2, cases)
    if "hiera_tiny" in parts:
        figures["hiera_tiny_512"] = isolated(hiera_tiny)
    report(figures, options.json)


def load(folder: Path, sequence: str) -> Case:
    """Read an image and its mask and turn both to the canonical orientation."""
    from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
    from sslmedsam2.imaging.reading import read_mask, read_volume

    volume = read_volume(folder / f"{sequence}.nii.gz")
    image = to_canonical(volume)
    mask = read_mask(folder / f"mask_{sequence}.nii.gz").array_zyx
    return Case(folder.name, image, volume.geometry, apply_reorientation(mask, image.reorientation))


def isolated(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a process of its own, so that its peak of memory is its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def answer(
    sam2: Path,
    settings: Mapping[str, Any],
    supports: Sequence[Case],
    queries: Sequence[Case],
    leave_out: bool = False,
) -> dict[str, Any]:
    """Segment the queries and score them; runs in its own process."""
    import torch

    from sslmedsam2.fewshot.checkpoint import load_sam2
    from sslmedsam2.fewshot.strategy import FewShotSettings, Query, Support, build_strategy
    from sslmedsam2.submission.metrics import measure

    loaded = load_sam2(sam2, device=torch.device("cpu"))
    given = [
        Support(case.name, case.name, case.image, case.geometry, case.mask_zyx) for case in supports
    ]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        strategy = build_strategy(
            FewShotSettings(**settings), loaded, given, scratch_dir=Path(scratch)
        )
        prepared = time.perf_counter() - start
        for case in queries:
            start = time.perf_counter()
            asked = Query(case.name, case.name, case.image, case.geometry)
            found = strategy.segment(asked, leave_out_case=case.name if leave_out else None)
            seconds = time.perf_counter() - start
            scores = measure(
                found.mask_zyx, case.mask_zyx, spacing_zyx_mm=case.image.spacing_zyx_mm
            )
            rows.append(
                {
                    "case": case.name,
                    "dice": round(scores.dice, 4),
                    "hd95_mm": round(scores.hausdorff95_mm, 2),
                    "seconds": round(seconds, 2),
                    "encoder_calls": found.encoder_calls,
                    "evidence": asdict(found.evidence),
                }
            )
    return {
        "rows": rows,
        "prepare_seconds": round(prepared, 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
    }


def mean_dice(answers: Mapping[str, Any]) -> float:
    return round(statistics.mean(row["dice"] for row in answers["rows"]), 4)


def strategies(
    sam2: Path, supports: Sequence[Case], queries: Sequence[Case], *, n_baseline: int
) -> dict[str, Any]:
    """Compare the strategies.

    What is done once is shared out over all queries: encoding the supports and, in the first
    query's seconds, segmenting them by one another.
    """
    ours = isolated(answer, sam2, {"strategy": "retrieval"}, supports, queries)
    base = isolated(answer, sam2, {"strategy": "random-insertion"}, supports, queries[:n_baseline])
    n_support_slices = sum(case.image.array_zyx.shape[0] for case in supports)
    shared_calls = n_support_slices / len(queries)
    shared_seconds = ours["prepare_seconds"] / len(queries)
    compared = ours["rows"][:n_baseline]
    return {
        "retrieval": ours,
        "random_insertion": base,
        "retrieval_dice": mean_dice(ours),
        "random_insertion_dice": mean_dice(base),
        "retrieval_dice_same_queries": mean_dice({"rows": compared}),
        "speedup": round(
            statistics.mean(row["seconds"] for row in base["rows"])
            / (statistics.mean(row["seconds"] for row in ours["rows"]) + shared_seconds),
            1,
        ),
        "encoder_call_ratio": round(
            statistics.mean(row["encoder_calls"] for row in base["rows"])
            / (statistics.mean(row["encoder_calls"] for row in ours["rows"]) + shared_calls),
            1,
        ),
    }


def contrasts(sam2: Path, supports: Sequence[Case], queries: Sequence[Case]) -> dict[str, Any]:
    """Ask for queries of foreign contrast, with and without harmonisation."""
    foreign = {
        "inverted": [repainted(case, lambda unit: 1 - unit) for case in queries],
        "inverted_and_remapped": [
            repainted(case, lambda unit: (1 - unit) ** 2) for case in queries
        ],
        "brightened": [repainted(case, lambda unit: unit**0.4) for case in queries],
        "ct": [load(path, "CT") for path in sorted(require_real_data("totalseg_ct").iterdir())],
    }
    table = {}
    for name, asked in foreign.items():
        table[name] = {
            "n": len(asked),
            "with": mean_dice(isolated(answer, sam2, {"harmonise": True}, supports, asked)),
            "without": mean_dice(isolated(answer, sam2, {"harmonise": False}, supports, asked)),
        }
    return table


def repainted(case: Case, curve: Callable[[Any], Any]) -> Case:
    """Send a volume's intensities through a curve on [0, 1]; air stays air."""
    from sslmedsam2.fewshot.slices import unit_intensities

    unit = unit_intensities(case.image.array_zyx)
    array = np.where(unit > 0.02, curve(unit), unit).astype(np.float32)
    return replace(case, image=replace(case.image, array_zyx=array))


def own_sequence(sam2: Path, supports: Sequence[Case], queries: Sequence[Case]) -> dict[str, Any]:
    """Add each patient's own other sequence to the supports, made of the same scan.

    The stand-in for it is inverted and lies 6 mm to the side and 4 mm to the front, about what
    breathing and turning do between two sequences.
    """
    rows = []
    for case in queries:
        other = repainted(case, lambda unit: (1 - unit) ** 2)
        moved = replace(
            other,
            geometry=replace(
                case.geometry,
                origin_xyz_mm=tuple(np.add(case.geometry.origin_xyz_mm, (6.0, -4.0, 0.0))),
            ),
        )
        answers = isolated(answer, sam2, {}, [*supports, moved], [case])
        rows += answers["rows"]
    plain = isolated(answer, sam2, {}, supports, queries)
    return {"with": mean_dice({"rows": rows}), "without": mean_dice(plain)}


def reliability(sam2: Path, cases: Sequence[Case]) -> dict[str, Any]:
    """Estimate each volume's Dice from all others', each segmented by all but itself."""
    from scipy import stats

    from sslmedsam2.fewshot.outcome import calibrate, judge, score
    from sslmedsam2.fewshot.strategy import Evidence

    answers = isolated(answer, sam2, {}, cases, cases, True)
    known = [(Evidence(**row["evidence"]), row["dice"]) for row in answers["rows"]]
    rows = []
    for k, (evidence, dice) in enumerate(known):
        found = judge(evidence, calibrate([*known[:k], *known[k + 1 :]]))
        low, high = found.interval
        rows.append(
            {
                "case": cases[k].name,
                "dice": dice,
                "estimated_dice": round(found.estimated_dice, 4),
                "interval": [round(low, 4), round(high, 4)],
                "verdict": found.verdict,
                "inside": low <= dice <= high,
            }
        )
    dice = [row["dice"] for row in rows]

    def correlation(estimates: Sequence[float]) -> float:
        return round(float(stats.spearmanr(estimates, dice).statistic), 3)

    # Unlabelled queries share one calibration, whose line does not change their order. Estimates
    # that each come from a line of their own are pushed the wrong way: a good case that is left
    # out lowers its own line.
    return {
        "leave_one_out": rows,
        "leave_one_out_dice": mean_dice(answers),
        "reliability_spearman": correlation([score(evidence) for evidence, _ in known]),
        "reliability_spearman_own_lines": correlation([row["estimated_dice"] for row in rows]),
        "interval_coverage": round(statistics.mean(row["inside"] for row in rows), 3),
    }


def hiera_tiny() -> dict[str, Any]:
    """Time Hiera-T with random weights at 512 px: what the official weights would cost."""
    import torch

    from sslmedsam2.fewshot.checkpoint import build_hiera_tiny
    from sslmedsam2.fewshot.memory import Memory, encode_slices, remember_prompts, segment

    torch.manual_seed(0)
    model = build_hiera_tiny(512).eval().requires_grad_(False)
    slices = torch.rand(4, 1, 512, 512)
    masks = (torch.rand(4, 1, 512, 512) > 0.5).float()
    seconds: dict[str, float] = {}
    with torch.inference_mode():
        for attempt in range(2):
            start = time.perf_counter()
            features = encode_slices(model, slices)
            encoded = time.perf_counter()
            memory = remember_prompts(model, features, masks)
            remembered = time.perf_counter()
            one = features[:1]
            segment(model, one, memory[:1])
            alone = time.perf_counter()
            segment(model, one, Memory(memory.spatial, memory.pointer))
            together = time.perf_counter()
            if attempt:
                seconds = {
                    "encode_s_per_slice": (encoded - start) / 4,
                    "remember_s_per_slice": (remembered - encoded) / 4,
                    "segment_s_per_slice_1_memory": alone - remembered,
                    "segment_s_per_slice_4_memories": together - alone,
                }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {name: round(value, 3) for name, value in seconds.items()} | {
        "peak_memory_mb": round(peak)
    }


if __name__ == "__main__":
    main()
