import math
import re
from xml.etree.ElementTree import tostring

import pytest

from sslmedsam2.reporting.line_charts import Curve, LineChart, line_chart


def drawn(*curves, levels=()):
    named = tuple(Curve(f"fold {k}", tuple(points)) for k, points in enumerate(curves))
    return line_chart(LineChart("Loss", "epoch", named, levels))


def polylines(figure):
    return [
        [tuple(map(float, place.split(","))) for place in line.get("points").split()]
        for line in figure.iter("polyline")
    ]


def ticks(figure, axis):
    return [text.text for text in figure.iter("text") if text.get("class") == f"tick-{axis}"]


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
    figure = drawn([(1, 0.137), (40, 0.883)], levels=(("settled", 0.97),))
    assert ticks(figure, "y") == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert ticks(figure, "x")[:-1] == ["10", "20", "30", "40"]
    assert ticks(figure, "x")[-1] == "epoch"


def test_few_rounds_have_whole_numbers_for_ticks():
    assert ticks(drawn([(1, 0.5), (3, 0.6)]), "x")[:-1] == ["1", "2", "3"]


@pytest.mark.parametrize("value", [0.0, 0.001, -3.5, 0.3])
def test_a_single_value_lies_within_the_chart(value):
    figure = drawn([(1, value)])
    ((_, y),) = polylines(figure)[0]
    assert 12 < y < 140
    assert ticks(figure, "x")[:-1] == ["1"]


def test_what_is_not_finite_is_left_out():
    (line,) = polylines(drawn([(1, 0.5), (2, math.nan), (3, math.inf), (4, 0.7)]))
    assert len(line) == 2


def test_nothing_to_draw_gives_no_chart():
    assert drawn() is None
    assert drawn([], [(1, math.nan)]) is None


def test_a_long_curve_is_thinned_and_keeps_its_end():
    (line,) = polylines(drawn([(epoch, epoch) for epoch in range(1, 1001)]))
    assert 100 < len(line) <= 200
    assert line[-1] == max(line)
    assert line[-1][1] == polylines(drawn([(999, 0), (1000, 1000)]))[0][-1][1]


def test_points_of_a_short_curve_tell_their_values():
    titles = [title.text for title in drawn([(1, 0.5), (2, 0.12345)]).iter("title")]
    assert titles == ["fold 0, 1: 0.5", "fold 0, 2: 0.1235"]
    assert not list(drawn([(x, x) for x in range(100)]).iter("circle"))


def test_curves_and_levels_are_named_and_told_in_words():
    figure = drawn([(1, 0.5), (2, 0.25)], levels=(("settled", 0.97),))
    assert [entry[0].tail for entry in figure.iter("li")] == ["fold 0", "settled: 0.97"]
    assert figure.find("svg").get("aria-label") == "Loss: fold 0 from 0.5 to 0.25"


def test_colours_are_left_to_the_style_sheet():
    text = tostring(drawn([(1, 1), (2, 2)], levels=(("settled", 1.5),)), encoding="unicode")
    assert not re.search(r"style=|stroke=|fill=|#[0-9a-f]{3}", text)
