"""Small line charts as inline SVG, drawn without a plotting library.

Colours and line styles are the style sheet's: ``curve-0``, ``curve-1`` and so on, in the order of
the curves, and ``level``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

from sslmedsam2.reporting.markup import element

Point = tuple[float, float]

_HEIGHT: Final = 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
_MOST_TICKS: Final = 6
_MOST_POINTS: Final = 200
"""Points of a curve that are drawn: more than a small chart can show apart."""
_MOST_DOTS: Final = 25
_N_STYLES: Final = 6
_LEVEL: Final = "level"


@dataclass(frozen=True)
class Curve:
    """One line of a chart; points that are not finite are left out."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class LineChart:
    """What a chart shows.

    Attributes
    ----------
    x_name
        What is counted along x, in whole numbers.
    levels
        Names and heights of lines to compare the curves with.
    """

    title: str
    x_name: str
    curves: tuple[Curve, ...]
    levels: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class _Scale:
    """A linear map from values to pixels, with its ticks."""

    low: float
    high: float
    first_pixel: float
    last_pixel: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.first_pixel + share * (self.last_pixel - self.first_pixel), 1)


def line_chart(chart: LineChart, *, width: int = 300) -> Element | None:
    """Return a figure with the chart and its legend; None if there is nothing to draw."""
    curves = [Curve(curve.name, _thinned(curve.points)) for curve in chart.curves]
    points = [point for curve in curves for point in curve.points]
    if not points:
        return None
    x_scale = _x_scale([x for x, _ in points], width=width)
    y_scale = _y_scale([y for _, y in points] + [height for _, height in chart.levels])
    drawing = element(
        "svg",
        *_frame(x_scale, y_scale, x_name=chart.x_name, width=width),
        *(_level(height, x_scale, y_scale) for _, height in chart.levels),
        *(_curve(curve, k, x_scale, y_scale) for k, curve in enumerate(curves)),
        viewBox=f"0 0 {width} {_HEIGHT}",
        role="img",
        aria_label=_in_words(chart.title, curves),
    )
    entries = [_legend_entry(curve.name, _style(k)) for k, curve in enumerate(curves)]
    entries += [_legend_entry(f"{name}: {height:.4g}", _LEVEL) for name, height in chart.levels]
    legend = element("ul", *entries, class_="legend")
    caption = element("figcaption", chart.title)
    return element("figure", caption, drawing, legend, class_="chart")


def _thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """Leave out what is not finite and, of many points, all but every so-many-th and the last."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    step = max(1, math.ceil(len(finite) / _MOST_POINTS))
    # Counted from the end, which is what the training came to.
    return tuple(finite[::-1][::step][::-1])


def _x_scale(values: Sequence[float], *, width: int) -> _Scale:
    low, high = min(values), max(values)
    step = max(1.0, _nice_step(high - low))
    ticks = _multiples(math.ceil(low / step), math.floor(high / step), step)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return _Scale(low, high, _LEFT, width - _RIGHT, ticks)


def _y_scale(values: Sequence[float]) -> _Scale:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    step = _nice_step(high - low)
    # A value that is a tick but for rounding must not ask for one more.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = _multiples(first, last, step)
    return _Scale(ticks[0], ticks[-1], _HEIGHT - _BOTTOM, _TOP, ticks)


def _nice_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, so that few ticks cover the span."""
    if span <= 0:
        return 1.0
    rough = span / (_MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _multiples(first: int, last: int, step: float) -> tuple[float, ...]:
    return tuple(float(f"{k * step:.10g}") for k in range(first, last + 1))


def _frame(x_scale: _Scale, y_scale: _Scale, *, x_name: str, width: int) -> list[Element]:
    """Return grid, ticks and the name of x."""
    right, bottom = width - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in y_scale.ticks:
        y = y_scale(tick)
        parts.append(element("line", class_="grid", x1=_LEFT, x2=right, y1=y, y2=y))
        parts.append(element("text", f"{tick:g}", class_="tick-y", x=_LEFT - 6, y=y + 4))
    for tick in x_scale.ticks:
        parts.append(element("text", f"{tick:g}", class_="tick-x", x=x_scale(tick), y=bottom + 15))
    middle = (_LEFT + right) / 2
    parts.append(element("text", x_name, class_="tick-x", x=middle, y=_HEIGHT - 7))
    return parts


def _level(height: float, x_scale: _Scale, y_scale: _Scale) -> Element:
    y = y_scale(height)
    return element("line", class_=_LEVEL, x1=_LEFT, x2=x_scale.last_pixel, y1=y, y2=y)


def _curve(curve: Curve, index: int, x_scale: _Scale, y_scale: _Scale) -> Element:
    places = [(x_scale(x), y_scale(y)) for x, y in curve.points]
    line = element("polyline", points=" ".join(f"{x},{y}" for x, y in places))
    dots = []
    if len(places) <= _MOST_DOTS:
        for (x, y), point in zip(places, curve.points, strict=True):
            told = element("title", f"{curve.name}, {point[0]:g}: {point[1]:.4g}")
            dots.append(element("circle", told, cx=x, cy=y, r=3))
    return element("g", line, *dots, class_=_style(index))


def _legend_entry(name: str, style: str) -> Element:
    line = element("line", class_=style, x1=0, x2=26, y1=5, y2=5)
    sample = element("svg", line, viewBox="0 0 26 10", aria_hidden="true")
    return element("li", sample, name)


def _style(index: int) -> str:
    return f"curve-{index % _N_STYLES}"


def _in_words(title: str, curves: Sequence[Curve]) -> str:
    """Say what somebody hears who cannot see the chart."""
    ends = [
        f"{curve.name} from {curve.points[0][1]:.3g} to {curve.points[-1][1]:.3g}"
        for curve in curves
        if curve.points
    ]
    return f"{title}: {', '.join(ends)}"
