"""Reduce an image and its masks for a browser, to a given number of bytes.

The image becomes 8-bit grey levels, blocks of voxels are averaged until the compressed files are
small enough, and prediction and reference become one label map. A block of a mask is decided by
majority, so edges move by up to half a block; no figures are computed from these copies.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.geometry import affine_lps, affine_ras
from sslmedsam2.imaging.orientation import apply_reorientation, canonical_geometry, to_canonical
from sslmedsam2.imaging.volume import CanonicalVolume, Geometry, MaskZYX, Volume, block_means
from sslmedsam2.reporting.previews import thumbnail

Block = tuple[int, int, int]

AGREED, PREDICTION_ONLY, REFERENCE_ONLY = 1, 2, 3
"""The labels of the map; without a reference every voxel of the prediction is ``AGREED``."""

THUMBNAIL_SIZE = (104, 78)
"""Width and height in pixels."""

_GREY_RANGE_PERCENTILES = (0.1, 99.9)
_WINDOW_PERCENTILES = (1.0, 99.5)
_PERCENTILE_STRIDE = 2
_GZIP_LEVEL = 6
# Noise compresses least, to about its own size in bytes; nothing seen compresses to a quarter.
_HOPELESS_RATIO = 4
# Spacings closer than this grow together, so that pixels stay square.
_SAME_SPACING = 1.05


@dataclass(frozen=True)
class ViewVolumes:
    """The volumes of one series in the viewer.

    Attributes
    ----------
    image_nifti, labels_nifti
        Compressed NIfTI files on one grid; the labels are those of this module.
    focus_ras_mm
        Where the view opens: where the masks differ most, else the given place, else the middle of
        the mask, or of the image where there is no mask.
    slices_xyz
        Number of slices of the scan along x, y and z.
    block_xyz
        How many of them were averaged to one along each axis.
    grey_range
        Intensities of the darkest and the brightest grey level.
    window
        Intensities between which the image is first shown.
    note
        How the image was reduced, in words.
    thumbnail_png
        The axial slice with most of the mask, with its outline.
    """

    image_nifti: bytes
    labels_nifti: bytes
    focus_ras_mm: tuple[float, float, float]
    slices_xyz: tuple[int, ...]
    block_xyz: tuple[int, ...]
    grey_range: tuple[float, float]
    window: tuple[float, float]
    note: str
    thumbnail_png: bytes


def reduce_for_view(
    image: Volume,
    mask_zyx: MaskZYX,
    *,
    reference_zyx: MaskZYX | None,
    budget_bytes: int,
    focus_lps_mm: tuple[float, float, float] | None = None,
) -> ViewVolumes:
    """Reduce an image and its masks until both files together fit the budget.

    Parameters
    ----------
    image
        As read, in the file's own orientation.
    mask_zyx, reference_zyx
        Prediction and reference (foreground > 0) on the image's grid and in its orientation.
    budget_bytes
        Largest size of both compressed files together.
    focus_lps_mm
        Where to open the view if there is no reference; None for the middle of the mask.
    """
    canonical = to_canonical(image)
    turn = canonical.reorientation
    mask = apply_reorientation(mask_zyx, turn)
    reference = None if reference_zyx is None else apply_reorientation(reference_zyx, turn)
    grid = canonical_geometry(image.geometry, turn)
    grey_range = _percentiles(canonical, _GREY_RANGE_PERCENTILES)
    block: Block = (1, 1, 1)
    while True:
        block = _first_hopeful(block, grid, limit=_HOPELESS_RATIO * budget_bytes)
        greys = _to_greys(block_means(canonical.array_zyx, block), grey_range)
        labels = _label_map(mask, reference, block)
        reduced = coarser_geometry(grid, block)
        image_nifti = _nifti(greys, reduced, grey_range=grey_range)
        labels_nifti = _nifti(labels, reduced, grey_range=None)
        if len(image_nifti) + len(labels_nifti) <= budget_bytes or greys.size == 1:
            break
        block = next_block(block, grid)
    return ViewVolumes(
        image_nifti=image_nifti,
        labels_nifti=labels_nifti,
        focus_ras_mm=_focus_ras_mm(labels, reduced, given_lps_mm=focus_lps_mm),
        slices_xyz=grid.shape_zyx[::-1],
        block_xyz=block[::-1],
        grey_range=grey_range,
        window=_percentiles(canonical, _WINDOW_PERCENTILES),
        note=_note(grid, reduced, block, grey_range=grey_range),
        thumbnail_png=_thumbnail(canonical, mask),
    )


def _thumbnail(canonical: CanonicalVolume, mask_zyx: MaskZYX) -> bytes:
    filled = np.count_nonzero(mask_zyx, axis=(1, 2))
    index = int(filled.argmax()) if filled.any() else len(filled) // 2
    _, y, x = canonical.spacing_zyx_mm
    return thumbnail(
        canonical.array_zyx[index], mask_zyx[index], spacing_yx_mm=(y, x), size=THUMBNAIL_SIZE
    )


def coarser_geometry(geometry: Geometry, block: Block) -> Geometry:
    """Return the grid of block means: its voxels are centred on the blocks."""
    shape = [-(-length // step) for length, step in zip(geometry.shape_zyx, block, strict=True)]
    spacing = [mm * step for mm, step in zip(geometry.spacing_zyx_mm, block, strict=True)]
    centre_xyz = np.array([(step - 1) / 2 for step in reversed(block)] + [1.0])
    x, y, z = (affine_lps(geometry) @ centre_xyz)[:3].tolist()
    return Geometry(
        shape_zyx=(shape[0], shape[1], shape[2]),
        spacing_zyx_mm=(spacing[0], spacing[1], spacing[2]),
        origin_xyz_mm=(x, y, z),
        direction_xyz=geometry.direction_xyz,
    )


def next_block(block: Block, geometry: Geometry) -> Block:
    """Enlarge the block along its finest axis, or axes where several are about as fine."""
    shape = geometry.shape_zyx
    spacing = [step * mm for step, mm in zip(block, geometry.spacing_zyx_mm, strict=True)]
    growing = [axis for axis in range(3) if block[axis] < shape[axis]]
    finest = min((spacing[axis] for axis in growing), default=0.0)
    z, y, x = (
        step + 1 if axis in growing and spacing[axis] <= finest * _SAME_SPACING else step
        for axis, step in enumerate(block)
    )
    return z, y, x


def _first_hopeful(block: Block, geometry: Geometry, *, limit: int) -> Block:
    """Enlarge the block until the volume is small enough to try to compress it."""
    while np.prod(coarser_geometry(geometry, block).shape_zyx) > limit:
        block = next_block(block, geometry)
    return block


def _percentiles(volume: CanonicalVolume, wanted: tuple[float, float]) -> tuple[float, float]:
    stride = _PERCENTILE_STRIDE
    low, high = np.percentile(volume.array_zyx[:, ::stride, ::stride], wanted)
    # A few bright voxels in a blank image leave both at one value.
    return float(low), float(high if high > low else max(volume.array_zyx.max(), low + 1))


def _to_greys(
    means_zyx: npt.NDArray[np.float32], grey_range: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    low, high = grey_range
    return np.rint(np.clip((means_zyx - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _label_map(
    mask_zyx: MaskZYX, reference_zyx: MaskZYX | None, block: Block
) -> npt.NDArray[np.uint8]:
    predicted = block_means(mask_zyx > 0, block) >= 0.5
    if reference_zyx is None:
        return predicted.astype(np.uint8) * AGREED
    expected = block_means(reference_zyx > 0, block) >= 0.5
    labels = np.where(predicted, PREDICTION_ONLY, 0) + np.where(expected, REFERENCE_ONLY, 0)
    labels[predicted & expected] = AGREED
    return labels.astype(np.uint8)


def _focus_ras_mm(
    labels_zyx: npt.NDArray[np.uint8],
    geometry: Geometry,
    *,
    given_lps_mm: tuple[float, float, float] | None,
) -> tuple[float, float, float]:
    place_zyx = _farthest_apart(labels_zyx, spacing_zyx_mm=geometry.spacing_zyx_mm)
    if place_zyx is None and given_lps_mm is not None:
        x, y, z = given_lps_mm
        return -x, -y, z
    if place_zyx is None:
        inside = np.argwhere(labels_zyx)
        place_zyx = inside.mean(axis=0) if len(inside) else (np.array(labels_zyx.shape) - 1) / 2
    x, y, z = (affine_ras(geometry) @ [*place_zyx[::-1], 1.0])[:3].tolist()
    return x, y, z


def _farthest_apart(
    labels_zyx: npt.NDArray[np.uint8], *, spacing_zyx_mm: tuple[float, float, float]
) -> npt.NDArray[np.float64] | None:
    """Return the voxel of one mask that is farthest from the other; None without two masks."""
    from scipy import ndimage

    farthest, place = 0.0, None
    for alone in (PREDICTION_ONLY, REFERENCE_ONLY):
        other = (labels_zyx != 0) & (labels_zyx != alone)
        if not other.any() or not (labels_zyx == alone).any():
            continue
        distance = ndimage.distance_transform_edt(~other, sampling=spacing_zyx_mm)
        distance[labels_zyx != alone] = 0
        if distance.max() > farthest:
            farthest = float(distance.max())
            place = np.array(np.unravel_index(distance.argmax(), distance.shape), np.float64)
    return place


def _nifti(
    array_zyx: npt.NDArray[np.uint8], geometry: Geometry, *, grey_range: tuple[float, float] | None
) -> bytes:
    """Make a compressed NIfTI file whose bytes depend on nothing but the arguments."""
    import nibabel as nib

    image = nib.Nifti1Image(array_zyx.transpose(2, 1, 0), affine_ras(geometry))
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    if grey_range is not None:
        # nibabel would rescale the voxels; here the stored bytes are meant to be the grey levels.
        header = image.header.structarr.copy()
        low, high = grey_range
        header["scl_slope"], header["scl_inter"] = (high - low) / 255, low
        header["vox_offset"] = len(content) - array_zyx.size
        content[: header.nbytes] = header.tobytes()
    return gzip.compress(bytes(content), compresslevel=_GZIP_LEVEL, mtime=0)


def _note(
    grid: Geometry, reduced: Geometry, block: Block, *, grey_range: tuple[float, float]
) -> str:
    low, high = grey_range
    greys = f"8-bit grey levels over {low:.4g} to {high:.4g}"
    if block == (1, 1, 1):
        return f"All {_times(grid.shape_zyx[::-1])} voxels are shown, in {greys}."
    sizes = " x ".join(f"{mm:.2g}" for mm in reduced.spacing_zyx_mm[::-1])
    return (
        f"Reduced for this page: blocks of {_times(block[::-1])} voxels are averaged (masks: by "
        f"majority), from {_times(grid.shape_zyx[::-1])} to {_times(reduced.shape_zyx[::-1])} "
        f"voxels of {sizes} mm, in {greys}. Figures are of the full masks."
    )


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))
