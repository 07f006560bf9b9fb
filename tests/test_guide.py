"""The guide: it builds, loads nothing from elsewhere, and its commands and examples work.

A fenced block of bash or Python on a page is run as it stands, in the order of the page. A block
with a title (`title="needs Docker"`) cannot be run here; its commands must parse.
"""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from headless_chromium import Browser, skip_without_chromium

from sslmedsam2.cli.main import cli
from sslmedsam2.imaging.orientation import to_canonical
from sslmedsam2.imaging.reading import read_volume

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(bash|python)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

COMPOSED = (REPOSITORY / "compose.yaml").read_text(encoding="utf-8")
CONTAINER_PAGE = (DOCS / "container.md").read_text(encoding="utf-8")

CASE = "0003-B2"
ARCHIVE = "ARCHIVE"
HAS_DICOM = importlib.util.find_spec("highdicom") is not None
"""The extra is not installed where its packages have no build."""

NAMED_FILE = re.compile(r"`((?:sslmedsam2|tests|scripts|docs)/[\w./]+)`")
PAGES_ON_CODE = [DOCS / "architecture.md", REPOSITORY / "CONTRIBUTING.md"]

OUTSIDE_WORDS = {"docker build", "Permission denied"}
"""Among the messages on the page for troubleshooting: what others say."""


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def blocks_of(page: Path) -> list[tuple[str, bool, str]]:
    """Return language, whether it can be run here, and text of each block."""
    return [
        (language, not info.strip(), text)
        for language, info, text in FENCE.findall(page.read_text(encoding="utf-8"))
    ]


def commands_of(page: Path) -> Iterator[list[str]]:
    for language, _, text in blocks_of(page):
        if language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield words


def parse(command: click.Command, args: list[str]) -> None:
    """Parse arguments as the command line would, and run nothing."""
    if not isinstance(command, click.Group):
        command.make_context(command.name, args)
        return
    name, *rest = args if args and not args[0].startswith("-") else ["predict", *args]
    chosen = command.get_command(click.Context(command), name)
    assert chosen is not None, f"no command {name}"
    parse(chosen, rest)


def check_command(words: list[str]) -> None:
    """Check one line: its options, or that the file that it runs is there."""
    match words:
        case [".venv/bin/python", "entrypoint.py", *args] | ["sslmedsam2", *args]:
            parse(cli, args)
        case ["docker", "run", "--rm", "--entrypoint", "python", *args]:
            [script] = [word for word in args if word.startswith("/scripts/")]
            assert (REPOSITORY / script.lstrip("/")).is_file(), script
        case ["docker", "run", *args]:
            image = next(word for word in args if re.fullmatch("sslmedsam2(:cpu)?", word))
            parse(cli, args[args.index(image) + 1 :])
        case ["bash" | ".venv/bin/python", script, *_]:
            assert (REPOSITORY / script).is_file(), script
        case ["apptainer", "run", *args]:
            parse(cli, args[args.index("sslmedsam2.sif") + 1 :])
        case [*_, "docker", "compose", "run", "--rm", service]:
            assert re.search(f"^  {service}:$", COMPOSED, re.MULTILINE), service
        case ["sbatch", script]:
            assert f'title="{script}"' in CONTAINER_PAGE, script
        case ["docker", "build" | "buildx" | "save" | "load", *_] | ["apptainer", "build", *_]:
            pass
        case ["echo" | "curl" | "mkdir", *_] | [".venv/bin/pip" | "liver/bin/pip", "install", *_]:
            pass
        case ["liver/bin/sslmedsam2", *args]:
            parse(cli, args)
        case ["python3", "-m", "venv", _] | ["eval", _]:
            pass
        case _:
            raise AssertionError(f"no check for {words[0]}: add a case for it here")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_on_a_page_has_real_options(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands_of(page):
        for word in words:
            if word.endswith(".json"):
                Path(word).write_text("{}")
            elif word.isupper() and word.isalpha():
                # A placeholder for a folder, of which some options want that it is there.
                Path(word).mkdir(exist_ok=True)
        try:
            check_command(words)
        except click.exceptions.Exit:
            # Help and version end where other options go on.
            continue
        except click.ClickException as error:
            raise AssertionError(f"{shlex.join(words)}: {error.format_message()}") from error


def test_a_wrong_option_would_be_noticed():
    with pytest.raises(click.NoSuchOption):
        check_command([".venv/bin/python", "entrypoint.py", "predict", "--no-such-option"])
    with pytest.raises(click.BadParameter):
        check_command(["docker", "run", "--rm", "sslmedsam2", "--mode", "slow"])
    with pytest.raises(AssertionError, match="no command"):
        check_command([".venv/bin/python", "entrypoint.py", "predct"])


def test_messages_on_the_page_for_troubleshooting_are_real():
    sources = [*(REPOSITORY / "sslmedsam2").rglob("*.py"), REPOSITORY / "scripts" / "setup.sh"]
    said = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    seen = [row.split("|")[1] for row in page.splitlines() if row.startswith("| ")]
    messages = {message for cell in seen for message in re.findall(r"`([^`]+)`", cell)}
    assert len(messages) > 20
    assert {message for message in messages - OUTSIDE_WORDS if message not in said} == set()


@pytest.mark.parametrize("page", PAGES_ON_CODE, ids=name_of)
def test_files_named_on_a_page_about_the_code_exist(page):
    named = set(NAMED_FILE.findall(page.read_text(encoding="utf-8")))
    assert len(named) > 5
    assert {name for name in named if not (REPOSITORY / name).exists()} == set()


def test_every_correction_of_an_image_is_explained():
    """Corrections of masks are lines of the log, not of the page."""
    of_masks = {"liver_values.py", "slicer_segmentation.py"}
    sources = [*(REPOSITORY / "sslmedsam2").rglob("*.py")]
    code = "".join(path.read_text("utf-8") for path in sources if path.name not in of_masks)
    named = set(re.findall(r"\brepair\(\s*\"(\w+)\"", code))
    assert len(named) > 8
    page = (DOCS / "report.md").read_text(encoding="utf-8")
    assert {name for name in named if f"`{name}`" not in page} == set()


def write_archive(folder: Path, image: Path) -> None:
    """Write a volume as a DICOM series."""
    from dicom.dicom_samples import write_series

    phantom = to_canonical(read_volume(image))
    write_series(folder, phantom.array_zyx, spacing_zyx_mm=phantom.spacing_zyx_mm)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A tree as on the pages: the code, phantoms in FOLDER and ARCHIVE, RESULTS made of FOLDER."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("entrypoint.py", "sslmedsam2", "weights"):
        (root / name).symlink_to(REPOSITORY / name)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (root / "scripts").mkdir()
    for name in ("demo.sh", "write_sbom.py"):
        shutil.copy(REPOSITORY / "scripts" / name, root / "scripts")
    for name in ("setup.sh", "test.sh"):
        (root / "scripts" / name).write_text("exit 0\n")
    inputs = REPOSITORY / "test_inputs"
    [case] = inputs.glob(f"images/*/{CASE}")
    shutil.copytree(case, root / "FOLDER" / CASE)
    shutil.copytree(inputs / "references" / CASE, root / "REFERENCES" / CASE)
    shutil.copytree(root / "FOLDER", root / "test_inputs" / "images")
    shutil.copytree(root / "REFERENCES", root / "test_inputs" / "references")
    shutil.copy(case / "T1.nii.gz", root / "scan.nii.gz")
    if HAS_DICOM:
        write_archive(root / ARCHIVE, case / "T1.nii.gz")
    predict = [str(python), "entrypoint.py", "predict", "--input", "FOLDER", "--output", "RESULTS"]
    subprocess.run(predict, cwd=root, check=True)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(runnable for _, runnable, _ in blocks_of(page))],
    ids=name_of,
)
def test_the_blocks_of_a_page_run(page, clone, tmp_path):
    if ARCHIVE in page.read_text(encoding="utf-8") and not HAS_DICOM:
        pytest.skip("needs the extra [dicom]")
    place = tmp_path / "clone"
    shutil.copytree(clone, place, symlinks=True)
    for language, runnable, text in blocks_of(page):
        if runnable:
            program = ["bash", "-euo", "pipefail"] if language == "bash" else [sys.executable]
            done = subprocess.run(
                [*program, "-c", text], cwd=place, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the guide, where any warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        mkdocs, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_guide_builds_strictly_with_pages_from_docstrings(site):
    page = (site / "api" / "segmenter.html").read_text(encoding="utf-8")
    assert "segment_many" in page
    assert "The next image is read while the network works on this one" in page


@pytest.mark.slow
def test_nothing_of_the_guide_is_loaded_from_elsewhere(site):
    loading = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=\"?(?:https?:)?//")
    for page in site.rglob("*.html"):
        assert loading.search(page.read_text(encoding="utf-8")) is None, page
    for sheet in site.rglob("*.css"):
        assert re.search(r"url\(\W?(https?:)?//", sheet.read_text(encoding="utf-8")) is None, sheet


@pytest.mark.slow
def test_the_guide_can_be_searched_from_its_file(site, tmp_path):
    skip_without_chromium()
    with Browser(tmp_path) as browser:
        browser.open(site / "index.html")
        browser.click("[data-md-component=search-query]")
        browser.press(*"sheared")
        # The first letters, while they are typed, may find another page first.
        browser.wait_for(
            "document.querySelector('.md-search-result__link')?.href.includes('troubleshooting.html')"
        )
        asked = browser.requests()
        assert browser.complaints() == []
    assert [
        address for address in asked if not address.startswith(("file:", "data:", "blob:"))
    ] == []
