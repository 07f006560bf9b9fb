"""What ``pseudo-label`` starts from: labelled volumes, and a SAM2."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, overload

from sslmedsam2.errors import InputError, NoInputError, SslMedSam2Error
from sslmedsam2.fewshot.strategy import Support
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.weights.catalogue import OFFICIAL, find_official
from sslmedsam2.weights.locate import SHIPPED_DIR
from sslmedsam2.weights.manifest import sha256_file

COMPACT_NAME: Final = "compact"
COMPACT_PATH: Final = SHIPPED_DIR / "sam2-compact" / "sam2-compact.safetensors"

logger = logging.getLogger(__name__)


class SupportFiles(Sequence[Support]):
    """Labelled volumes that are read when they are asked for, so that memory holds one at a time.

    Attributes
    ----------
    sha256
        Of each one's files ``image`` and ``mask``, by the support's name.
    """

    def __init__(
        self, series: Sequence[ImageFile], sha256: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Take series that have been seen to be readable, and the hashes of their files."""
        self._series = tuple(series)
        self.sha256 = sha256

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._series)

    @overload
    def __getitem__(self, index: int) -> Support: ...

    @overload
    def __getitem__(self, index: slice) -> SupportFiles: ...

    def __getitem__(self, index: int | slice) -> Support | SupportFiles:
        """Read one support, or choose some without reading them."""
        if isinstance(index, int):
            return read_support(self._series[index])
        chosen = self._series[index]
        return SupportFiles(chosen, {name: self.sha256[name] for name in map(support_name, chosen)})

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
            if self.sha256[support_name(series)]["image"] == sha256:
                return series.case
        return None


@dataclass(frozen=True)
class CheckedSupports:
    """The supports that can be used, and an error for each that cannot."""

    supports: SupportFiles
    problems: tuple[SslMedSam2Error, ...]


def check_supports(root: Path, labelled: Iterable[ImageFile]) -> CheckedSupports:
    """Read every labelled volume once and set aside what cannot be used.

    Raises
    ------
    NoInputError
        None of them can; ``root`` is where they were sought.
    """
    usable: list[ImageFile] = []
    hashes: dict[str, dict[str, str]] = {}
    problems: list[SslMedSam2Error] = []
    for series in labelled:
        try:
            support = read_support(series)
            files = series.files
            hashes[support.name] = {role: sha256_file(files[role]) for role in ("image", "mask")}
        except InputError as error:
            logger.error("left out of the supports: %s", error)
            problems.append(error)
        else:
            usable.append(series)
    if not usable:
        first = f" ({problems[0]})" if problems else ""
        raise NoInputError(
            root,
            reason=f"it holds no labelled volume that can be used{first}",
            remedy="Give case folders with <SEQ>.nii.gz and mask_<SEQ>.nii.gz",
        )
    return CheckedSupports(SupportFiles(usable, hashes), tuple(problems))


def support_name(series: ImageFile) -> str:
    """Return ``<case>/<sequence>``, which no other labelled volume of the folder has."""
    return f"{series.case}/{series.sequence}"


def read_support(series: ImageFile) -> Support:
    """Read a labelled volume and turn it to the canonical orientation.

    Raises
    ------
    InputError
        A file cannot be read, the mask is empty (``empty_mask``) or lies on another grid than
        its image (``grid_mismatch``).
    """
    volume = read_volume(series.path)
    assert series.mask is not None
    mask = read_mask(series.mask)
    if not same_grid(volume.geometry, mask.geometry):
        raise InputError(
            series.mask,
            kind="grid_mismatch",
            reason=f"the mask lies on another grid than its image {series.path.name}",
            remedy="Export the mask on the grid of its image",
        )
    if not mask.array_zyx.any():
        raise InputError(
            series.mask,
            kind="empty_mask",
            reason="the reference mask holds no liver",
            remedy="Remove the case from the support folder, or correct its mask",
        )
    image = to_canonical(volume)
    return Support(
        name=support_name(series),
        case=series.case,
        image=image,
        geometry=volume.geometry,
        mask_zyx=apply_reorientation(mask.array_zyx, image.reorientation),
    )


def find_sam2(name_or_path: str) -> Path:
    """Return the checkpoint of a name, or what was given as a path.

    Raises
    ------
    ModelError
        An official checkpoint was not fetched, or was altered.
    """
    if name_or_path == COMPACT_NAME:
        return COMPACT_PATH
    if name_or_path in OFFICIAL:
        return find_official(name_or_path)
    return Path(name_or_path)
