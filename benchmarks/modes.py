"""How near the two modes of ``predict`` come to ``exact`` in float32, on a CPU.

Real scans, as they are and, of T2, with inverted contrast, of which the network is unsure. On a CPU
without units for bfloat16 `exact` is in float32 anyway. `moved` is by how much bfloat16 changes the
expected Dice, which decides what is computed again in float32.

    python benchmarks/modes.py --json benchmarks/results/modes.json
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from accuracy import invert, model_spec
from common import parser, report, require_real_data

from sslmedsam2.imaging.reading import read_volume
from sslmedsam2.imaging.volume import CanonicalVolume, mask_dice
from sslmedsam2.inference.confidence import expected_dice
from sslmedsam2.inference.masks import make_ready
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions, Mode
from sslmedsam2.inference.sliding_window import Array, MarginNetwork

SCANS = {
    "T2": "chaos_mr_t2/*/T2.nii.gz",
    "T1": "chaos_mr_t1/*/T1_*.nii.gz",
    "CT": "*_ct/*/CT.nii.gz",
    "coronal": "mr_coronal/*/T[12].nii.gz",
}


class Watched(CanonicalSegmenter):
    """Counts windows, and keeps the expected Dice of the first view."""

    def __init__(self, model: Path | None, mode: Mode) -> None:
        super().__init__(model_spec(model), EngineOptions("cpu", mode))
        self.n_windows = 0
        self.expected: list[float] = []

    def _margin(
        self, patchable: Array, networks: Sequence[MarginNetwork], *, everywhere: bool = True
    ) -> np.ndarray:
        def counted(network: MarginNetwork) -> MarginNetwork:
            def predict(patches: np.ndarray) -> np.ndarray:
                self.n_windows += len(patches)
                return network(patches)

            return predict

        watched = [counted(network) for network in networks]
        margin = super()._margin(patchable, watched, everywhere=everywhere)
        self.expected.append(expected_dice(margin))
        return margin


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, help="in the place of the shipped weights")
    arguments.add_argument("--of-a-kind", type=int, default=16, help="scans at most")
    options = arguments.parse_args()
    with mock.patch("sslmedsam2.inference.openvino_backend.bfloat16_is_native", return_value=False):
        float32 = Watched(options.model, "exact")
    modes = {mode: Watched(options.model, mode) for mode in ("exact", "fast")}
    rows = []
    for kind, name, volume in scans(options.of_a_kind):
        rows.append({"kind": kind, "name": name, **compared(volume, float32, modes)})
        print(rows[-1], flush=True)
    kinds = dict.fromkeys(row["kind"] for row in rows)
    report(
        {
            "backends": {mode: modes[mode].backend for mode in modes},
            **{kind: summed([row for row in rows if row["kind"] == kind]) for kind in kinds},
            "rows": rows,
        },
        options.json,
    )


def scans(most: int) -> Iterator[tuple[str, str, CanonicalVolume]]:
    data = require_real_data("chaos_mr_t2").parent
    for kind, pattern in SCANS.items():
        for path in sorted(data.glob(pattern))[:most]:
            volume = make_ready(read_volume(path)).canonical
            name = f"{path.parent.name} {path.name.partition('.')[0]}"
            yield kind, name, volume
            if kind == "T2":
                turned = replace(volume, array_zyx=invert(volume.array_zyx))
                yield "inverted T2", name, turned


def compared(
    volume: CanonicalVolume, float32: Watched, modes: dict[str, Watched]
) -> dict[str, Any]:
    reference, expected = segmented(float32, volume)
    row: dict[str, Any] = {"windows": expected["windows"]}
    for mode, segmenter in modes.items():
        mask, found = segmented(segmenter, volume)
        row[mode] = {
            "windows": found["windows"],
            "agreement": round(1 - float((mask != reference).mean()), 7),
            "dice": round(mask_dice(mask > 0, reference > 0), 5),
            "moved": round(found["expected_dice"] - expected["expected_dice"], 5),
        }
    return row


def segmented(segmenter: Watched, volume: CanonicalVolume) -> tuple[np.ndarray, dict[str, Any]]:
    segmenter.n_windows = 0
    segmenter.expected.clear()
    mask = segmenter.segment(volume).mask_zyx
    return mask, {"windows": segmenter.n_windows, "expected_dice": segmenter.expected[0]}


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"scans": len(rows), "windows": sum(row["windows"] for row in rows)}
    for mode in ("exact", "fast"):
        ours = [row[mode] for row in rows]
        found[mode] = {
            "windows": sum(one["windows"] for one in ours),
            "agreement, worst": min(one["agreement"] for one in ours),
            "dice, mean": round(float(np.mean([one["dice"] for one in ours])), 5),
            "dice, worst": min(one["dice"] for one in ours),
            "moved, most": max((one["moved"] for one in ours), key=abs),
        }
    return found


if __name__ == "__main__":
    main()
