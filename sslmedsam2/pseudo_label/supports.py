"""Input of ``pseudo-label``: labelled volumes (supports) and a SAM2 checkpoint."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from sslmedsam2.errors import (
    InputError,
    ModelError,
    NoInputError,
    SslMedSam2Error,
    missing_packages,
)
from sslmedsam2.fewshot.strategy import Support
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.labelled import read_labelled
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.weights.catalogue import OFFICIAL, find_official
from sslmedsam2.weights.locate import SHIPPED_DIR
from sslmedsam2.weights.manifest import verify_sam2

COMPACT_NAME: Final = "compact"
COMPACT_PATH: Final = SHIPPED_DIR / "sam2-compact" / "sam2-compact.safetensors"

logger = logging.getLogger(__name__)


class SupportFiles(Sequence[Support]):
    """Labelled volumes, each read on access, so that only one is in memory at a time.

    Attributes
    ----------
    sha256
        Hashes of the files ``image`` and ``mask``, by the support's name.
    problems
        An error for each labelled volume that cannot be used.
    """

    def __init__(
        self,
        series: Sequence[ImageFile],
        sha256: Mapping[str, Mapping[str, str]],
        problems: Sequence[SslMedSam2Error] = (),
    ) -> None:
        self._series = tuple(series)
        self.sha256, self.problems = sha256, tuple(problems)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._series)

    def __getitem__(self, index: int) -> Support:  # type: ignore[override]
        """Read one support."""
        # The map of organs was checked, and is used in training only.
        return read_support(replace(self._series[index], organs=None))

    @property
    def cases(self) -> frozenset[str]:
        """The patients."""
        return frozenset(series.case for series in self._series)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return tuple(path for one in self._series for path in one.files.values())

    def case_with_image(self, sha256: str) -> str | None:
        """Return the case of the support whose image file has this hash, if there is one."""
        for series in self._series:
            if self.sha256[series.name]["image"] == sha256:
                return series.case
        return None


def check_supports(root: Path, labelled: Iterable[ImageFile]) -> SupportFiles:
    """Read every labelled volume once and leave out those that cannot be used.

    Raises NoInputError: none can be used; ``root`` is the folder named in the message.
    """
    usable: list[ImageFile] = []
    hashes: dict[str, dict[str, str]] = {}
    problems: list[SslMedSam2Error] = []
    for series in labelled:
        try:
            notes = read_labelled(series).notes
            files = series.files
            hashes[series.name] = {role: sha256_file(files[role]) for role in ("image", "mask")}
            if series.label is not None:
                hashes[series.name]["label"] = str(series.label)
        except InputError as error:
            logger.error("left out of the supports: %s", error)
            problems.append(error)
        else:
            usable.append(series)
            for note in notes:
                logger.info(note)
    if not usable:
        first = f" ({problems[0]})" if problems else ""
        raise NoInputError(
            root,
            reason=f"it holds no labelled volume that can be used{first}",
            remedy="Give case folders with <SEQ>.nii.gz and mask_<SEQ>.nii.gz",
        )
    return SupportFiles(usable, hashes, problems)


def read_support(image: ImageFile) -> Support:
    """Read a labelled volume and turn it to the canonical orientation.

    Raises InputError: as :func:`~sslmedsam2.imaging.labelled.read_labelled`.
    """
    read = read_labelled(image)
    canonical = to_canonical(read.volume)
    return Support(
        name=image.name,
        case=image.case,
        image=canonical,
        geometry=read.volume.geometry,
        mask_zyx=apply_reorientation(read.labels_zyx, canonical.reorientation),
    )


def find_sam2(name_or_path: str) -> Path:
    """Return the path of a named checkpoint; any other argument is returned as a path.

    Raises ModelError: there is none, it was not fetched, or it was altered;
    UsageError: the package sam2 is not installed.
    """
    if importlib.util.find_spec("sam2") is None:
        raise missing_packages("SAM2", "sam2")
    if name_or_path == COMPACT_NAME:
        verify_sam2(SHIPPED_DIR)
        return COMPACT_PATH
    if name_or_path in OFFICIAL:
        return find_official(name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise ModelError(
            path,
            reason="there is no such checkpoint of SAM2",
            remedy=f"Give a file, or one of {', '.join((COMPACT_NAME, *OFFICIAL))}",
        )
    return path
