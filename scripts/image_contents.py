"""What a saved image must not hold, looked for in every layer, also under what later ones hide.

`python image_contents.py ARCHIVE FORBIDDEN`: an archive as `docker save` writes it, and the
``forbidden.json`` of `image_site.py`. Prints one line for each thing found; ends with 1 then.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

LARGEST_SEARCHED = 64 << 20
"""Larger files are libraries with tensors of code; addresses do not hide there."""

UNWANTED_NAMES = {
    "a compiler or build tool": (
        r"(usr/)?(local/)?s?bin/([a-z0-9_]+-linux-gnu-)?"
        r"(gcc|g\+\+|cc|c\+\+|cpp|clang|ld|as|make|cmake|ninja|nvcc)(-?[0-9.]+)?$"
    ),
    "pip or another installer": (
        r"(bin/pip[0-9.]*$|(site|dist)-packages/(pip|setuptools|wheel|uv)/|\.whl$)"
    ),
    "a cache of packages": (
        r"(\.cache/(pip|uv)/.|var/cache/apt/.*\.(deb|bin)$|var/lib/apt/lists/.*_(In)?Release$)"
    ),
    # The eight palettes of the DICOM standard are files of that kind, and no data of anybody.
    "test data": (
        r"^(app/(test_inputs|tests|benchmarks)/.*"
        r"|(?!.*/pydicom/data/palettes/).*\.(nii|mha|nrrd|dcm)(\.gz)?)$"
    ),
    "git history": r"(^|/)\.git(/|$)",
    "a file of the build": (
        r"^(run/secrets/.|app/(constraints\.txt|scripts/|\.dockerignore)|root/\.(config|pip|ssh)/)"
    ),
    "a certificate of a site": r"^usr/local/share/ca-certificates/.",
}


def main() -> None:
    """Search, and say what was found."""
    archive, forbidden_path = map(Path, sys.argv[1:])
    forbidden = json.loads(forbidden_path.read_text(encoding="utf-8"))
    found = sorted(set(search(archive, forbidden["strings"], forbidden["certificates"])))
    for line in found:
        print(line)
    sys.exit(bool(found))


def search(archive: Path, strings: list[str], certificates: list[str]) -> Iterator[str]:
    """Yield a line for each thing in the archive that should not be there."""
    needles = {text.encode(): repr(text) for text in strings}
    needles |= {text.encode(): "a certificate of the building machine" for text in certificates}
    with tarfile.open(archive) as outer:
        layers = json.load(_member(outer, "manifest.json"))[0]["Layers"]
        for member in outer:
            if member.name in layers:
                with tarfile.open(fileobj=_member(outer, member.name)) as layer:
                    yield from _search_layer(layer, needles)
            elif member.isfile() and member.size < LARGEST_SEARCHED:
                content = _member(outer, member.name).read()
                yield from _search_content(f"{member.name} of the image", content, needles)


def unwanted(name: str) -> str | None:
    """Say what is wrong with a file of this name in an image; None if nothing is.

    >>> unwanted("usr/bin/x86_64-linux-gnu-gcc-12")
    'a compiler or build tool'
    """
    return next((what for what, rule in UNWANTED_NAMES.items() if re.search(rule, name)), None)


def _search_layer(layer: tarfile.TarFile, needles: dict[bytes, str]) -> Iterator[str]:
    for member in layer:
        name = member.name.removeprefix("./")
        what = unwanted(name)
        if what is not None and not member.isdir():
            yield f"{name}: {what}"
        if member.isfile() and member.size < LARGEST_SEARCHED:
            content = _member(layer, member)
            yield from _search_content(name, content.read(), needles)


def _search_content(name: str, content: bytes, needles: dict[bytes, str]) -> Iterator[str]:
    for needle, what in needles.items():
        if needle in content:
            yield f"{name}: holds {what}"


def _member(archive: tarfile.TarFile, member: str | tarfile.TarInfo):
    file = archive.extractfile(member)
    assert file is not None
    return file


if __name__ == "__main__":
    main()
