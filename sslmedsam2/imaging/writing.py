"""Write masks and maps on the exact grid of their image.

A file is written under a temporary name, read back, compared and then renamed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import InputError, OutputError
from sslmedsam2.imaging.atomic import atomic_path
from sslmedsam2.imaging.formats import NIFTI_EXTENSIONS, WRITTEN_EXTENSIONS, image_extension
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.nifti_writing import nifti_header, write_nifti
from sslmedsam2.imaging.reading import read_stored
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, MaskVolume, Source, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

MaskDtype = Literal["uint8", "input"]


def write_mask(
    mask_zyx: npt.NDArray[np.uint8] | npt.NDArray[np.bool_],
    *,
    like: Volume | MaskVolume,
    path: Path,
    dtype: MaskDtype = "uint8",
) -> None:
    """Write a mask of 0 and 1 on the grid of the image it was made for.

    Parameters
    ----------
    mask_zyx
        In the orientation of ``like.array_zyx``, that is, the file's own.
    like
        The image as read. Its stored shape (a trailing 1 included), and from NIfTI to NIfTI its
        affine, qform and sform with their codes, are repeated exactly.
    path
        Its extension chooses the format: .nii.gz, .nii, .mha or .nrrd.
    dtype
        ``"uint8"``, or ``"input"`` for the voxel type that the image is stored with.

    Raises
    ------
    OutputError
        If the file cannot be written or reads back differently; nothing is left behind then.
    ValueError
        If the mask has another shape than the image, or other values than 0 and 1.
    """
    if mask_zyx.size and mask_zyx.max() > 1:
        raise ValueError("a mask holds 0 and 1 only")
    stored = np.dtype(np.uint8) if dtype == "uint8" else like.source.native_dtype
    _write(
        mask_zyx.astype(stored),
        like=like,
        path=path,
        description="sslmedsam2 mask",
        display_range=(0, 1),
    )


def write_labels(
    labels_zyx: npt.NDArray[np.uint8], *, like: Volume | MaskVolume, path: Path
) -> None:
    """Write a uint8 map of labels as :func:`write_mask` writes a mask."""
    _write(
        labels_zyx.astype(np.uint8, copy=False),
        like=like,
        path=path,
        description="sslmedsam2 labels",
        display_range=(0, float(labels_zyx.max())),
    )


def write_map(map_zyx: ArrayZYX, *, like: Volume | MaskVolume, path: Path) -> None:
    """Write a float32 map (a probability) as :func:`write_mask` writes a mask."""
    _write(
        map_zyx.astype(np.float32, copy=False),
        like=like,
        path=path,
        description="sslmedsam2 map",
        display_range=(float(map_zyx.min()), float(map_zyx.max())),
    )


def to_itk(array_zyx: np.ndarray, *, geometry: Geometry, source: Source) -> sitk.Image:
    """Return a SimpleITK image of an array that lies on the grid of an image as read.

    Axes beyond the third, of one element each in ``source.native_shape``, are there again, with
    spacing 1 and origin 0.
    """
    import SimpleITK as sitk  # noqa: N813

    extra = len(source.native_shape) - 3
    direction = np.eye(3 + extra)
    direction[:3, :3] = geometry.direction_xyz
    image = sitk.GetImageFromArray(
        array_zyx.reshape(source.native_shape[::-1]).astype(array_zyx.dtype.newbyteorder("=")),
        isVector=False,
    )
    image.SetSpacing([*geometry.spacing_zyx_mm[::-1], *[1.0] * extra])
    image.SetOrigin([*geometry.origin_xyz_mm, *[0.0] * extra])
    image.SetDirection(direction.ravel().tolist())
    return image


def _write(
    array_zyx: np.ndarray,
    *,
    like: Volume | MaskVolume,
    path: Path,
    description: str,
    display_range: tuple[float, float],
) -> None:
    geometry, source = like.geometry, like.source
    if array_zyx.shape != geometry.shape_zyx:
        raise ValueError(f"shape {array_zyx.shape} is not the image's, {geometry.shape_zyx}")
    extension = image_extension(path)
    if extension not in WRITTEN_EXTENSIONS:
        raise OutputError(
            path,
            reason="this format cannot be written",
            remedy=f"Choose a name that ends in {', '.join(WRITTEN_EXTENSIONS)}",
        )
    header_bytes = None
    with atomic_path(path) as partial:
        if extension in NIFTI_EXTENSIONS:
            header = nifti_header(
                geometry,
                source,
                dtype=array_zyx.dtype,
                description=description,
                display_range=display_range,
            )
            header_bytes = header.tobytes()
            write_nifti(array_zyx, header=header, path=partial, compress=extension == ".nii.gz")
        else:
            _write_itk(array_zyx, geometry=geometry, source=source, path=path, partial=partial)
        written = Source(path, source.native_shape, array_zyx.dtype, header_bytes)
        _verify(partial, Volume(array_zyx, geometry, written))


def _write_itk(
    array_zyx: np.ndarray, *, geometry: Geometry, source: Source, path: Path, partial: Path
) -> None:
    """Write a compressed MetaImage or NRRD."""
    import SimpleITK as sitk  # noqa: N813

    try:
        image = to_itk(array_zyx, geometry=geometry, source=source)
        sitk.WriteImage(image, str(partial), useCompression=True)
    except (RuntimeError, TypeError, KeyError) as error:
        raise OutputError(
            path,
            reason=f"cannot be written ({str(error).strip().splitlines()[-1]})",
            remedy="Check the output folder and its free space, or write .nii.gz",
        ) from error


def _verify(partial: Path, expected: Volume) -> None:
    """Read a file back and compare it with what it should hold."""
    path = expected.source.path
    try:
        found = read_stored(partial)
    except InputError as error:
        raise OutputError(
            path,
            reason=f"what was written cannot be read back ({error.reason})",
            remedy="Check the output disk",
        ) from error
    checks = {
        "shape": found.source.native_shape == expected.source.native_shape,
        "voxel type": found.source.native_dtype.kind == expected.source.native_dtype.kind
        and found.source.native_dtype.itemsize == expected.source.native_dtype.itemsize,
        "header": found.source.nifti_header == expected.source.nifti_header,
        "affine": same_grid(found.geometry, expected.geometry),
        "content": np.array_equal(found.array_zyx, expected.array_zyx),
    }
    differences = ", ".join(name for name, is_same in checks.items() if not is_same)
    if differences:
        raise OutputError(
            path,
            reason=f"what was written reads back with another {differences}",
            remedy="Check the output disk, and report this if it happens again",
        )
