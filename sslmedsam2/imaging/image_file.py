"""`ImageFile`: an image on disk with its mask and names, used by all packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image of a patient.

    Attributes
    ----------
    case
        The patient.
    sequence
        A canonical sequence, another name that distinguishes the images of a case, or None.
    vendor
        Vendor of the scanner, by folder or case name; None if unknown.
    path
        The image file; for a DICOM series its neutral name.
    mask
        A mask of the liver on the same grid; None for an unlabelled image.
    organs
        A label map of liver (1) and other organs (2 to 13) on the same grid, or None.
    label
        The value of the liver in ``mask``; None for its only foreground value.
    pseudo
        Whether ``mask`` is a map of training labels 0 to 3, made from a pseudo label.
    sha256
        Hash of the image file, if computed.
    """

    case: str
    path: Path
    sequence: str | None = None
    vendor: str | None = None
    mask: Path | None = None
    organs: Path | None = None
    label: int | None = None
    pseudo: bool = False
    sha256: str | None = None

    @property
    def name(self) -> str:
        """``<case>/<sequence>``, or the case where there is no sequence."""
        return "/".join(filter(None, (self.case, self.sequence)))

    @property
    def files(self) -> dict[str, Path]:
        """The files that are set, by role: ``image``, ``mask``, ``organs``."""
        files = {"image": self.path, "mask": self.mask, "organs": self.organs}
        return {role: path for role, path in files.items() if path is not None}

    @property
    def sequence_or_volume(self) -> str:
        """The sequence, or ``volume``, for file names that need one."""
        return self.sequence or "volume"
