"""A stack of frames to a volume, if its slices are evenly spaced along one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sslmedsam2.dicom.model import DicomVolume, Frame
from sslmedsam2.dicom.stacks import SAME_PLACE_MM, most_at_one_place, normal_of
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import geometry_from_steps

FEWEST_SLICES = 6
"""A liver does not fit into fewer; localizers and test images have fewer."""

_UNEVEN = 0.1
"""Largest part of the slice distance by which a slice may lie off its place."""


def make_volume(frames: Sequence[Frame], *, case: str, series: str) -> DicomVolume:
    """Order a stack's frames along their normal and find the geometry.

    Raises
    ------
    InputError
        Of kind ``truncated_dicom``, ``no_position``, ``same_place``, ``missing_slices`` or
        ``uneven_slices``, or a kind of ``imaging/geometry.py``.
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
            reason=f"{unplaced} of its {len(frames)} images do not say where they lie",
            remedy="Export the series with position, orientation and pixel spacing",
        )
    crowd = most_at_one_place(frames)
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
    tolerance = max(_UNEVEN * usual, SAME_PLACE_MM)
    is_regular = np.abs(gaps - multiples * usual).max() <= tolerance and multiples.min() >= 1
    if is_regular and multiples.max() > 1:
        missing = int((multiples - 1).sum())
        after = int(np.argmax(multiples > 1)) + 1
        raise InputError(
            name,
            kind="missing_slices",
            reason=f"{_counted(missing, 'slice')} missing, the first after slice {after} "
            f"of {len(ordered)}",
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


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"
