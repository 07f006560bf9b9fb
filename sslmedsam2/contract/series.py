"""``Study``: the images of one case."""

from __future__ import annotations

from dataclasses import dataclass

from sslmedsam2.imaging.image_file import ImageFile


@dataclass(frozen=True)
class Study:
    """The images of one case, in processing order; at least one.

    ``stage`` is the fibrosis stage that training names carry.
    """

    case: str
    vendor: str | None
    series: tuple[ImageFile, ...]
    stage: int | None = None

    @property
    def has_no_sequence(self) -> bool:
        """Whether this is a volume outside the challenge's layout, without a sequence."""
        return self.series[0].sequence is None
