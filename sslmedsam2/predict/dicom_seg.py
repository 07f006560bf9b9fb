"""The DICOM-SEG beside the mask of a DICOM series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.dicom.model import Algorithm, DicomVolume
from sslmedsam2.errors import OutputError
from sslmedsam2.imaging.volume import MaskZYX

NO_SEG_FOR_GUESSES = "no_dicom_seg: a guess is not written as DICOM-SEG"


@dataclass(frozen=True)
class DicomTarget:
    """A DICOM volume and where its DICOM-SEG goes.

    Attributes
    ----------
    seg_path, seg_name
        In full, and relative to the run's folder; None if none is wanted.
    algorithm
        What the object is to say of its making.
    """

    volume: DicomVolume
    seg_path: Path | None
    seg_name: str | None
    algorithm: Algorithm


@dataclass(frozen=True)
class WrittenSeg:
    """Where a DICOM-SEG was written, or None, and what is to be said of that."""

    name: str | None = None
    warnings: tuple[str, ...] = ()


def write_seg(target: DicomTarget | None, mask_zyx: MaskZYX, *, is_guess: bool) -> WrittenSeg:
    """Write the DICOM-SEG if one is wanted; a failure is a warning, for the mask is good.

    A guess where the network found nothing, or failed, must not reach an archive of patients.
    """
    if target is None or target.seg_path is None:
        return WrittenSeg()
    if is_guess:
        return WrittenSeg(warnings=(NO_SEG_FOR_GUESSES,))
    from sslmedsam2.dicom.segmentation import write_dicom_seg

    try:
        write_dicom_seg(
            mask_zyx, volume=target.volume, path=target.seg_path, algorithm=target.algorithm
        )
    except OutputError as error:
        return WrittenSeg(warnings=(f"no_dicom_seg: {error}",))
    return WrittenSeg(name=target.seg_name)
