"""Read labelled images, and decide which voxels of a mask are liver.

Training, supports, fold scores and evaluation all use this module, so they accept the same files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.liver_values import ROUNDED, SOFT, liver_by_value, off_whole_numbers
from sslmedsam2.imaging.reading import read_grid, read_stored, read_volume
from sslmedsam2.imaging.slicer_segmentation import read_slicer_liver
from sslmedsam2.imaging.stored import image_error
from sslmedsam2.imaging.volume import Geometry, MaskVolume, MaskZYX, Volume

logger = logging.getLogger(__name__)

N_ORGANS = 13
"""Number of organs in a map of organs; the liver is the first."""

_LIVER = 1
_LARGEST_TRAINING_LABEL = 3


@dataclass(frozen=True)
class LabelledVolume:
    """An image with its labels, ``[z, y, x]`` in the orientation of the image's file.

    Attributes
    ----------
    labels_zyx
        1 is liver, 0 background; of a pseudo label also 2 and 3 (see ``nnunet/plans.py``).
    organs_zyx
        The map of organs, 0 to 13; None without one.
    notes
        Rounding, placement and repairs, one line each.
    """

    volume: Volume
    labels_zyx: MaskZYX
    organs_zyx: MaskZYX | None
    notes: tuple[str, ...]


def read_labelled(image: ImageFile) -> LabelledVolume:
    """Read an image with its mask and, where there is one, its map of organs.

    Raises
    ------
    InputError
        A file cannot be read; the mask or the map lies on another grid than the image
        (``shape_mismatch``, ``grid_mismatch``); the mask holds several foreground values
        (``not_a_mask``), not the label asked for (``no_such_label``), no liver
        (``empty_mask``) or nothing else (``full_mask``); a map holds something else than labels
        (``not_labels``).
    """
    assert image.mask is not None
    volume = read_volume(image.path)
    grid = volume.geometry
    if image.pseudo:
        mask = read_label_map(image.mask, largest=_LARGEST_TRAINING_LABEL)
    else:
        mask = read_liver_mask(image.mask, label=image.label, grid=grid)
    _check_grid(mask, grid, image)
    if not (mask.array_zyx == _LIVER).any():
        raise image_error(image.mask, "empty_mask", "the mask holds no liver")
    if (mask.array_zyx == _LIVER).all():
        raise image_error(image.mask, "full_mask", "the mask calls every voxel liver")
    organs = None
    if image.organs is not None:
        organs = read_label_map(image.organs, largest=N_ORGANS)
        _check_grid(organs, grid, image)
    return LabelledVolume(
        volume=volume,
        labels_zyx=mask.array_zyx,
        organs_zyx=None if organs is None else organs.array_zyx,
        notes=tuple(
            f"{read.source.path}: {note}"
            for read in (volume, mask, organs)
            if read is not None
            for note in read.repairs
        ),
    )


def check_labelled(images: Iterable[ImageFile]) -> None:
    """Read every labelled image once, and log rounding and placement.

    Raises InputError: of the first image that cannot be used; errors of others are logged.
    """
    errors = []
    for image in images:
        try:
            notes = read_labelled(image).notes
        except InputError as error:
            errors.append(error)
        else:
            for note in notes:
                logger.info(note)
    for other in errors[1:]:
        logger.error("%s", other)
    if errors:
        raise errors[0]


def read_mask_of(image: ImageFile) -> MaskVolume:
    """Read the mask of an image without the image's voxels; it may be empty.

    Raises InputError: as :func:`read_labelled`.
    """
    assert image.mask is not None
    grid = read_grid(image.path).geometry
    mask = read_liver_mask(image.mask, label=image.label, grid=grid)
    _check_grid(mask, grid, image)
    return mask


def read_liver_mask(
    path: Path, *, label: int | None = None, grid: Geometry | None = None, strict: bool = True
) -> MaskVolume:
    """Read a mask of the liver: 1 is liver, 0 is not. An empty mask is legal.

    Parameters
    ----------
    label
        The value that is liver; None for the only foreground value (1, 255, ...).
    grid
        Grid of the image. A Slicer segmentation that covers a part of it is placed on it. Other
        masks keep their own grid, which the caller must compare.
    strict
        Require ``label`` even if the mask has only one foreground value.

    Raises
    ------
    InputError
        The file cannot be read; it holds several foreground values, or several segments of which
        none is called liver, and no ``label`` chooses (``not_a_mask``); it holds other values
        than ``label`` only (``no_such_label``); a Slicer segmentation does not fit into ``grid``
        (``grid_mismatch``).
    """
    segmentation = read_slicer_liver(path, label=label, grid=grid, strict=strict)
    if segmentation is not None:
        return segmentation
    stored = read_stored(path)
    mask_zyx, notes = liver_by_value(path, stored.array_zyx, label=label, strict=strict)
    return stored.with_mask(mask_zyx, *notes)


def read_label_map(path: Path, *, largest: int) -> MaskVolume:
    """Read a label map, its values kept.

    Raises InputError: the file cannot be read, or a voxel is not a whole number from 0 to
    ``largest``, which is at most 255 (``not_labels``).
    """
    stored = read_stored(path)
    off = off_whole_numbers(stored.array_zyx)
    low, high = stored.array_zyx.min(), stored.array_zyx.max()
    if not (off <= SOFT and low >= -SOFT and high <= largest + SOFT):
        reason = f"a voxel is not a whole number from 0 to {largest}"
        raise image_error(path, "not_labels", reason)
    labels = np.rint(stored.array_zyx).astype(np.uint8)
    return stored.with_mask(labels, *((ROUNDED,) if off > 0 else ()))


def _check_grid(mask: MaskVolume, grid: Geometry, image: ImageFile) -> None:
    ours, theirs = mask.geometry.shape_zyx, grid.shape_zyx
    if ours != theirs:
        reason = f"the mask has shape {ours}, its image {theirs}"
        raise image_error(mask.source.path, "shape_mismatch", reason)
    if not same_grid(mask.geometry, grid):
        reason = (
            f"the mask lies on another grid than its image {image.path.name}: its affine"
            " (position, orientation or voxel size) differs"
        )
        raise image_error(mask.source.path, "grid_mismatch", reason)
