"""Preview of a result: the outline of the mask on three axial slices and a coronal one.

Previews are drawn with Pillow, which imports and draws much faster than matplotlib, on a small
palette (greys, shades of the flag colours, the outline colour), which keeps files small. A gallery
is a selection of previews for a page.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import OutputError
from sslmedsam2.imaging.atomic import atomic_path
from sslmedsam2.imaging.volume import CanonicalVolume, MaskZYX, mask_volume_ml

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

logger = logging.getLogger(__name__)

_Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_FRACTIONS = (0.25, 0.5, 0.75)
_TILE_WIDTH, _TILE_HEIGHT = 250, 230
_HEADER_HEIGHT, _FOOTER_HEIGHT = 26, 18
_MOST_WARNINGS = 4
_WINDOW_PERCENTILES = (1.0, 99.5)
_PERCENTILE_STRIDE = 3

_GREEN_RGB, _AMBER_RGB, _RED_RGB = (70, 220, 110), (255, 190, 60), (255, 70, 60)
_FLAG_RGB = {
    **{"ACCEPT": _GREEN_RGB, "DOUBTFUL": _AMBER_RGB, "REJECT": _RED_RGB},
    **{"CHECK": _AMBER_RGB, "GUESS": _RED_RGB, "EMPTY": _RED_RGB},
}
"""Other flags are grey."""

_GREY_RGB = (235, 235, 235)
_OUTLINE_RGB = (60, 255, 60)
_COLOURS = (_GREEN_RGB, _AMBER_RGB, _RED_RGB)
_PALETTE = [
    channel
    for colour, shades in (((255, 255, 255), 48), *((colour, 16) for colour in _COLOURS))
    for shade in range(shades)
    for channel in (level * shade // (shades - 1) for level in colour)
] + [*_OUTLINE_RGB]
"""Palette of all files: greys, and shades of the flag colours."""

_MOST_IN_GALLERY = 3
"""Number of the best, and of the worst, previews."""
_MAX_WIDTH = 1000
"""Pixels; previews are as wide as this."""
_MOST_COLOURS = 128


def draw_preview(
    canonical: CanonicalVolume,
    mask_zyx: MaskZYX,
    *,
    path: Path,
    title: str,
    flags: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> tuple[str, ...]:
    """Write a PNG of axial slices at 25, 50 and 75 % of the liver's height, and a coronal one.

    The coronal slice is the one with most of the mask. Shown as radiologists look at it: anterior
    or superior at the top, the patient's left at the right. An empty mask shows slices of the
    whole volume and says so.

    Parameters
    ----------
    canonical, mask_zyx
        The image and its mask (foreground > 0), of one shape.
    path
        Of the PNG; written whole or not at all.
    title
        Case and sequence; the volume in ml is added.
    flags
        Words after the title, in the colour of their meaning, or grey.
    warnings
        Printed below the slices in amber, one line each, cut to the width.

    Returns
    -------
    tuple
        A warning if the file cannot be written; the run does not fail for it.
    """
    image, mask = canonical.array_zyx, np.asarray(mask_zyx) > 0
    axial = _slice_indices(mask)
    coronal = _fullest_coronal(mask)
    slices = [image[index] for index in axial]
    # The top of the tile is superior.
    slices.append(image[::-1, coronal])
    covers = [mask[index] for index in axial] + [mask[::-1, coronal]]
    z, y, x = canonical.spacing_zyx_mm
    pixels = [(y, x)] * len(axial) + [(z, x)]
    greys = _window([one.astype(np.float32) for one in slices])
    tiles = [
        _tile(grey, cover, pixel_mm=pixel_mm, size=(_TILE_WIDTH, _TILE_HEIGHT))
        for grey, cover, pixel_mm in zip(greys, covers, pixels, strict=True)
    ]
    labels = [f"slice {index + 1} of {len(mask)}" for index in axial]
    labels.append(f"coronal {coronal + 1} of {mask.shape[1]}")
    volume_ml = mask_volume_ml(mask, spacing_zyx_mm=canonical.spacing_zyx_mm)
    words = [f"{title}   {volume_ml:.0f} ml", *flags, *([] if mask.any() else ["EMPTY"])]
    canvas = _canvas(words, tiles, labels, warnings[:_MOST_WARNINGS])
    try:
        with atomic_path(path) as partial:
            _save(canvas, partial)
    except OutputError as error:
        return (f"no_preview: {error}",)
    return ()


def _canvas(
    words: Sequence[str], tiles: Sequence[Image], labels: Sequence[str], warnings: Sequence[str]
) -> Image:
    """Put tiles side by side, between a title with flags, and labels and warnings."""
    from PIL import Image, ImageDraw

    width, footer_top = _TILE_WIDTH * len(tiles), _HEADER_HEIGHT + _TILE_HEIGHT
    canvas = Image.new("RGB", (width, footer_top + _FOOTER_HEIGHT * (1 + len(warnings))))
    draw = ImageDraw.Draw(canvas)
    title, small, smallest = (_font(size) for size in (15, 12, 11))

    def write(text: str, left: float, y: float, font: Font, colour: Colour = _GREY_RGB) -> None:
        draw.text((left, y), text, fill=colour, font=font, anchor="lm")

    left = 8
    for number, word in enumerate(words):
        colour = _FLAG_RGB.get(word, _GREY_RGB) if number else _GREY_RGB
        write(word, left, _HEADER_HEIGHT / 2, title, colour)
        left += int(title.getlength(word)) + (10 if number else 20)
    y = footer_top + _FOOTER_HEIGHT / 2
    for number, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        left = number * _TILE_WIDTH
        canvas.paste(tile, (left, _HEADER_HEIGHT))
        # Between the patient's right and left.
        middle = (_TILE_WIDTH - int(smallest.getlength(label))) // 2
        for text, inset in (("R", 8), (label, middle), ("L", _TILE_WIDTH - 16)):
            write(text, left + inset, y, smallest)
    for warning in warnings:
        y += _FOOTER_HEIGHT
        write(_cut(warning, small, width=width - 16), 8, y, small, _AMBER_RGB)
    return canvas


def _cut(text: str, font: Font, *, width: int) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2].rstrip(" .,;") + "\N{HORIZONTAL ELLIPSIS}"
    return text


def _font(size: int) -> Font:
    import matplotlib
    from PIL import ImageFont

    # Pillow's own font has no letters beyond ASCII.
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def _save(canvas: Image, target: Path | io.BytesIO) -> None:
    """Write a PNG of a few colours, among them the outline's."""
    from PIL import Image

    palette = Image.new("P", (1, 1))
    palette.putpalette(_PALETTE)
    few = canvas.quantize(palette=palette, dither=Image.Dither.NONE)
    few.save(target, format="PNG")


def _slice_indices(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Choose the slices at the wanted fractions of the liver's height, or of the whole stack."""
    occupied = np.flatnonzero(mask.any(axis=(1, 2)))
    first, last = (occupied[0], occupied[-1]) if occupied.size else (0, len(mask) - 1)
    return [round(first + fraction * (last - first)) for fraction in _FRACTIONS]


def _fullest_coronal(mask: npt.NDArray[np.bool_]) -> int:
    filled = mask.sum(axis=(0, 2))
    return int(filled.argmax()) if filled.any() else mask.shape[1] // 2


def _window(slices: Sequence[npt.NDArray[np.float32]]) -> list[_Pixels]:
    """Map the slices to grey levels, between two percentiles of them all."""
    step = _PERCENTILE_STRIDE
    sample = np.concatenate([one[::step, ::step].ravel() for one in slices])
    low, high = np.percentile(sample, _WINDOW_PERCENTILES)
    span = max(float(high - low), 1e-6)
    return [(np.clip((one - low) / span, 0.0, 1.0) * 255).astype(np.uint8) for one in slices]


def _tile(
    grey: _Pixels,
    mask: npt.NDArray[np.bool_],
    *,
    pixel_mm: tuple[float, float],
    size: tuple[int, int],
) -> Image:
    """Draw one slice with its outline, scaled to fit a tile (width, height).

    ``pixel_mm`` is the spacing along the slice's two axes; a millimetre is as long along both.
    """
    from PIL import Image

    width, height = size
    tall_mm, wide_mm = (n * step for n, step in zip(grey.shape, pixel_mm, strict=True))
    scale = min(width / wide_mm, height / tall_mm)
    fitted = (max(round(wide_mm * scale), 1), max(round(tall_mm * scale), 1))
    smooth = Image.Resampling.BILINEAR
    shown = np.asarray(Image.fromarray(grey).resize(fitted, smooth))
    cover = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(fitted, smooth)) > 127
    drawn = np.stack([shown] * 3, axis=-1)
    drawn[_inner_edge(cover)] = _OUTLINE_RGB
    tile = Image.new("RGB", size)
    tile.paste(Image.fromarray(drawn), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    return tile


def thumbnail(
    image_yx: npt.NDArray[np.generic],
    mask_yx: npt.NDArray[np.generic],
    *,
    spacing_yx_mm: tuple[float, float],
    size: tuple[int, int],
) -> bytes:
    """Return a PNG of ``size`` (width, height) of one slice with its outline."""
    [grey] = _window([np.asarray(image_yx, np.float32)])
    tile = _tile(grey, np.asarray(mask_yx) > 0, pixel_mm=spacing_yx_mm, size=size)
    written = io.BytesIO()
    _save(tile, written)
    return written.getvalue()


def _inner_edge(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Find the pixels of a mask that have a neighbour (of four) outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


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
    """Read the best and the worst previews; none is in both groups.

    ``scored`` holds score (higher is better), title and file of each preview.
    """
    ordered = sorted(scored)
    half = len(ordered) // 2
    lowest = ordered[: min(_MOST_IN_GALLERY, half)]
    highest = ordered[max(half, len(ordered) - _MOST_IN_GALLERY) :][::-1]
    worst, best = (
        tuple(Preview(title, score, _embeddable_png(path)) for score, title, path in rows)
        for rows in (lowest, highest)
    )
    return Gallery(judged_by, worst, best)


def _embeddable_png(path: Path) -> bytes | None:
    """Read a PNG and reduce it if it is large; log a warning and return None if that fails."""
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            picture.load()
            if picture.width <= _MAX_WIDTH:
                return content
            height = max(1, round(picture.height * _MAX_WIDTH / picture.width))
            small = picture.convert("RGB").resize((_MAX_WIDTH, height))
    # Pillow raises errors of several classes for damaged files.
    except (OSError, ValueError, SyntaxError) as error:
        logger.warning("%s: cannot be shown (%s)", path, error)
        return None
    written = io.BytesIO()
    small.quantize(_MOST_COLOURS).save(written, format="PNG", optimize=True)
    return written.getvalue()
