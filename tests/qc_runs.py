"""Small finished runs as ``predict`` leaves them: a report, masks and previews, made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny_scans import abdomen, write_scan

from sslmedsam2.imaging.orientation import to_canonical
from sslmedsam2.imaging.reading import read_volume
from sslmedsam2.imaging.writing import write_mask
from sslmedsam2.reporting.previews import draw_preview
from sslmedsam2.reporting.run_report import (
    InputGeometry,
    LeftOutRecord,
    ModelRecord,
    SeriesResult,
    SeriesStatus,
    start_report,
    write_report,
)

HOSTILE_CASE = "<img src=x onerror=window.hacked=1>"
HOSTILE_TEXT = "</script><script>window.hacked=2</script> & <b>bold</b>"


class QcRun:
    """An input folder, an output folder and, on request, references."""

    def __init__(self, root: Path) -> None:
        self.input = root / "input"
        self.run = root / "run"
        self.references = root / "references"
        self.page = self.run / "report"
        self._report = start_report(
            models=(ModelRecord("tiny", {"plans.json": "ab" * 32, "fold_0/final.pth": "cd" * 32}),),
            device="cpu",
            backend="torch fp32",
            options={"mode": "exact", "sequences": None},
        )
        self._save()

    def add(
        self,
        case: str,
        sequence: str = "GED4",
        *,
        shift: int = 0,
        preview: bool = False,
        **facts: object,
    ) -> SeriesResult:
        """Add a scan with its mask, the true liver moved by some voxels along x."""
        voxels, liver = abdomen()
        name = f"Vendor-A/{case}/{sequence}.nii.gz"
        image = read_volume(write_scan(self.input / name, voxels))
        mask = np.roll(liver, shift, axis=2)
        output_name = f"LiSeg_pred/{case}/{sequence}_pred.nii.gz"
        write_mask(mask, like=image, path=self.run / output_name)
        preview_name = f"previews/{case}_{sequence}.png" if preview else None
        if preview_name:
            draw_preview(to_canonical(image), mask, path=self.run / preview_name, title=case)
        result = SeriesResult(
            case=case,
            vendor="A",
            sequence=sequence,
            input_path=name,
            output_path=output_name,
            status=SeriesStatus.OK,
            seconds={"read": 0.5, "network": 2.0},
            liver_volume_ml=1432.1,
            components=1,
            touches_border=False,
            mean_foreground_confidence=0.95,
            geometry=InputGeometry.of(image),
            preview_path=preview_name,
        )
        return self.note(replace(result, **facts))

    def add_failed(self, case: str, *, error: str) -> SeriesResult:
        """Add a series that left no mask."""
        name = f"Vendor-A/{case}/GED4.nii.gz"
        failed = SeriesResult(case, "A", "GED4", name, None, SeriesStatus.FAILED, error=error)
        return self.note(failed)

    def add_reference(self, case: str, sequence: str = "GED4") -> Path:
        """Write the true liver of a scan."""
        path = self.references / case / f"mask_{sequence}.nii.gz"
        return write_scan(path, abdomen()[1], dtype=np.uint8)

    def leave_out(self, case: str, *, reason: str) -> None:
        """Enter a series that was not segmented."""
        record = LeftOutRecord(case, "T1", f"{case}/T1.nii.gz", reason)
        self._report = replace(self._report, left_out=(*self._report.left_out, record))
        self._save()

    def note(self, result: SeriesResult) -> SeriesResult:
        """Enter a result in the report."""
        self._report = self._report.with_series(result)
        self._save()
        return result

    def _save(self) -> None:
        write_report(self._report.ended(exit_code=0), self.run / "run_report.json")
