"""Running ``predict`` on small inputs, and looking at what it left."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from tiny_scans import abdomen, write_scan

from sslmedsam2.errors import SslMedSam2Error
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.reading import read_grid, read_mask
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.reporting.run_report import RunReport, SeriesResult, load_report


@dataclass(frozen=True)
class Ended:
    """How a run ended: by the process's exit code, the report on disk and the error, if any."""

    exit_code: int
    report: RunReport
    error: SslMedSam2Error | None

    def of(self, case: str, sequence: str | None = None) -> SeriesResult:
        """Return the one result of a case."""
        found = [
            result
            for result in self.report.series
            if result.case == case and sequence in (None, result.sequence)
        ]
        assert len(found) == 1, f"{case}: {found}"
        return found[0]


class Workplace:
    """An input folder, an output folder beside it, and a model."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root = root
        self.input = root / "input"
        self.output = root / "output"
        self.model = model
        self.input.mkdir(exist_ok=True)

    def copy_to(self, root: Path) -> Workplace:
        """Copy all folders to a root that does not exist yet, times of files included."""
        return Workplace(shutil.copytree(self.root, root), self.model)

    def add(self, relative: str, **how: object) -> Path:
        """Write a sound scan."""
        return write_scan(self.input / relative, **how)

    def run(self, **options: object) -> Ended:
        """Run ``predict`` on the CPU, without previews unless told otherwise."""
        settings = {
            "input_path": self.input,
            "output_dir": self.output,
            "model_dir": self.model,
            "device": "cpu",
            "mirror": False,
            "previews": False,
            **options,
        }
        executor = settings.pop("executor", None)
        report_path = settings["output_dir"] / "run_report.json"
        try:
            report = predict(PredictOptions(**settings), executor=executor)
        except SslMedSam2Error as error:
            return Ended(int(error.exit_code), load_report(report_path), error)
        on_disk = load_report(report_path)
        assert on_disk.exit_code == report.exit_code
        assert list(on_disk.series) == sorted(report.series, key=lambda result: result.key)
        return Ended(report.exit_code, report, None)

    def written(self) -> set[str]:
        """List the output's files, hidden ones too."""
        files = (path for path in self.output.rglob("*") if not path.is_dir())
        return {path.relative_to(self.output).as_posix() for path in files}

    def mask_of(self, result: SeriesResult) -> Path:
        """Return where a result's mask lies."""
        return self.output / result.output_path

    def tree_outside(self) -> dict[str, tuple[int, int, int]]:
        """Describe everything around the output folder, to see whether a run changes it."""
        stats = {
            path.relative_to(self.root).as_posix(): path.lstat()
            for path in self.root.rglob("*")
            if self.output not in (path, *path.parents)
        }
        return {name: (s.st_size, s.st_mtime_ns, s.st_mode) for name, s in stats.items()}


def assert_valid_mask(mask_path: Path, image_path: Path) -> None:
    """Check that a mask is uint8, not empty, of 0 and 1, and on its image's grid."""
    mask = nib.load(mask_path)
    values = np.asarray(mask.dataobj)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(values)) == {0, 1}
    image = read_grid(image_path)
    assert values.shape == image.source.native_shape
    assert same_grid(read_mask(mask_path).geometry, image.geometry)


def liver_dice(mask_path: Path) -> float:
    """Compare a mask with the liver of an ``abdomen`` that was stored canonically."""
    found, truth = read_mask(mask_path).array_zyx, abdomen()[1]
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))
