"""Drawing the preview of a mask, without which the mask is just as good."""

from __future__ import annotations

from pathlib import Path

from sslmedsam2.errors import OutputError
from sslmedsam2.imaging.volume import CanonicalVolume, MaskZYX
from sslmedsam2.reporting.previews import write_preview


def draw_preview(
    canonical: CanonicalVolume, mask_zyx: MaskZYX, *, path: Path, title: str, flags: tuple[str, ...]
) -> tuple[str, ...]:
    """Write the preview of a canonical mask; return a warning if that fails."""
    try:
        write_preview(
            canonical.array_zyx,
            mask_zyx,
            spacing_zyx_mm=canonical.spacing_zyx_mm,
            path=path,
            title=title,
            flags=flags,
        )
    except OutputError as error:
        return (f"no_preview: {error}",)
    return ()
