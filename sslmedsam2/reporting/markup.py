"""Markup made as a tree, so that no name from the input can ever become a tag."""

from __future__ import annotations

import base64
from xml.etree.ElementTree import Element, SubElement, tostring

Content = Element | str | None


def element(tag: str, *content: Content, **attributes: str | int | float | bool | None) -> Element:
    """Make an element of HTML or SVG.

    Parameters
    ----------
    content
        Text and elements in order; None is left out.
    attributes
        ``aria_label`` stands for ``aria-label``, ``class_`` for ``class``. None and False leave
        the attribute out, True gives it without a value.
    """
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            made.set(name.rstrip("_").replace("_", "-"), "" if value is True else str(value))
    add(made, *content)
    return made


def add(parent: Element, *content: Content) -> None:
    """Append text and elements; None is left out."""
    for part in content:
        if isinstance(part, str):
            _add_text(parent, part)
        elif part is not None:
            parent.append(part)


def definitions(facts: tuple[tuple[str, str], ...]) -> Element:
    """Return a list of names and values."""
    made = element("dl")
    for name, value in facts:
        SubElement(made, "dt").text = name
        SubElement(made, "dd").text = value
    return made


def to_html(content: Element) -> str:
    """Return an element as HTML, escaped, in characters that UTF-8 can hold."""
    text = tostring(content, encoding="unicode", method="html")
    # File names need not be valid text.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def png_address(png: bytes) -> str:
    """Return an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _add_text(parent: Element, text: str) -> None:
    if len(parent):
        last = parent[-1]
        last.tail = (last.tail or "") + text
    else:
        parent.text = (parent.text or "") + text
