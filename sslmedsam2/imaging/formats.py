"""The file formats that are read and written, recognised by name and by content.

Imports no image library.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path

NIFTI_EXTENSIONS = (".nii.gz", ".nii.bz2", ".nii")
METAIMAGE_EXTENSIONS = (".mha", ".mhd")
NRRD_EXTENSIONS = (".nrrd", ".nhdr")
NIBABEL_EXTENSIONS = (".hdr", ".mgz", ".mgh", ".par")
IMAGE_EXTENSIONS = NIFTI_EXTENSIONS + METAIMAGE_EXTENSIONS + NRRD_EXTENSIONS + NIBABEL_EXTENSIONS
ARCHIVE_SUFFIX = ".zip"
WRITTEN_EXTENSIONS = (".nii.gz", ".nii", ".mha", ".nrrd")
DETACHED_EXTENSIONS = (".mhd", ".nhdr", ".hdr", ".par")
"""Headers whose voxels lie in another file."""

_VOXEL_FILES = {
    ".img": (".hdr",),
    ".rec": (".par",),
    ".raw": (".mhd", ".nhdr"),
    ".zraw": (".mhd",),
    ".raw.gz": (".nhdr",),
    ".raw.bz2": (".nhdr",),
}
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
_OTHER_IMAGES = {
    "a MINC image": (".mnc",),
    "a GIPL image": (".gipl",),
    "a VTK file": (".vtk", ".vti"),
    "a TIFF picture": (".tif", ".tiff"),
    "a picture": (".png", ".jpg", ".jpeg", ".bmp"),
}
NIFTI_IMAGE = "a NIfTI image"
_READ_BYTES = 352
_CONTENTS = {
    "a pointer of Git LFS or git-annex instead of the data": (
        b"version https://git-lfs",
        b"/annex/objects",
    ),
    "an archive": (b"pk\x03\x04",),
    "data that is compressed twice": (b"\x1f\x8b",),
    "a web page": (b"<!doctype", b"<html"),
}
"""By the first bytes, in lower case."""


def image_extension(path: Path) -> str | None:
    """Return the extension of an image file in lower case, or None if it is no image's.

    >>> image_extension(Path("case/GED4.NII.GZ"))
    '.nii.gz'
    >>> image_extension(Path("info.csv")) is None
    True
    """
    name = path.name.lower()
    return next((extension for extension in IMAGE_EXTENSIONS if name.endswith(extension)), None)


def written_extension(path: Path) -> str:
    """Return the extension of a mask in the format of an image; .nii.gz if that is not written.

    >>> written_extension(Path("scan.mhd"))
    '.mha'
    """
    extension = image_extension(path) or ""
    extension = {".mhd": ".mha", ".nhdr": ".nrrd"}.get(extension, extension)
    return extension if extension in WRITTEN_EXTENSIONS else ".nii.gz"


def unread_image(path: Path) -> str | None:
    """Return why a file that may be an image, but has no supported extension, is left out.

    None for the voxels of a header beside it, and for files that do not look like images.
    """
    name = path.name.lower()
    for extension, headers in _VOXEL_FILES.items():
        if name.endswith(extension):
            stem = path.name[: -len(extension)].lower()
            beside = {other.name.lower() for other in path.parent.iterdir()}
            wanted = {f"{stem}{header}" for header in headers}
            others = any(other.endswith(headers) for other in beside if extension != ".img")
            if beside & wanted or others:
                return None
            return f"it holds voxels without a header ({' or '.join(headers)})"
    if name.endswith(_ARCHIVES):
        return "it is an archive that is not opened here; unpack it"
    kind = next((kind for kind, ends in _OTHER_IMAGES.items() if name.endswith(ends)), None)
    if kind is not None:
        return f"it is {kind}, a format that is not read; convert it to .nii.gz"
    content = _content(path)
    if content is not None:
        return f"it holds {content}, though its name does not say so; rename it"
    return None


def _content(path: Path) -> str | None:
    """Return the image format that the first bytes of a file show; None for others."""
    try:
        with path.open("rb") as file:
            start = file.read(_READ_BYTES)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path) as stream:
                start = stream.read(_READ_BYTES)
        elif start[:3] == b"BZh":
            with bz2.open(path) as stream:
                start = stream.read(_READ_BYTES)
    except (OSError, EOFError, zlib.error):
        return None
    return image_content(start)


def image_content(start: bytes) -> str | None:
    """Return the image format that the first 352 bytes show, in words; None for others."""
    if start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2"):
        return NIFTI_IMAGE
    if start.startswith(b"NRRD0"):
        return "an NRRD image"
    if start.startswith((b"ObjectType = Image", b"NDims = ")):
        return "a MetaImage"
    return None


def foreign_content(start: bytes) -> str:
    """Return ``; it holds <content>``, to end a message about a file of another format.

    Empty if the content is not known.
    """
    known = image_content(start)
    if start[128:132] == b"DICM":
        known = "a DICOM image"
    begins = start.lstrip().lower()
    known = known or next(
        (what for what, keys in _CONTENTS.items() if begins.startswith(keys)), None
    )
    return f"; it holds {known}" if known else ""
