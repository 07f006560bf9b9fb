"""The best and the worst previews, for a page."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_MOST: Final = 3
"""Previews at either end."""
_MAX_WIDTH: Final = 1000
"""Pixels; previews are as wide as this."""
_COLOURS: Final = 128


@dataclass(frozen=True)
class Preview:
    """A preview to be shown; ``png`` is None where it could not be read."""

    title: str
    score: float
    png: bytes | None


@dataclass(frozen=True)
class Gallery:
    """The worst previews, worst first, and the best, best first; none is in both.

    ``judged_by`` says what the scores are.
    """

    judged_by: str
    worst: tuple[Preview, ...]
    best: tuple[Preview, ...]


def make_gallery(scored: Iterable[tuple[float, str, Path]], *, judged_by: str) -> Gallery:
    """Choose and read a few previews at either end; of a few, the better half counts as best.

    ``scored`` holds score (higher is better), title and file of each.
    """
    ordered = sorted(scored)
    half = len(ordered) // 2
    chosen = ordered[: min(_MOST, half)], ordered[max(half, len(ordered) - _MOST) :][::-1]
    worst, best = (
        tuple(Preview(title, score, _embeddable_png(path)) for score, title, path in rows)
        for rows in chosen
    )
    return Gallery(judged_by, worst, best)


def _embeddable_png(path: Path) -> bytes | None:
    """Read a PNG, made smaller if it is large; None, and a warning, if that is not possible."""
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            picture.load()
            if picture.width <= _MAX_WIDTH:
                return content
            height = max(1, round(picture.height * _MAX_WIDTH / picture.width))
            small = picture.convert("RGB").resize((_MAX_WIDTH, height))
    # Pillow answers damaged files with errors of several families.
    except (OSError, ValueError, SyntaxError) as error:
        logger.warning("%s: cannot be shown (%s)", path, error)
        return None
    written = io.BytesIO()
    small.quantize(_COLOURS).save(written, format="PNG", optimize=True)
    return written.getvalue()
