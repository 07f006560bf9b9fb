import math
import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from sslmedsam2.reporting.charts import Curve, LineChart, svg


def chart(*curves, levels=()):
    named = tuple(Curve(f"fold {k}", tuple(points)) for k, points in enumerate(curves))
    return LineChart("Loss", "epoch", named, levels)


def drawn(*curves, levels=()):
    return ElementTree.fromstring(svg(chart(*curves, levels=levels)))


def polylines(drawing):
    """Return the points of each curve, in pixels."""
    paths = [path for path in drawing.iter("path") if "--curve" in path.get("stroke")]
    return [
        [tuple(map(float, place)) for place in re.findall(r"[ML] (\S+) (\S+)", path.get("d"))]
        for path in paths
    ]


def ticks(drawing, axis):
    """Return the tick labels of an axis; those of y end where the axis begins."""
    anchor = {"x": "middle", "y": "end"}[axis]
    return [text.text for text in drawing.iter("text") if text.get("text-anchor") == anchor]


def test_higher_values_are_drawn_higher_and_later_ones_to_the_right():
    (line,) = polylines(drawn([(1, 0.5), (2, 0.9), (3, 0.7)]))
    (x1, y1), (x2, y2), (x3, y3) = line
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert x1 < x2
    # SVG counts downwards.
    assert y2 < y3 < y1


def test_two_curves_share_one_scale():
    low, high = polylines(drawn([(1, 0.0), (2, 0.0)], [(1, 1.0), (2, 1.0)]))
    assert low[0][0] == high[0][0]
    assert low[0][1] > high[0][1]


def test_ticks_are_round_numbers_that_hold_all_values():
    drawing = drawn([(1, 0.137), (40, 0.883)], levels=(("settled", 0.97),))
    assert ticks(drawing, "y") == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    *numbers, name = ticks(drawing, "x")
    assert all(float(number).is_integer() for number in numbers)
    assert name == "epoch"


def test_few_rounds_have_whole_numbers_for_ticks():
    assert ticks(drawn([(1, 0.5), (3, 0.6)]), "x")[:-1] == ["1", "2", "3"]


@pytest.mark.parametrize("value", [0.0, 0.001, -3.5, 0.3])
def test_a_single_value_lies_within_the_chart(value):
    drawing = drawn([(1, value)])
    (dot,) = drawing.iter("circle")
    assert 12 < float(dot.get("cy")) < 140
    assert ticks(drawing, "x")[:-1] == ["0", "1", "2"]


def test_what_is_not_finite_is_left_out():
    (line,) = polylines(drawn([(1, 0.5), (2, math.nan), (3, math.inf), (4, 0.7)]))
    assert len(line) == 2


def test_a_chart_without_points_has_nothing_to_draw():
    assert not chart().has_points
    assert not chart([], [(1, math.nan)]).has_points
    assert chart([(1, 0.5)]).has_points


def test_a_long_curve_is_thinned_and_keeps_its_end():
    points = [(epoch, epoch % 7 + epoch / 10) for epoch in range(1, 1001)]
    (line,) = polylines(drawn(points))
    assert 100 < len(line) <= 200
    assert line[-1] == pytest.approx(polylines(drawn(points[-2:], points))[0][-1], abs=0.01)


def test_points_of_a_short_curve_tell_their_values():
    titles = [title.text for title in drawn([(1, 0.5), (2, 0.12345)]).iter("title")]
    assert titles == ["fold 0, 1: 0.5", "fold 0, 2: 0.1235"]
    assert not list(drawn([(x, x) for x in range(100)]).iter("circle"))


def test_a_chart_is_told_in_words():
    drawing = drawn([(1, 0.5), (2, 0.25)], levels=(("settled", 0.97),))
    assert drawing.get("aria-label") == "Loss: fold 0 from 0.5 to 0.25"


def test_colours_are_left_to_the_style_sheet_and_nothing_is_inline_style():
    text = svg(chart([(1, 1), (2, 2)], levels=(("settled", 1.5),)))
    assert not re.search(r"style|font-family|#[0-9a-f]{3}|https?:| id=", text)
    assert set(re.findall(r'(?:stroke|fill)="([^"]*)"', text)) == {
        "none",
        "var(--curve-0)",
        "var(--line)",
        "var(--muted)",
    }


def test_the_settings_of_other_plots_do_not_reach_a_chart():
    plain = chart([(1, 1), (2, 2)])
    expected = svg.__wrapped__(plain)
    with mpl.rc_context(
        {"figure.facecolor": "#ffeeee", "axes.grid": True, "xtick.color": "#ff0000"}
    ):
        assert svg.__wrapped__(plain) == expected


def test_a_name_with_markup_stays_text():
    drawing = drawn([(1, 1), (2, 2)])
    hostile = LineChart("<b>", "a<i>$x$", (Curve("<img>", ((1, 1.0), (2, 2.0))),))
    drawing = ElementTree.fromstring(svg(hostile))
    assert "a<i>$x$" in ticks(drawing, "x")
    assert not list(drawing.iter("img"))
