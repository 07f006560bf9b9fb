"""Writes measured figures into the README, the guide and the model card, between markers.

    python scripts/renew_figures.py

Figures come from `benchmarks/results/*.json`, written by the scripts in `benchmarks/`, and, for
volumes that are not in the repository, from `measured` in `weights/manifest.json`. Figures of other
weights than those that ship are an error: run `benchmarks/accuracy.py` and
`benchmarks/confidence.py` first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from sslmedsam2.weights.manifest import MANIFEST_NAME, ModelEntry, read_manifest

REPOSITORY = Path(__file__).parents[1]
PAGES = tuple(
    REPOSITORY / name
    for name in ("README.md", "docs/report.md", "docs/retraining.md", "weights/MODEL_CARD.md")
)
_RESULTS = REPOSITORY / "benchmarks" / "results"
_OF_THE_WEIGHTS = ("accuracy", "confidence")
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(\n<!-- end of figures -->)", re.DOTALL)
_UNSEEN = {
    "t2": "T2",
    "t2_inverted": "T2 with inverted contrast",
    "t1": "T1, in and opposed phase, 2 vendors",
    "t1_cropped": "T1-like MR, cropped",
    "ct": "CT",
}
_HELD_OUT = {
    "t2": "T2",
    "t2_inverted": "T2 with inverted contrast",
    "ct": "CT",
    "t1": "T1, in and opposed phase, of 1 patient",
}
_GROUPS = {
    "all": "all",
    "undisturbed": "undisturbed",
    "contrast T2": "T2 and copies",
    "contrast CT": "CT and copies",
    "contrast T1_in": "T1 in phase and copies, 1 patient",
    "contrast T1_out": "T1 in opposed phase and copies, 1 patient",
    "copy inverted": "inverted contrast",
    "copy repainted": "each organ in another brightness",
    "copy faint": "liver as bright as its surroundings",
    "copy biased": "uneven brightness",
    "copy blurred": "blurred",
    "copy coarse": "coarse voxels",
    "copy noisy": "noisy",
    "copy cropped": "cut through the liver",
    "trained on": "for comparison: volumes that the network was trained on, and copies",
}


def main() -> None:
    old = [
        name for name in _OF_THE_WEIGHTS if results(name)["checkpoints"] != shipped().checkpoints
    ]
    if old:
        sys.exit(f"other weights were measured: run benchmarks/{old[0]}.py with --json")
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(page: str) -> str:
    """Return a page with the present figures between its markers."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{_TABLES[found[2]]()}\n{found[3]}", page)


def results(name: str) -> dict[str, Any]:
    return json.loads((_RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def shipped() -> ModelEntry:
    entry = read_manifest(REPOSITORY / "weights" / MANIFEST_NAME).entry("liver")
    assert entry is not None
    return entry


def accuracy() -> str:
    """Return Dice and Hausdorff distance of the shipped weights."""
    measured, found = shipped().card.measured, results("accuracy")
    rows = []
    for key, title in _UNSEEN.items():
        if f"unseen_{key}_dice" in measured:
            count = measured.get(f"unseen_{key}_volumes")
            title += f", {_volumes(count)}" if count else ""
            dice = measured[f"unseen_{key}_dice"]
            rows.append((title, "**no**", dice, measured[f"unseen_{key}_hausdorff_mm"]))
    dice, distance = (
        fmean(row[name] for row in found["t1_pair"]) for name in ("dice", "hausdorff_mm")
    )
    rows.append(("T1, in and opposed phase, of 1 CHAOS patient", "only its T2", dice, distance))
    for title, key in (
        ("T2 (CHAOS), 16 volumes", found["t2"]["t2"]),
        ("T2 (CHAOS) with inverted contrast, 16 volumes", found["t2"]["t2_inverted"]),
        ("CT (BTCV), 22 volumes", found["btcv_ct"]),
    ):
        rows.append((title, "yes", key["mean_dice"], key["mean_hausdorff_mm"]))
    table = _table(
        ("scans", "trained on", "Dice", "Hausdorff distance"),
        ((title, seen, f"{dice:.3f}", f"{mm:.1f} mm") for title, seen, dice, mm in rows),
    )
    voxels_mm = found["btcv_ct"]["mean_voxels_hausdorff_mm"]
    return (
        f"{table}\n\nBetween all voxels of the masks, not their surfaces, the Hausdorff distance "
        f"of CT is {voxels_mm:.1f} mm."
    )


def held_out() -> str:
    """Return Dice and Hausdorff distance of networks on volumes that they never saw."""
    ships, smaller = results("cross_validation_wide"), results("cross_validation")
    rows = []
    for kind, title in _HELD_OUT.items():
        cases = (found[kind]["cases"] for found in (ships, smaller))
        rows.append((title, *map(_dice_distance_volumes, cases)))
    return _table(("scans", "networks like the one that ships", "smaller networks"), rows)


def _dice_distance_volumes(cases: list[dict[str, Any]]) -> str:
    dice, distance_mm = (fmean(case[key] for case in cases) for key in ("dice", "hausdorff_mm"))
    return f"{dice:.3f}, {distance_mm:.1f} mm ({len(cases)})"


_PROOFS = {
    "p1": ("5 CT", "10 T2", "6 T2"),
    "p2": ("5 T2", "12 CT", "6 CT"),
    "p3": ("1 T2", "11 T2", "4 T2"),
    "p0": ("3 T2", "9 T2", "4 T2"),
}
_ARMS = {
    "a": ("supervised_few", "the labels alone"),
    "b": ("fewshot", "`pseudo-label`"),
    "c": ("ssl", "`retrain`"),
    "d": ("supervised_all", "all labelled"),
}
"""Name of an arm in the means, and its title, by its letter in the splits."""
_WITH_BFLOAT16 = ("bf16", "bf16_16", "zen5", "zen5_16")
"""The smaller network on two CPUs, with 4 and with 16 volumes each."""


def _range(runs: list[dict[str, Any]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{min(values):.1f} to {max(values):.1f}"


def speed() -> str:
    """Return what the engine and the few-shot methods reach."""
    few = results("fewshot")
    published = results("fewshot_strategies")["random_insertion_dice"]
    memory = results("large_volume")
    first = results("first_mask")
    wide = results("predict_vs_nnunet_wide")
    bf16 = [results(f"predict_vs_nnunet_{name}") for name in _WITH_BFLOAT16]
    avx2 = results("predict_vs_nnunet_amd")
    versus, queries = "`benchmarks/predict_vs_nnunet.py`", len(few["retrieval"]["rows"])
    return _table(
        ("what", "figure", "how it was measured"),
        (
            (
                "`exact` against `nnUNetv2_predict` on a CPU",
                f"{wide['exact_speedup']:.1f} times as fast with Intel AMX (voxel agreement "
                f"{wide['exact_voxel_agreement']:.5f}); the smaller network "
                f"{_range(bf16, 'exact_speedup')} times with AVX512-BF16, in processor seconds "
                f"{avx2['exact_processor_speedup']:.1f} times with AVX2",
                versus,
            ),
            (
                "`fast` against `nnUNetv2_predict` on a CPU",
                f"{wide['fast_speedup']:.1f} times as fast with Intel AMX, Dice to `exact` "
                f"{wide['fast_dice']:.4f} or better on 4 T2 volumes; the smaller network "
                f"{_range(bf16, 'fast_speedup')} times with AVX512-BF16",
                versus,
            ),
            (
                "First mask of one T2 volume, 2 cores: `exact`",
                f"{first['after']['whole process']:.1f} s",
                "`benchmarks/first_mask.py`",
            ),
            (
                "Peak memory, 1024 x 1024 x 32 voxels",
                f"{memory['peak_memory_mb']} MB",
                "`benchmarks/large_volume.py`",
            ),
            (
                f"Dice of pseudo labels: {len(few['supports'])} CHAOS T2 volumes label {queries}",
                f"{few['retrieval_dice']:.3f} (published procedure, same network: {published:.3f})",
                "`benchmarks/fewshot.py`",
            ),
        ),
    )


def proofs() -> str:
    """Return what unlabelled scans gain."""
    found = results("semi_supervised")
    return _table(
        ("labelled", "not labelled", "tested", "splits", *(title for _, title in _ARMS.values())),
        (
            (
                *scans,
                str(len(found[proof]["draws"])),
                *(_dice_and_distance(found[proof], arm) for arm in _ARMS),
            )
            for proof, scans in _PROOFS.items()
            if proof in found
        ),
    )


def _dice_and_distance(proof: dict[str, Any], arm: str) -> str:
    splits = [split for split in proof["draws"].values() if arm in split]
    if not splits:
        return "not measured"
    name = _ARMS[arm][0]
    fewer = f" ({len(splits)} splits)" if len(splits) < len(proof["draws"]) else ""
    return f"{proof[f'{name}_dice']:.3f}, {proof[f'{name}_hd_mm']:.0f} mm{fewer}"


def confidence() -> str:
    """Return how well the estimated Dice agrees with the true one."""
    found = results("confidence")
    rows = []
    for key, title in _GROUPS.items():
        group = found["groups"][key]
        rows.append(
            (
                title,
                str(group["volumes"]),
                f"{group['mean_dice']:.3f}",
                f"{group['spearman']:.2f}",
                f"{group['mean_error']:.3f}",
                f"{group['coverage']:.0%}".replace("%", " %"),
            )
        )
    intro = (
        f"Measured with `python benchmarks/confidence.py` on {found['volumes']} volumes and copies "
        f"of {found['patients']} patients that\nthe network was not trained on, "
        "each estimated by a fit without its patient:"
    )
    heads = ("volumes", "number", "mean Dice", "Spearman with the true Dice", "mean error")
    return f"{intro}\n\n{_table((*heads, 'inside the interval'), rows)}"


def phantoms() -> str:
    """Return one sentence on the phantoms of `test_inputs/`."""
    dice = [row["dice"] for row in results("accuracy")["phantoms"].values()]
    return (
        f"Phantoms of `test_inputs/` ({_volumes(len(dice))}): Dice {min(dice):.3f} to "
        f"{max(dice):.3f}, mean {fmean(dice):.3f}."
    )


def _volumes(count: float) -> str:
    return "1 volume" if count == 1 else f"{count:.0f} volumes"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(heads), *map(list, rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


_TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (accuracy, held_out, speed, proofs, confidence, phantoms)
}


if __name__ == "__main__":
    main()
