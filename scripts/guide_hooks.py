"""What mkdocs does beyond its configuration: pages that lie elsewhere in the repository.

In the repository such links lead to the files themselves; in the guide, to a page made of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "benchmarks/RESULTS.md": "results.md",
    "weights/MODEL_CARD.md": "model_card.md",
    "LICENSE": "LICENSE",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the files to the guide."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links out of ``docs/`` to the pages made of their targets."""
    for path, page in PAGES.items():
        markdown = markdown.replace(f"](../{path})", f"]({page})")
    return markdown
