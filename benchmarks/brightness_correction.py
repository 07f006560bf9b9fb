"""What a correction by the scan's own brightness gains, on volumes that the network never saw.

T2 and CT that a fold of `cross_validation.py` kept out, segmented by its network: as they are, and
in contrasts that it knows less well. Each is segmented as `predict` does, with a second view where
the network is unsure, without and with the correction. Where there is a second view the first one
alone is corrected, too: the second view of an inverted scan shows a contrast that the network was
trained on, which that of an unknown sequence does not. Scans of which the network is sure are
corrected here as well, to see what it would do to them.

    python benchmarks/brightness_correction.py --fold-dir CROSS_VALIDATION/fold2 --json FILE
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import canonical_pair, compared, invert, labelled, means, model_spec
from common import parser, report
from cross_validation import CT, T2, kept_out

from sslmedsam2.imaging.volume import CanonicalVolume
from sslmedsam2.inference.brightness_correction import corrected
from sslmedsam2.inference.confidence import expected_dice
from sslmedsam2.inference.second_view import SURE_FROM, average, inverted
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.nnunet.training import trained_model_dir


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--fold-dir", type=Path, action="append", required=True)
    options = arguments.parse_args()
    rows = []
    for fold_dir in options.fold_dir:
        model = model_spec(trained_model_dir(fold_dir / "work"))
        segmenter = CanonicalSegmenter(model, EngineOptions("cpu", sure_from=0.0))
        for contrast, case, volume, mask in volumes(kept_out(fold_dir)):
            rows += [
                {"fold": fold_dir.name, "contrast": contrast, "case": case, **row}
                for row in compare(segmenter, volume, mask)
            ]
            print(rows[-1], flush=True)
    report({"groups": groups(rows), "rows": rows}, options.json)


def volumes(
    held_out: dict[str, list[str]],
) -> Iterator[tuple[str, str, CanonicalVolume, np.ndarray]]:
    """Yield contrast, case, image and reference mask."""
    for folder, name in ((T2, "T2"), (CT, "CT")):
        for image in labelled(folder, only=held_out[folder]):
            volume, mask = canonical_pair(image.path, image.mask)
            negative = invert(volume.array_zyx).astype(np.float32)
            shown = {name: volume.array_zyx, f"{name} inverted": negative}
            if name == "T2":
                shown["T2 inverted and squared"] = (negative / negative.max()) ** 2
            for contrast, array in shown.items():
                yield contrast, image.case, replace(volume, array_zyx=array), mask


def compare(
    segmenter: CanonicalSegmenter, volume: CanonicalVolume, mask: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yield the figures without and with the correction: after one view, and after both views."""
    prepared = segmenter.prepare(volume)
    one = segmenter.infer(prepared)
    expected = expected_dice(one.margin)
    margins = {"one view": one.margin}
    if expected < SURE_FROM:
        other = segmenter.infer(replace(prepared, patchable=inverted(prepared.patchable)))
        margins["both views"] = average(one.margin, other.margin)
    for views, margin in margins.items():
        changed = corrected(margin, np.asarray(prepared.patchable))
        figures = (
            compared(
                segmenter.finish(replace(one, margin=shown)).mask_zyx,
                mask,
                spacing_zyx_mm=volume.spacing_zyx_mm,
            )
            for shown in (margin, changed)
        )
        yield {
            "views": views,
            "expected": round(expected_dice(margin), 4),
            "refused": changed is margin,
            **dict(zip(("without", "with"), figures, strict=True)),
        }


def groups(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means by views, contrast, and whether the network was unsure in the first view."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        is_sure = row["views"] == "one view" and row["expected"] >= SURE_FROM
        unsure = "sure" if is_sure else "unsure"
        for contrast in ("all", row["contrast"]):
            found.setdefault(f"{row['views']}, {unsure}, {contrast}", []).append(row)
    return {
        name: {
            "volumes": len(of),
            "refused": sum(row["refused"] for row in of),
            **{key: means([row[key] for row in of]) for key in ("without", "with")},
        }
        for name, of in sorted(found.items())
    }


if __name__ == "__main__":
    main()
