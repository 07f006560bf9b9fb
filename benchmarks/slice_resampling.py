"""What repeating slices costs: ideal masks through nnU-Net's resampling to a grid and back.

nnU-Net's own function takes each reference mask to a coarser slice distance and back, once with
`order_z` 0 (slices repeated, nnU-Net's default) and once with 1 (slices interpolated). An ideal
network on the coarse grid could not do better.

    python benchmarks/slice_resampling.py --json benchmarks/results/slice_resampling.json
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import parser, report, require_real_data
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.volume import mask_dice

SLICES_MM = 6.0


def main() -> None:
    options = parser(__doc__).parse_args()
    report(
        {name: of_folder(require_real_data(name)) for name in ("totalseg_ct", "btcv_ct")},
        options.json,
    )


def of_folder(folder: Path) -> dict[str, Any]:
    paths = sorted(folder.rglob("mask_*.nii.gz"))
    rows = [kept(path) for path in paths]
    return {
        "masks": len(rows),
        **{
            name: round(statistics.mean(row[name] for row in rows), 4)
            for name in ("order_z_0_dice", "order_z_1_dice")
        },
    }


def kept(path: Path) -> dict[str, float]:
    volume = read_mask(path)
    mask = (volume.array_zyx > 0).astype(np.float32)
    spacing = volume.geometry.spacing_zyx_mm
    # In-plane spacing stays, so that only the slices are looked at.
    coarse_spacing = (SLICES_MM, *spacing[1:])
    coarse = (round(mask.shape[0] * spacing[0] / SLICES_MM), *mask.shape[1:])
    row = {}
    for order_z in (0, 1):
        there = resampled(mask, coarse, spacing, coarse_spacing, order_z)
        back = resampled(there, mask.shape, coarse_spacing, spacing, order_z)
        row[f"order_z_{order_z}_dice"] = mask_dice(back > 0.5, mask > 0.5)
    return row


def resampled(
    array: npt.NDArray[np.float32],
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    new_spacing: tuple[float, ...],
    order_z: int,
) -> npt.NDArray[np.float32]:
    return resample_data_or_seg_to_shape(
        array[None], shape, spacing, new_spacing,
        is_seg=False, order=1, order_z=order_z, force_separate_z=None,
    )[0]  # fmt: skip


if __name__ == "__main__":
    main()
