"""Line charts as inline SVG, drawn by matplotlib.

The Content-Security-Policy of a page allows no inline style, and a chart follows the colour scheme
of the page. So style attributes are converted to presentation attributes, and colours to variables
of the style sheet.
"""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree

from markupsafe import Markup

_HEIGHT: Final = 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
_FONT_SIZE: Final = 11
_MOST_POINTS: Final = 200
"""Largest number of points of a curve that are drawn."""
_MOST_DOTS: Final = 25
# Colours that matplotlib draws with, and what stands for them in the page. Line styles are those
# of the legend in retrain.css.
_CURVES: Final = tuple(f"#0000f{k}" for k in range(6))
_DASHES: Final = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 4), (1, 3))
_LEVEL_DASHES: Final = (2, 4)
_MUTED, _LINE = "#0000e0", "#0000e1"
_VARIABLES: Final = {
    **{colour: f"var(--curve-{k})" for k, colour in enumerate(_CURVES)},
    **{_MUTED: "var(--muted)", _LINE: "var(--line)"},
}
_SVG: Final = "{http://www.w3.org/2000/svg}"
_DOT_RADIUS: Final = 3
_VALUE: Final = ": "
"""Stands in the identifiers of dots, which say their values, and in no other."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart, as points (x, y)."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class LineChart:
    """The content of a line chart.

    Attributes
    ----------
    x_name
        Name of the x axis, which has whole numbers.
    curves
        Points that are not finite, and curves without points, are left out.
    levels
        Names and heights of horizontal lines.
    width
        Pixels, for a height of 180.
    """

    title: str
    x_name: str
    curves: tuple[Curve, ...]
    levels: tuple[tuple[str, float], ...] = ()
    width: int = 300

    @property
    def has_points(self) -> bool:
        """Whether there is anything to draw."""
        return any(_drawn(curve.points) for curve in self.curves)

    @property
    def description(self) -> str:
        """A description of the chart for screen readers."""
        ends = [
            f"{curve.name} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
            for curve in self.curves
            if (points := _drawn(curve.points))
        ]
        return f"{self.title}: {', '.join(ends)}"


def _drawn(points: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    finite = [point for point in points if all(map(math.isfinite, point))]
    stride = max(1, math.ceil(len(finite) / _MOST_POINTS))
    # Counted from the end, so that the last point is drawn.
    return finite[::-1][::stride][::-1]


# A page is written after every stage, and most of its charts have not changed.
@functools.lru_cache(maxsize=256)
def svg(chart: LineChart) -> Markup:
    """Draw a chart as an ``svg`` element for a page with the variables of retrain.css."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    settings: Any = {
        "svg.fonttype": "none",
        "lines.scale_dashes": False,
        "axes.autolimit_mode": "round_numbers",
        "axes.xmargin": 0,
        "axes.ymargin": 0,
        "font.size": _FONT_SIZE,
        "text.parse_math": False,
    }
    with mpl.rc_context():
        # nnU-Net's own plots change the defaults of the process that trains.
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        figure = Figure(figsize=(chart.width / 72, _HEIGHT / 72), dpi=72)
        width, height = chart.width - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        place = (_LEFT / chart.width, _BOTTOM / _HEIGHT, width / chart.width, height / _HEIGHT)
        axes = figure.add_axes(place, frameon=False)
        figure.patch.set_visible(False)
        for k, curve in enumerate(chart.curves):
            points = _drawn(curve.points)
            style: dict[str, Any] = {"color": _CURVES[k % len(_CURVES)], "clip_on": False}
            dashes = _DASHES[k % len(_DASHES)]
            axes.plot(*zip(*points, strict=True), linewidth=1.8, dashes=dashes, **style)
            for x, y in points if len(points) <= _MOST_DOTS else ():
                axes.plot(
                    x,
                    y,
                    "o",
                    markersize=2 * _DOT_RADIUS,
                    gid=f"{curve.name}, {x:g}{_VALUE}{y:.4g}",
                    **style,
                )
        for _, y in chart.levels:
            axes.axhline(y, color=_MUTED, linewidth=1, dashes=_LEVEL_DASHES)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(length=0, pad=8, labelcolor=_MUTED)
        axes.grid(axis="y", color=_LINE, linewidth=1)
        axes.set_xlabel(chart.x_name, color=_MUTED)
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing)
    text = written.getvalue()
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    drawing = _for_page(ElementTree.fromstring(text))
    drawing.attrib = {
        "viewBox": f"0 0 {chart.width} {_HEIGHT}",
        "role": "img",
        "aria-label": chart.description,
    }
    return Markup(ElementTree.tostring(drawing, encoding="unicode", short_empty_elements=False))


def _for_page(source: ElementTree.Element) -> ElementTree.Element:
    """Copy an element of matplotlib's file without inline style, identifiers and definitions."""
    given = source.attrib
    style = (part.split(": ", 1) for part in given.get("style", "").split("; ") if part)
    attributes = {name: value for name, value in style if name != "font-family"}
    attributes |= {name: given[name] for name in ("x", "y", "d") if name in given}
    tag = source.tag.removeprefix(_SVG)
    if tag == "use":
        tag = "circle"
        attributes |= {"cx": given["x"], "cy": given["y"], "r": str(_DOT_RADIUS)}
    made = ElementTree.Element(tag, attributes)
    made.text = (source.text or "").strip()
    if tag == "g" and _VALUE in given.get("id", ""):
        ElementTree.SubElement(made, "title").text = given["id"]
    made.extend(_for_page(child) for child in source if child.tag != f"{_SVG}defs")
    return made
