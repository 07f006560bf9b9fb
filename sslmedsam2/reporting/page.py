"""HTML pages from jinja2 templates; they open in a browser without a server.

The templates escape all names, so that nothing of the input becomes markup.

The results page shows volumes. A page opened from a file may load scripts from beside it, but may
not fetch data. So each series is a small script of its own, loaded when the series is opened:

    index.html           the table, and the data of each series, as JSON
    assets/              style, script, and NiiVue with its licence
    cases/0001.js        image and masks of one series, at most ``MAX_CASE_BYTES``
    cases/0001.png       its picture in the table
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.atomic import output_error, write_bytes_atomic, write_text_atomic
from sslmedsam2.reporting.charts import svg
from sslmedsam2.reporting.page_volumes import ViewVolumes

INDEX_NAME = "index.html"
MAX_CASE_BYTES = 2_000_000
"""Largest size of a series' script."""

VIEW_BUDGET_BYTES = (MAX_CASE_BYTES - 2_000) * 3 // 4
"""What its volumes may take before base64 makes four characters of three bytes."""

_ASSETS_FOLDER = "assets"
_CASES_FOLDER = "cases"
_COPIED_ASSETS = (
    *("page.css", "tables.js", "run.js", "viewer.js"),
    *("niivue.umd.js", "NIIVUE-LICENSE.txt"),
)
_STYLES: Final = ("page.css", "retrain.css")
_SCRIPTS: Final = ("tables.js", "retrain.js")
_CASE_NAME = re.compile(r"\d{4,}\.(js|png)")


def write_volumes_case(folder: Path, series_id: str, volumes: ViewVolumes) -> None:
    """Write a series' script with its image and masks, and its thumbnail; raises OutputError."""
    content = {
        "image": _base64(volumes.image_nifti),
        "labels": _base64(volumes.labels_nifti),
        "focus": volumes.focus_ras_mm,
        "slices": volumes.slices_xyz,
        "block": volumes.block_xyz,
        "greyRange": volumes.grey_range,
        "window": volumes.window,
    }
    _write_case(folder, series_id, content)
    write_bytes_atomic(folder / _CASES_FOLDER / f"{series_id}.png", volumes.thumbnail_png)


def write_preview_case(folder: Path, series_id: str, png: bytes) -> None:
    """Write a series' script with its preview picture; raises OutputError."""
    _write_case(folder, series_id, {"preview": "data:image/png;base64," + _base64(png)})


def check_page_folder(folder: Path) -> None:
    """Raise UsageError if a folder holds files, and no page: a page would be mixed with them."""
    if not folder.is_dir() or (folder / _ASSETS_FOLDER / _COPIED_ASSETS[-1]).is_file():
        return
    if any(folder.iterdir()):
        raise UsageError(
            folder,
            reason="it holds files that are no results page",
            remedy="Give a new or an empty folder",
        )


def write_page(folder: Path, data: Any, *, title: str, downloads: Mapping[str, str]) -> Path:
    """Write the assets and, last, the page itself; return the page's path.

    ``downloads`` are text files by their names, for which the page has buttons. Files of series
    that an earlier page had more of are removed.

    Raises OutputError: a file cannot be written.
    """
    for name in _COPIED_ASSETS:
        write_bytes_atomic(folder / _ASSETS_FOLDER / name, _asset(name))
    for name, text in downloads.items():
        write_text_atomic(folder / name, text)
    index = folder / INDEX_NAME
    content = _render("run.html", title=title, page=data, downloads=list(downloads))
    write_text_atomic(index, content)
    _remove_other_cases(folder / _CASES_FOLDER, kept=_files_of_cases(data))
    return index


def write_single_file_page(path: Path, template: str, **content: Any) -> Path:
    """Write a page that needs no file beside it and allows no script and style but its own.

    Raises OutputError: the file cannot be written.
    """
    style, script = (
        Markup("".join(_asset(name).decode("utf-8") for name in names))
        for names in (_STYLES, _SCRIPTS)
    )
    write_text_atomic(path, _render(template, style=style, script=script, **content))
    return path


def _render(template: str, **content: Any) -> str:
    text = _templates().get_template(template).render(content)
    # File names need not be valid text.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@functools.cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("sslmedsam2.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    made.filters |= {"svg": svg, "base64": _base64, "policy_hash": _policy_hash}
    return made


def _asset(name: str) -> bytes:
    return (resources.files(__package__) / _ASSETS_FOLDER / name).read_bytes()


def _policy_hash(text: str) -> Markup:
    """Name an inline script or style in a Content-Security-Policy."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return Markup(f"'sha256-{_base64(digest)}'")


def _write_case(folder: Path, series_id: str, content: dict[str, Any]) -> None:
    # The id is the page's own, never a name from the input.
    script = f"qcCases.deliver({json.dumps(series_id)}, {_json(content)});\n"
    write_text_atomic(folder / _CASES_FOLDER / f"{series_id}.js", script)


def _files_of_cases(data: Any) -> set[str]:
    shown = {row["id"]: row["shown"] for row in data["series"]}
    scripts = {f"{name}.js" for name, what in shown.items() if what != "nothing"}
    return scripts | {f"{name}.png" for name, what in shown.items() if what == "volumes"}


def _remove_other_cases(folder: Path, *, kept: set[str]) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if _CASE_NAME.fullmatch(path.name) and path.name not in kept:
            try:
                path.unlink()
            except OSError as error:
                raise output_error(path, error) from error


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
