"""A handful of labelled abdomens and a network small enough to train on them within seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_scans import CANONICAL_AFFINE_RAS, abdomen, write_scan

from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.nnunet.plans import CompactPreset

PRESET = CompactPreset(
    spacing_zyx_mm=(14.0, 8.0, 8.0),
    patch_zyx=(8, 32, 32),
    features=(4, 6, 8),
    strides_zyx=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
)
SPLEEN = 4


def write_labelled_case(
    folder: Path,
    *,
    sequence: str = "T2",
    seed: int = 0,
    flips_zyx: tuple[int, ...] = (),
    with_organs: bool = False,
) -> ImageFile:
    """Write an abdomen with its liver mask, stored flipped along some of its axes.

    The map of organs, if wanted, holds the liver and a block that stands for the spleen.
    """
    image, liver = abdomen(seed=seed)
    organs = liver.copy()
    organs[10:16, 30:40, 55:65] = SPLEEN
    arrays = {sequence: image, f"mask_{sequence}": liver}
    if with_organs:
        arrays[f"organs_{sequence}"] = organs
    affine = _flipped_affine(image.shape, flips_zyx)
    for name, array in arrays.items():
        dtype = np.int16 if name == sequence else np.uint8
        stored = np.flip(array, flips_zyx)
        write_scan(folder / f"{name}.nii.gz", stored, dtype=dtype, affine_ras=affine)
    return ImageFile(
        case=folder.name,
        sequence=sequence,
        path=folder / f"{sequence}.nii.gz",
        mask=folder / f"mask_{sequence}.nii.gz",
        organs=folder / f"organs_{sequence}.nii.gz" if with_organs else None,
    )


def write_labelled_cases(folder: Path, *, count: int) -> list[ImageFile]:
    """Write that many different abdomens, called case1 and so on."""
    return [write_labelled_case(folder / f"case{n}", seed=n) for n in range(1, count + 1)]


def write_dataset(folder: Path) -> Path:
    """Preprocess two cases in a work directory, split over two folds; return the directory."""
    # Takes seconds, and not all that use this module train.
    from sslmedsam2.nnunet.dataset import alternating_splits, build_dataset, write_splits
    from sslmedsam2.nnunet.training import preprocessed_dir

    images = write_labelled_cases(folder / "data", count=2)
    dataset = build_dataset(images, preprocessed_dir=preprocessed_dir(folder), preset=PRESET)
    write_splits(dataset, alternating_splits(images, n_folds=2))
    return folder


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return each TensorBoard curve of a fold as a list of (epoch, value)."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the extra [tensorboard]",
    )
    # Takes seconds, and not all that use this module train.
    from sslmedsam2.nnunet.curves import FOLDER_NAME

    events = accumulator.EventAccumulator(str(folder / FOLDER_NAME))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def _flipped_affine(shape_zyx: tuple[int, ...], flips_zyx: tuple[int, ...]) -> np.ndarray:
    affine = CANONICAL_AFFINE_RAS.copy()
    for axis in flips_zyx:
        column = 2 - axis
        affine[:3, 3] += affine[:3, column] * (shape_zyx[axis] - 1)
        affine[:3, column] *= -1
    return affine
