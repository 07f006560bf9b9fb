"""Peak memory and time for the largest kind of scan, and the time of ``--help``.

A phantom of 1024 x 1024 x 32 voxels goes through ``predict`` on the CPU.

    python benchmarks/large_volume.py --json benchmarks/results/large_volume.json
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from common import ROOT, parser, report, run


def main() -> None:
    options = parser(__doc__).parse_args()
    entrypoint = [sys.executable, str(ROOT / "entrypoint.py")]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_phantom(scratch / "GED4.nii.gz")
        timed = run(
            [
                *entrypoint,
                *("predict", "--device", "cpu", "--input", str(scratch / "GED4.nii.gz")),
                *("--output", str(scratch / "out")),
            ]
        )
    help_seconds = [run([*entrypoint, "--help"]).seconds for _ in range(5)]
    figures = {
        "voxels": "1024 x 1024 x 32, int16",
        "peak_memory_mb": round(timed.peak_memory_mb),
        "seconds": round(timed.seconds, 1),
        "help_seconds": round(statistics.median(help_seconds), 3),
    }
    report(figures, options.json)


def write_phantom(path: Path) -> None:
    """Write a phantom on a fine grid: rendered at quarter resolution, each voxel repeated."""
    import nibabel
    import numpy as np

    from sslmedsam2.phantom.anatomy import make_anatomy
    from sslmedsam2.phantom.rendering import axial_grid, render_sequence

    grid = axial_grid(shape_zyx=(32, 256, 256), spacing_zyx_mm=(6.0, 1.4, 1.4))
    image, _ = render_sequence(make_anatomy(7), "GED4", grid=grid, seed=7)
    fine = image.repeat(4, axis=1).repeat(4, axis=2)
    affine = np.diag([-0.35, -0.35, 6.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(fine.T.astype(np.int16), affine), path)


if __name__ == "__main__":
    main()
