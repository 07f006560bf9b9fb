"""Read segmentations of 3D Slicer (``.seg.nrrd``), which may cover a part of their image."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import SAME_GRID_VOXELS, affine_lps, corners_xyz, same_grid
from sslmedsam2.imaging.liver_values import liver_by_value, no_such_label
from sslmedsam2.imaging.nrrd_reading import (
    NrrdHeader,
    nrrd_geometry,
    parse_nrrd_header,
    read_nrrd_channels,
)
from sslmedsam2.imaging.stored import repair, unreadable_header
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, MaskVolume, Source

_SUFFIX: Final = ".seg.nrrd"
_SEGMENT_KEY: Final = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer|Tags)")
_LIVER_CODE: Final = "SCT^10200004^"
"""Code of the liver in SNOMED CT, as Slicer writes it into the tags of a segment."""


@dataclass(frozen=True)
class _Segment:
    """An entry of a Slicer segmentation's header: ``value`` in ``layer`` is this segment."""

    name: str
    value: int
    layer: int
    is_liver: bool


def read_slicer_liver(
    path: Path, *, label: int | None, grid: Geometry | None, strict: bool
) -> MaskVolume | None:
    """Read the liver of a Slicer segmentation; None for a file of another kind.

    The parameters and errors are those of :func:`sslmedsam2.imaging.labelled.read_liver_mask`.
    """
    header = _nrrd_header(path)
    segments = () if header is None else _segments(path, header)
    if header is None or not (segments or path.name.lower().endswith(_SUFFIX)):
        return None
    mask = _read_segmentation(path, header, segments, label=label, strict=strict)
    return mask if grid is None or same_grid(mask.geometry, grid) else _placed(mask, grid)


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
        mask_zyx, notes = liver_by_value(path, voxels[..., 0], label=label, strict=strict)
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
            raise no_such_label(path, label, found=f"the segments {listed}")
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
