"""The demo, from its script to its page in a browser."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from headless_chromium import Browser, skip_without_chromium
from result_page import CASES, IS_SHOWN, coloured, open_case, stage

# A dozen volumes through the network, and a browser that draws in software.
pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the demo in a tree of its own, with the environment that the tests run in."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("entrypoint.py", "sslmedsam2", "test_inputs", "weights"):
        (clone / name).symlink_to(REPOSITORY / name)
    (clone / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts" / "demo.sh", clone / "scripts")
    (clone / "scripts" / "setup.sh").write_text("exit 0\n")
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/demo.sh"], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return clone, done.stdout


def test_the_demo_ends_by_naming_its_page(demo):
    clone, printed = demo
    page = clone / "out" / "demo" / "report" / "index.html"
    assert page.is_file()
    assert f"page       {page}" in printed
    assert "11 scans, 11 in 3-D" in printed


def test_the_page_opens_from_its_file_and_shows_the_phantoms(demo, tmp_path):
    skip_without_chromium()
    page = demo[0] / "out" / "demo" / "report" / "index.html"
    with Browser(tmp_path) as browser:
        browser.open(page)
        assert set(browser.run(CASES)) == {"0001-A", "0002-B1", "0003-B2", "0004-C"}
        open_case(browser, "0001-A")
        browser.wait_for(IS_SHOWN)
        browser.wait_for("qcVolumes.state().viewer.volumes.length === 2")
        pixels = stage(browser)
        assert browser.complaints() == []
    assert coloured(pixels) > 2000
    assert (pixels.max(axis=2) > 60).sum() > 20_000
