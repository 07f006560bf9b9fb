"""What flows from the contract to other packages: an image, and the images of one case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Series:
    """One image. ``sequence`` is canonical, or None outside the challenge's layout."""

    case: str
    vendor: str | None
    sequence: str | None
    path: Path

    @property
    def name(self) -> str:
        """``<case>/<sequence>``, or the case where the sequence is not known."""
        return "/".join(filter(None, (self.case, self.sequence)))


@dataclass(frozen=True)
class Study:
    """The images of one case, in processing order; at least one.

    ``stage`` is the fibrosis stage that training names carry.
    """

    case: str
    vendor: str | None
    series: tuple[Series, ...]
    stage: int | None = None

    @property
    def has_no_sequence(self) -> bool:
        """Whether this is a volume outside the challenge's layout, which stands for no sequence."""
        return self.series[0].sequence is None
