"""Running ``pseudo-label`` on small abdomens with a small SAM2 of random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan

from sslmedsam2.contract.pseudo_label_outputs import PseudoLabelPaths, pseudo_label_paths
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.pseudo_label.pipeline import (
    PseudoLabelOptions,
    PseudoLabelSummary,
    pseudo_label,
)

LEFT_HANDED_AFFINE_RAS = SMALL_AFFINE_RAS @ np.array(
    [[1, 0, 0, 0], [0, -1, 0, 34], [0, 0, 1, 0], [0, 0, 0, 1.0]]
)
"""That of the same abdomen, its y axis stored the other way round."""


class Workplace:
    """A support folder, a query folder and an output folder beside each other."""

    def __init__(self, root: Path, sam2: Path) -> None:
        self.root = root
        self.sam2 = sam2
        self.support = root / "support"
        self.query = root / "query"
        self.output = root / "output"
        self.support.mkdir(exist_ok=True)
        self.query.mkdir(exist_ok=True)

    def copy_to(self, root: Path) -> Workplace:
        """Copy all three folders to a root that does not exist yet, times of files included."""
        return Workplace(shutil.copytree(self.root, root), self.sam2)

    def add_support(self, case: str, *, sequence: str = "GED4", seed: int = 0) -> Path:
        """Write a labelled volume and return its folder."""
        image, mask = small_abdomen(seed)
        folder = self.support / case
        write_scan(folder / f"{sequence}.nii.gz", image, affine_ras=SMALL_AFFINE_RAS)
        write_scan(
            folder / f"mask_{sequence}.nii.gz",
            mask,
            dtype=np.uint8,
            affine_ras=SMALL_AFFINE_RAS,
        )
        return folder

    def add_query(
        self, relative: str, *, seed: int = 10, n_slices: int = 9, left_handed: bool = False
    ) -> Path:
        """Write a volume to label."""
        image = small_abdomen(seed)[0][:n_slices]
        if left_handed:
            return write_scan(
                self.query / relative, image[:, ::-1], affine_ras=LEFT_HANDED_AFFINE_RAS
            )
        return write_scan(self.query / relative, image, affine_ras=SMALL_AFFINE_RAS)

    def options(self, **changes: Any) -> PseudoLabelOptions:
        """Return the options of a run."""
        chosen = {
            "support_dir": self.support,
            "query_dir": self.query,
            "output_dir": self.output,
            "sam2": str(self.sam2),
            "device": "cpu",
            **changes,
        }
        return PseudoLabelOptions(**chosen)

    def run(self, **changes: Any) -> PseudoLabelSummary:
        """Run and check what holds after any run."""
        executor = changes.pop("executor", None)
        summary = pseudo_label(self.options(**changes), executor=executor)
        output = changes.get("output_dir", self.output)
        assert not list(output.rglob(".*")), "something temporary was left"
        return summary

    def paths(self, case: str, sequence: str | None = "T2") -> PseudoLabelPaths:
        """Return where a pseudo label lies."""
        series = ImageFile(case=case, sequence=sequence, path=Path())
        return pseudo_label_paths(self.output, series)

    def record(self, case: str, sequence: str | None = "T2") -> dict[str, Any]:
        """Read what was noted of a pseudo label."""
        return json.loads(self.paths(case, sequence).record.read_text())


def without_times(content: Any) -> Any:
    """Return JSON data without what differs between equal runs."""
    if isinstance(content, dict):
        return {k: without_times(v) for k, v in content.items() if k != "seconds"}
    if isinstance(content, list):
        return [without_times(item) for item in content]
    return content
