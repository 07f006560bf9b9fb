"""Read labelled images, and decide which voxels of a mask are liver.

Training, supports, fold scores and evaluation all use this module, so they accept the same files.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import (
    SAME_GRID_VOXELS,
    affine_lps,
    corners_xyz,
    same_grid,
)
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.nrrd_reading import (
    NrrdHeader,
    nrrd_geometry,
    parse_nrrd_header,
    read_nrrd_channels,
)
from sslmedsam2.imaging.reading import read_grid, read_stored, read_volume
from sslmedsam2.imaging.stored import image_error, repair, unreadable_header
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, MaskVolume, MaskZYX, Source, Volume

logger = logging.getLogger(__name__)

SOFT = 1e-3
"""Voxels of a mask that differ by at most this from 0 or its foreground value are rounded."""

N_ORGANS = 13
"""Number of organs in a map of organs; the liver is the first."""

_ROUNDED = repair("soft_mask", f"voxels within {SOFT:g} of a whole label were rounded to it")
_LIVER = 1
_LARGEST_TRAINING_LABEL = 3
_LISTED_VALUES = 8
_SEGMENTATION_SUFFIX = ".seg.nrrd"
_SEGMENT_KEY = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer|Tags)")
_LIVER_CODE = "SCT^10200004^"
"""Code of the liver in SNOMED CT, as Slicer writes it into the tags of a segment."""


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


@dataclass(frozen=True)
class _Segment:
    """An entry of a Slicer segmentation's header: ``value`` in ``layer`` is this segment."""

    name: str
    value: int
    layer: int
    is_liver: bool


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
    header = _nrrd_header(path)
    segments = () if header is None else _segments(path, header)
    if header is not None and (segments or path.name.lower().endswith(_SEGMENTATION_SUFFIX)):
        mask = _read_segmentation(path, header, segments, label=label, strict=strict)
        return mask if grid is None or same_grid(mask.geometry, grid) else _placed(mask, grid)
    stored = read_stored(path)
    mask_zyx, notes = _liver(path, stored.array_zyx, label=label, strict=strict)
    return stored.with_mask(mask_zyx, *notes)


def read_label_map(path: Path, *, largest: int) -> MaskVolume:
    """Read a label map, its values kept.

    Raises InputError: the file cannot be read, or a voxel is not a whole number from 0 to
    ``largest``, which is at most 255 (``not_labels``).
    """
    stored = read_stored(path)
    off = _off_whole_numbers(stored.array_zyx)
    low, high = stored.array_zyx.min(), stored.array_zyx.max()
    if not (off <= SOFT and low >= -SOFT and high <= largest + SOFT):
        reason = f"a voxel is not a whole number from 0 to {largest}"
        raise image_error(path, "not_labels", reason)
    labels = np.rint(stored.array_zyx).astype(np.uint8)
    return stored.with_mask(labels, *((_ROUNDED,) if off > 0 else ()))


def _off_whole_numbers(voxels_zyx: ArrayZYX) -> float:
    """Return the largest distance of a voxel from a whole number; NaN if a voxel is not finite."""
    with np.errstate(invalid="ignore"):
        return float(np.abs(voxels_zyx - np.rint(voxels_zyx)).max())


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


def _liver(
    path: Path, voxels_zyx: ArrayZYX, *, label: int | None, strict: bool
) -> tuple[MaskZYX, tuple[str, ...]]:
    """Return the liver as 0 and 1, and notes on rounding."""
    value = float(voxels_zyx.max())
    if np.isfinite(value) and value > SOFT and (label is None or not strict):
        liver = np.abs(voxels_zyx - value) <= SOFT
        if (liver | (np.abs(voxels_zyx) <= SOFT)).all():
            notes = []
            if label is None and abs(value - 1) > SOFT:
                notes.append(repair("label", f"the value {value:g} is taken as the liver"))
            if (np.where(liver, value, 0) != voxels_zyx).any():
                notes.append(_ROUNDED)
            return liver.view(np.uint8), tuple(notes)
    if not voxels_zyx.any():
        return np.zeros(voxels_zyx.shape, np.uint8), ()
    if label is None or not _off_whole_numbers(voxels_zyx) <= SOFT:
        values = np.unique(voxels_zyx)
        what = "more than two values" if len(values) > 2 else "other values than 0 and one above"
        raise InputError(
            path,
            kind="not_a_mask",
            reason=f"it holds {what} ({_listed(values)})",
            remedy="Choose the liver's with --label, or give a mask of the liver alone",
        )
    liver = np.abs(voxels_zyx - label) <= SOFT
    if not liver.any():
        raise _no_such_label(path, label, found=f"the values {_listed(np.unique(voxels_zyx))}")
    return liver.view(np.uint8), (_ROUNDED,) if (voxels_zyx[liver] != label).any() else ()


def _listed(values: npt.NDArray[np.float32]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:_LISTED_VALUES])
    more = len(values) - _LISTED_VALUES
    return f"{shown} and {more} more" if more > 0 else shown


def _no_such_label(path: Path, label: int, *, found: str) -> InputError:
    return image_error(path, "no_such_label", f"no voxel has the label {label}; it holds {found}")


def _nrrd_header(path: Path) -> NrrdHeader | None:
    """Read the header of an NRRD file; None for other files, and where it cannot be read."""
    if not path.name.lower().endswith(".nrrd"):
        return None
    # The caller then uses another reader, which reports the error.
    with contextlib.suppress(InputError, OSError):
        return parse_nrrd_header(path)
    return None


def _read_segmentation(
    path: Path,
    header: NrrdHeader,
    segments: tuple[_Segment, ...],
    *,
    label: int | None,
    strict: bool,
) -> MaskVolume:
    """Read a Slicer segmentation on its own grid, which may be a part of the image's."""
    voxels, geometry = _layers(header)
    notes: tuple[str, ...]
    if segments:
        segment = _chosen(path, segments, label=label, strict=strict)
        if not 0 <= segment.layer < voxels.shape[-1]:
            raise _several_segments(path, f"no layer {segment.layer} of {segment.name!r}")
        mask_zyx = (voxels[..., segment.layer] == segment.value).astype(np.uint8)
        notes = (repair("segment", f"segment {segment.name!r} is taken as the liver"),)
    elif voxels.shape[-1] == 1:
        mask_zyx, notes = _liver(path, voxels[..., 0], label=label, strict=strict)
    else:
        raise _several_segments(path, f"{voxels.shape[-1]} layers without names")
    source = Source(path, header.native_shape, header.dtype)
    return MaskVolume(mask_zyx, geometry, source, notes)


def _segments(path: Path, header: NrrdHeader) -> tuple[_Segment, ...]:
    fields: dict[int, dict[str, str]] = {}
    for key, text in header.texts.items():
        match = _SEGMENT_KEY.fullmatch(key)
        if match:
            fields.setdefault(int(match[1]), {})[match[2]] = text.strip()
    return tuple(
        _Segment(
            name=found.get("Name", f"segment {number}"),
            value=_number(found, "LabelValue", default=1, path=path),
            layer=_number(found, "Layer", default=0, path=path),
            is_liver=found.get("Name", "").casefold() == "liver"
            or _LIVER_CODE in found.get("Tags", ""),
        )
        for number, found in sorted(fields.items())
    )


def _number(fields: dict[str, str], key: str, *, default: int, path: Path) -> int:
    text = fields.get(key, str(default))
    try:
        return int(text)
    except ValueError as error:
        reason = f"{key} of a segment is {text[:20]!r} instead of a number"
        raise unreadable_header(path, reason) from error


def _chosen(
    path: Path, segments: tuple[_Segment, ...], *, label: int | None, strict: bool
) -> _Segment:
    """Return the segment with the label, else the only one, else the one named liver."""
    listed = ", ".join(f"{one.value} {one.name!r}" for one in segments)
    if label is not None and (strict or len(segments) > 1):
        found = [segment for segment in segments if segment.value == label]
        if not found:
            raise _no_such_label(path, label, found=f"the segments {listed}")
    else:
        found = list(segments)
    if len(found) > 1:
        found = [segment for segment in found if segment.is_liver]
    if len(found) != 1:
        raise _several_segments(path, f"several segments ({listed})")
    return found[0]


def _several_segments(path: Path, what: str) -> InputError:
    return InputError(
        path,
        kind="not_a_mask",
        reason=f"it holds {what}, and which is the liver is not clear",
        remedy="Choose the liver's value with --label, or call one segment 'liver'",
    )


def _layers(header: NrrdHeader) -> tuple[ArrayZYX, Geometry]:
    """Read the voxels as ``[z, y, x, layer]``, and where they lie."""
    size = header.native_shape
    if len(size) != 3 or min(size) < 1:
        raise InputError(
            header.path,
            kind="not_a_mask",
            reason=f"a segmentation of {' x '.join(map(str, size))} voxels cannot be used",
            remedy="Export the segmentation as a volume again",
        )
    geometry, _ = nrrd_geometry(header, shape_zyx=(size[2], size[1], size[0]))
    return read_nrrd_channels(header), geometry


def _placed(mask: MaskVolume, grid: Geometry) -> MaskVolume:
    """Copy a mask into an empty one on the grid of the image, without interpolation."""
    geometry = mask.geometry
    to_grid = np.linalg.inv(affine_lps(grid)) @ affine_lps(geometry)
    exact = np.rint(to_grid)
    off_voxels = np.abs(corners_xyz(geometry) @ (to_grid - exact).T).max()
    turn = exact[:3, :3]
    is_turn = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    ends = corners_xyz(geometry) @ exact.T
    first, last = ends[:, :3].min(axis=0), ends[:, :3].max(axis=0)
    inside = (first >= 0).all() and (last < np.array(grid.shape_zyx[::-1])).all()
    if off_voxels > SAME_GRID_VOXELS or not is_turn or not inside:
        cause = "its extent leaves the image" if is_turn and not inside else "its voxels differ"
        raise InputError(
            mask.source.path,
            kind="grid_mismatch",
            reason=f"the segmentation lies on another grid than its image ({cause})",
            remedy="Export it with the image as the reference geometry",
        )
    mask_xyz = mask.array_zyx.transpose(2, 1, 0).transpose(np.abs(turn).argmax(axis=1))
    flipped = tuple(axis for axis in range(3) if turn[axis].sum() < 0)
    whole = np.zeros(grid.shape_zyx, np.uint8)
    x, y, z = (slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
    whole[z, y, x] = np.flip(mask_xyz, flipped).transpose(2, 1, 0)
    note = repair("placed", "the segmentation covers a part of the image and was placed on it")
    return MaskVolume(whole, grid, mask.source, (*mask.repairs, note))
