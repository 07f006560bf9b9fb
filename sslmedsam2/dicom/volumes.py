"""Split the frames of a series into stacks, and make a volume of each that is evenly spaced.

The frames of a stack have one size and orientation, and lie at different places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sslmedsam2.dicom.model import DicomVolume, Frame
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import geometry_from_steps

FEWEST_SLICES = 6
"""A liver does not fit into fewer; localizers and test images have fewer."""

_UNEVEN = 0.1
"""Largest part of the slice distance by which a slice may lie off its place."""

_SAME_DIRECTION = 1e-2
"""Largest difference of a direction cosine (half a degree) within a stack."""

_SAME_SPACING = 1e-3
"""Largest relative difference of pixel spacings within a stack."""

_SAME_PLACE_MM = 1e-2
"""Slices nearer to each other than this lie at the same place."""

_DIVIDERS: tuple[Callable[[Frame], Any], ...] = (
    lambda frame: frame.image_type,
    # Some makers give no b-value to the images without diffusion weighting.
    lambda frame: -1.0 if frame.b_value is None else frame.b_value,
    lambda frame: frame.diffusion_direction,
    lambda frame: frame.echo_time_ms,
    lambda frame: frame.temporal_position,
    lambda frame: frame.trigger_time_ms,
    lambda frame: frame.scan_options,
    lambda frame: frame.acquisition_number,
    lambda frame: frame.acquired_s,
)
"""Attributes that may separate the volumes of one series, in the order in which they are tried."""


def split_series(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Divide the frames of a series into stacks: largest group first, then by dividing value.

    A stack that still holds several images at one place could not be divided further.
    """
    groups = sorted(_alike(frames), key=len, reverse=True)
    return [stack for group in groups for stack in _divide(group)]


def normal_of(frame: Frame) -> npt.NDArray[np.float64]:
    """Return the unit vector along which the slices of a right-handed stack follow."""
    assert frame.orientation is not None
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    return np.cross(row, column)


def _most_at_one_place(frames: Sequence[Frame]) -> int:
    """Return how many frames share a position along the normal; 1 in a volume."""
    if any(frame.position_xyz_mm is None or frame.orientation is None for frame in frames):
        return 1
    positions = np.array([frame.position_xyz_mm for frame in frames], dtype=np.float64)
    heights = np.sort(positions @ normal_of(frames[0]))
    places = np.cumsum(np.diff(heights, prepend=heights[0]) > _SAME_PLACE_MM)
    return int(np.bincount(places).max())


def _alike(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Group frames of one size, spacing and orientation."""
    groups: list[list[Frame]] = []
    for frame in frames:
        home = next((group for group in groups if _is_alike(group[0], frame)), None)
        if home is None:
            groups.append([frame])
        else:
            home.append(frame)
    return groups


def _is_alike(one: Frame, other: Frame) -> bool:
    def near(
        first: Sequence[float] | None, second: Sequence[float] | None, *, rtol: float, atol: float
    ) -> bool:
        if first is None or second is None:
            return first is second
        return bool(np.allclose(first, second, rtol=rtol, atol=atol))

    return (
        (one.rows, one.columns, one.is_colour) == (other.rows, other.columns, other.is_colour)
        and near(one.spacing_yx_mm, other.spacing_yx_mm, rtol=_SAME_SPACING, atol=0)
        and near(one.orientation, other.orientation, rtol=0, atol=_SAME_DIRECTION)
    )


def _divide(group: list[Frame]) -> list[list[Frame]]:
    """Divide a group until no part holds two images at one place, if that can be done."""
    crowd = _most_at_one_place(group)
    for value_of in _DIVIDERS if crowd > 1 else ():
        parts: dict[Any, list[Frame]] = defaultdict(list)
        for frame in group:
            parts[value_of(frame)].append(frame)
        # More values than images at a place: a value for each image, which divides nothing.
        if None not in parts and 1 < len(parts) <= crowd:
            return [stack for value in sorted(parts) for stack in _divide(parts[value])]
    return _by_instance_number(group, crowd) if crowd > 1 else [group]


def _by_instance_number(group: list[Frame], crowd: int) -> list[list[Frame]]:
    """Divide by InstanceNumber where it counts volume after volume, or place after place."""
    numbers = [frame.instance_number for frame in group]
    if None in numbers or len(set(numbers)) < len(numbers) or len(group) % crowd:
        return [group]
    ordered = sorted(group, key=lambda frame: frame.instance_number or 0)
    size = len(group) // crowd
    blocks = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    interleaved = [ordered[first::crowd] for first in range(crowd)]
    for stacks in (blocks, interleaved):
        if all(_most_at_one_place(stack) == 1 for stack in stacks):
            return stacks
    return [group]


def make_volume(frames: Sequence[Frame], *, case: str, series: str) -> DicomVolume:
    """Order a stack's frames along their normal and find the geometry.

    Raises InputError: of kind ``truncated_dicom``, ``no_position``, ``same_place``,
    ``missing_slices`` or ``uneven_slices``, or a kind of ``imaging/geometry.py``.
    """
    name = f"{case}/{series}"
    _check_frames(frames, name)
    normal = normal_of(frames[0])
    ordered = sorted(frames, key=lambda frame: float(np.dot(normal, _position(frame))))
    step = _slice_step(ordered, normal, name)
    first = ordered[0]
    assert first.spacing_yx_mm is not None
    assert first.orientation is not None
    between_rows, between_columns = first.spacing_yx_mm
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    geometry, repairs = geometry_from_steps(
        Path(name),
        shape_zyx=(len(ordered), first.rows, first.columns),
        steps_xyz_mm=np.stack([row * between_columns, column * between_rows, step], axis=1),
        origin_xyz_mm=_position(first),
    )
    return DicomVolume(case, series, tuple(ordered), geometry, repairs)


def _check_frames(frames: Sequence[Frame], name: str) -> None:
    truncated = sum(frame.is_truncated for frame in frames)
    if truncated:
        raise InputError(
            name,
            kind="truncated_dicom",
            reason=f"{truncated} of its {len(frames)} images end before their last pixel",
            remedy="Copy or export the series again",
        )
    unplaced = sum(
        frame.position_xyz_mm is None or frame.orientation is None or frame.spacing_yx_mm is None
        for frame in frames
    )
    if unplaced:
        raise InputError(
            name,
            kind="no_position",
            reason=f"{unplaced} of its {len(frames)} images have no usable position, "
            "orientation or pixel spacing",
            remedy="Export the series again, with these attributes",
        )
    crowd = _most_at_one_place(frames)
    if crowd > 1:
        raise InputError(
            name,
            kind="same_place",
            reason=f"up to {crowd} images lie at one place and nothing tells them apart",
            remedy="Export each volume as a series of its own",
        )


def _slice_step(
    ordered: Sequence[Frame], normal: npt.NDArray[np.float64], name: str
) -> npt.NDArray[np.float64]:
    """Return the LPS way from a slice to the next, which has to be the same throughout."""
    positions = np.array([_position(frame) for frame in ordered])
    heights = positions @ normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    multiples = np.rint(gaps / usual).astype(int)
    tolerance = max(_UNEVEN * usual, _SAME_PLACE_MM)
    is_regular = np.abs(gaps - multiples * usual).max() <= tolerance and multiples.min() >= 1
    if is_regular and multiples.max() > 1:
        missing = int((multiples - 1).sum())
        after = int(np.argmax(multiples > 1)) + 1
        raise InputError(
            name,
            kind="missing_slices",
            reason=f"{missing} slice{' is' if missing == 1 else 's are'} missing, the first after"
            f" slice {after} of {len(ordered)}",
            remedy="Export the series again, complete",
        )
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    ideal = positions[0] + np.arange(len(ordered))[:, None] * step
    if not is_regular or np.linalg.norm(positions - ideal, axis=1).max() > tolerance:
        raise InputError(
            name,
            kind="uneven_slices",
            reason=f"its slices are not evenly spaced along one line "
            f"({gaps.min():.2f} to {gaps.max():.2f} mm apart)",
            remedy="Export each block of slices as a series of its own",
        )
    return step


def _position(frame: Frame) -> npt.NDArray[np.float64]:
    return np.array(frame.position_xyz_mm, dtype=np.float64)
