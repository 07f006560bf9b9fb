"""The best and the worst previews, for a page."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_MOST: Final = 3
"""Pictures at either end."""
_MAX_WIDTH: Final = 900
"""Pixels; previews are as wide as this."""
_COLOURS: Final = 128


@dataclass(frozen=True)
class Candidate:
    """A picture that may be shown; ``score`` is higher for better ones."""

    title: str
    score: float
    path: Path


@dataclass(frozen=True)
class Picture:
    """A picture to be shown; ``png`` is None where it could not be read."""

    title: str
    score: float
    png: bytes | None


@dataclass(frozen=True)
class Gallery:
    """The worst pictures, worst first, and the best, best first; none is in both.

    ``judged_by`` says what the scores are.
    """

    judged_by: str
    worst: tuple[Picture, ...]
    best: tuple[Picture, ...]


def make_gallery(candidates: Sequence[Candidate], *, judged_by: str) -> Gallery:
    """Choose and read a few pictures at either end; of a few, the better half counts as best."""
    ordered = sorted(candidates, key=lambda candidate: (candidate.score, candidate.title))
    half = len(ordered) // 2
    worst = ordered[: min(_MOST, half)]
    best = ordered[max(half, len(ordered) - _MOST) :][::-1]
    return Gallery(judged_by, tuple(map(_picture, worst)), tuple(map(_picture, best)))


def _picture(candidate: Candidate) -> Picture:
    return Picture(candidate.title, candidate.score, _embeddable_png(candidate.path))


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
