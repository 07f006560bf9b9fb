"""mkdocs hooks: add pages whose files are outside ``docs/``.

A link from ``docs/`` to a model card or to the benchmark results points to that file in the
repository. In the built guide it points to a page made from the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

REPOSITORY = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\(\.\./([^)#]+)")


def on_config(config: Any) -> Any:
    """Name the version in the footer of every page."""
    text = (REPOSITORY / "sslmedsam2" / "__init__.py").read_text(encoding="utf-8")
    [version] = re.findall(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    config.copyright = f"SSL-MedSAM2 {version}"
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add existing link targets outside ``docs/``; mkdocs reports missing ones."""
    pages = [page for page in files.documentation_pages() if "/" not in page.src_uri]
    targets = {path for page in pages for path in _LINK.findall(page.content_string)}
    for path in sorted(targets):
        source = REPOSITORY / path
        if source.is_file():
            files.append(
                File.generated(
                    config,
                    _page_name(path),
                    abs_src_path=str(source),
                    inclusion=InclusionLevel.NOT_IN_NAV,
                )
            )
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Rewrite links out of ``docs/`` to the added pages, and links of those back into it."""
    if "/" in page.file.src_uri:
        return markdown

    def target_of(link: re.Match[str]) -> str:
        if link[1].startswith("docs/"):
            return "](" + link[1].removeprefix("docs/")
        name = _page_name(link[1])
        return f"]({name}" if name in files.src_uris else link[0]

    return _LINK.sub(target_of, markdown)


def _page_name(path: str) -> str:
    return path.replace("/", "-")
