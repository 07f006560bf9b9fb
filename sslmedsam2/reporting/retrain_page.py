"""Writing the page of a ``retrain`` run: one HTML file that needs nothing beside it.

Style and sorting are those of the QC page. Markup is made as a tree, never from text, and the page
allows no script or style but its own two, named by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

from sslmedsam2.imaging.atomic import write_text_atomic
from sslmedsam2.reporting.markup import element, to_html
from sslmedsam2.reporting.retrain_page_data import RetrainPage
from sslmedsam2.reporting.retrain_sections import (
    fewshot_section,
    head,
    round_section,
    rounds_section,
)

_ASSETS_FOLDER: Final = "assets"
_TEMPLATE: Final = "retrain.html"
_STYLES: Final = ("page.css", "retrain.css")
_SCRIPTS: Final = ("sorting.js", "retrain.js")


def write_retrain_page(path: Path, page: RetrainPage) -> Path:
    """Write the page, whole or not at all, and return its path; raises OutputError."""
    style, script = (_together(names) for names in (_STYLES, _SCRIPTS))
    text = Template(_together((_TEMPLATE,))).substitute(
        title=html.escape(page.title.encode("utf-8", "backslashreplace").decode("utf-8")),
        style=style,
        style_hash=_policy_hash(style),
        script=script,
        script_hash=_policy_hash(script),
        body=_body(page),
    )
    write_text_atomic(path, text)
    return path


def _body(page: RetrainPage) -> str:
    best = page.outcome.best_round if page.outcome else None
    newest = page.rounds[-1].number if page.rounds else None
    main = element(
        "main",
        rounds_section(page),
        fewshot_section(page.fewshot, is_open=best is None),
        *(
            round_section(part, is_best=part.number == best, is_open=part.number in (best, newest))
            for part in page.rounds
        ),
    )
    return to_html(head(page)) + to_html(main)


def _together(names: tuple[str, ...]) -> str:
    assets = resources.files(__package__) / _ASSETS_FOLDER
    return "".join((assets / name).read_text(encoding="utf-8") for name in names)


def _policy_hash(text: str) -> str:
    """Name an inline script or style in a content security policy."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
