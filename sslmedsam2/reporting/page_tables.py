"""Tables of a page that a click on a heading sorts, once ``retrain.js`` has seen them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from xml.etree.ElementTree import Element

from sslmedsam2.reporting.markup import Content, element

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table.

    Attributes
    ----------
    value
        What a row shows and is sorted by: text, a number, or None for nothing.
    digits
        After the point, for numbers; None for text.
    draw
        Makes the content of a cell where text is not enough.
    told
        What the heading means, shown when a pointer rests on it.
    """

    name: str
    value: Callable[[Row], str | float | None]
    digits: int | None = None
    draw: Callable[[Row], Content] | None = None
    told: str | None = None


def table(
    columns: Sequence[Column[Row]], rows: Sequence[Row], *, caption: str, sortable: bool = True
) -> Element:
    """Return a table in a frame that scrolls, which the keyboard can reach."""
    headings = [
        element(
            "th",
            column.name,
            scope="col",
            class_="figure" if column.digits is not None else None,
            title=column.told,
        )
        for column in columns
    ]
    body = [element("tr", *(_cell(column, row) for column in columns)) for row in rows]
    made = element(
        "table",
        element("caption", caption, class_="visually-hidden"),
        element("thead", element("tr", *headings)),
        element("tbody", *body),
        class_="sortable" if sortable else None,
    )
    return element("div", made, class_="table-frame", tabindex=0, role="region", aria_label=caption)


def badge(word: str, tone: str) -> Element:
    """Return a word on a coloured ground: ``good``, ``warn``, ``bad`` or, empty, grey."""
    return element("span", word, class_=f"status {tone}".rstrip())


def _cell(column: Column[Row], row: Row) -> Element:
    value = column.value(row)
    if isinstance(value, str) or value is None:
        content: Content = value or ""
        number = "" if column.digits is not None else None
    else:
        content, number = f"{value:.{column.digits or 0}f}", repr(value)
    if column.draw is not None:
        content = column.draw(row)
    figure = "figure" if column.digits is not None else None
    return element("td", content, class_=figure, data_value=number)
