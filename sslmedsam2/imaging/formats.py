"""The file formats that are read and written, recognised by name. Imports no image library."""

from __future__ import annotations

from pathlib import Path

NIFTI_EXTENSIONS = (".nii.gz", ".nii")
ITK_EXTENSIONS = (".mha", ".mhd", ".nrrd")
IMAGE_EXTENSIONS = NIFTI_EXTENSIONS + ITK_EXTENSIONS


def image_extension(path: Path) -> str | None:
    """Return the extension of an image file in lower case, or None if it is no image's.

    >>> image_extension(Path("case/GED4.NII.GZ"))
    '.nii.gz'
    >>> image_extension(Path("info.csv")) is None
    True
    """
    name = path.name.lower()
    return next((extension for extension in IMAGE_EXTENSIONS if name.endswith(extension)), None)
