"""The official SAM2 checkpoints: address, size, SHA-256 and licence of each.

None is included in the project. ``weights fetch`` downloads one into a folder ``sam2`` beside the
included models, or where a platform mounts models, and `find_official` finds it there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from sslmedsam2.errors import ModelError, UsageError
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.weights.locate import PLATFORM_DIR, SHIPPED_DIR

FETCHED_DIR: Final = (
    SHIPPED_DIR / "sam2"
    if SHIPPED_DIR.name == "weights"
    else Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "sslmedsam2/sam2"
)
"""Default folder of ``weights fetch``: beside the included models in a
clone, in the user's data folder where a wheel is installed."""


@dataclass(frozen=True)
class Licence:
    """The terms on which a checkpoint is published.

    Attributes
    ----------
    name
        An SPDX identifier, or the restriction in words.
    summary
        Its meaning for the user, in one sentence.
    url
        Where the terms can be read.
    must_be_accepted
        Whether the user has to agree before the file is fetched.
    """

    name: str
    summary: str
    url: str
    must_be_accepted: bool


@dataclass(frozen=True)
class CatalogueEntry:
    """One published file. ``urls`` are tried in their order; all give the same bytes."""

    name: str
    file_name: str
    urls: tuple[str, ...]
    revision: str
    size_bytes: int
    sha256: str
    licence: Licence


_TINY: Final = CatalogueEntry(
    name="sam2.1-hiera-tiny",
    file_name="sam2.1_hiera_tiny.pt",
    urls=(
        "https://huggingface.co/facebook/sam2.1-hiera-tiny/resolve/"
        "de431c4043854a71d8101e17995dfe596bf101a5/sam2.1_hiera_tiny.pt",
        "https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_tiny.pt",
    ),
    revision="de431c4043854a71d8101e17995dfe596bf101a5",
    size_bytes=156_008_466,
    sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    licence=Licence(
        name="Apache-2.0",
        summary="Free to use, change and pass on, with the licence and its notices.",
        url="https://www.apache.org/licenses/LICENSE-2.0",
        must_be_accepted=False,
    ),
)
_MEDSAM2: Final = CatalogueEntry(
    name="medsam2",
    file_name="MedSAM2_latest.pt",
    urls=(
        "https://huggingface.co/wanglab/MedSAM2/resolve/"
        "e4a6f35edd7e091619cbc0750f462f1574e23955/MedSAM2_latest.pt",
    ),
    revision="e4a6f35edd7e091619cbc0750f462f1574e23955",
    size_bytes=156_040_129,
    sha256="c92743b99f00d078bf32a3afcc38aaa9faf1c1692dffe3eaa7a90938c1991060",
    licence=Licence(
        name="research and education only",
        summary="Any other use is for its authors to allow.",
        url="https://huggingface.co/wanglab/MedSAM2",
        must_be_accepted=True,
    ),
)
OFFICIAL: Final[Mapping[str, CatalogueEntry]] = MappingProxyType(
    {entry.name: entry for entry in (_TINY, _MEDSAM2)}
)


def difference(path: Path, entry: CatalogueEntry) -> str | None:
    """Say as one clause how a file differs from the published one; None where it does not."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            return f"it has {size_bytes} bytes where {entry.name} has {entry.size_bytes}"
        sha256 = sha256_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if sha256 != entry.sha256:
        return (
            f"its SHA-256 is {sha256[:12]}... where that of {entry.name} is {entry.sha256[:12]}..."
        )
    return None


def find_official(
    name: str,
    *,
    places: Sequence[Path] = (PLATFORM_DIR / "sam2", FETCHED_DIR),
    catalogue: Mapping[str, CatalogueEntry] = OFFICIAL,
) -> Path:
    """Return an official checkpoint that was fetched before, compared with its hash just now.

    The first of ``places`` that has a file of its name decides: one that differs is refused and
    never passed over in favour of another.

    Raises UsageError: the catalogue has no such name; ModelError: it was not fetched yet, cannot be
    read, or differs from what was published.
    """
    if name not in catalogue:
        raise UsageError(
            name,
            reason="there is no official checkpoint of that name",
            remedy=f"Use one of {', '.join(catalogue)}, or the path of a checkpoint",
        )
    entry = catalogue[name]
    path = next((p / entry.file_name for p in places if (p / entry.file_name).exists()), None)
    if path is None:
        raise ModelError(
            name,
            reason=f"{entry.file_name} is not in {' or '.join(str(place) for place in places)}",
            remedy=f"Run 'sslmedsam2 weights fetch {name}'",
        )
    problem = difference(path, entry)
    if problem is not None:
        raise ModelError(
            path, reason=problem, remedy=f"Run 'sslmedsam2 weights fetch {name} --to {path.parent}'"
        )
    return path
