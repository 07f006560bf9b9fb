import hashlib
import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode
from sslmedsam2.weights.catalogue import OFFICIAL
from sslmedsam2.weights.manifest import Manifest, ModelCard, ModelEntry, hash_model, write_manifest
from sslmedsam2.weights.model_files import checkpoint_file, model_files

ENTRYPOINT = Path(__file__).parents[2] / "entrypoint.py"
CARD = ModelCard(
    training_data="none", recipe="none", licence="Apache-2.0", created="2026-01-31", measured={}
)


@pytest.fixture
def weights_dir(tmp_path):
    """A model folder whose files need not be networks: listing and verifying never load them."""
    for path in model_files(("0",)):
        (tmp_path / "liver" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "liver" / path).write_text(f"content of {path}")
    entry = ModelEntry("liver", ("*",), ("0",), hash_model(tmp_path / "liver", ("0",)), CARD)
    write_manifest(Manifest((entry,)), tmp_path / "manifest.json")
    return tmp_path


def test_list_shows_a_readable_table(weights_dir, capsys):
    assert main(["weights", "list", "--model", str(weights_dir)]) == ExitCode.OK

    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "SEQUENCES", "FOLDS", "SIZE", "STATE", "FOLDER"]
    assert row.split() == ["liver", "any", "0", "0.0", "MB", "verified", str(weights_dir / "liver")]
    assert header.index("STATE") == row.index("verified")


def test_list_as_json_holds_hashes_and_licence(weights_dir, capsys):
    assert main(["weights", "list", "--json", "--model", str(weights_dir)]) == ExitCode.OK

    (model,) = json.loads(capsys.readouterr().out)
    hashes = {file["path"]: file["sha256"] for file in model["files"]}
    checkpoint = weights_dir / "liver" / checkpoint_file("0")
    assert hashes[checkpoint_file("0")] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert model["card"]["licence"] == "Apache-2.0"


def test_verify_accepts_unchanged_files_named_by_the_environment(weights_dir, capsys, monkeypatch):
    monkeypatch.setenv("SSLMEDSAM2_MODEL", str(weights_dir))

    assert main(["weights", "verify"]) == ExitCode.OK
    assert "liver: 3 files unchanged" in capsys.readouterr().out


def test_verify_refuses_a_changed_byte_in_one_line(weights_dir, capsys):
    path = weights_dir / "liver" / checkpoint_file("0")
    path.write_bytes(path.read_bytes().replace(b"content", b"Content"))

    assert main(["weights", "verify", "--model", str(weights_dir)]) == ExitCode.MODEL_INVALID
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: its content was altered")


def test_verify_does_not_vouch_for_a_model_without_manifest(weights_dir, capsys):
    (weights_dir / "manifest.json").unlink()
    model = str(weights_dir / "liver")

    assert main(["weights", "list", "--model", model]) == ExitCode.OK
    assert "unverified" in capsys.readouterr().out
    assert main(["weights", "verify", "--model", model]) == ExitCode.MODEL_INVALID
    assert "nothing to compare it with" in capsys.readouterr().err


def test_commands_import_no_heavy_library(weights_dir):
    code = (
        "import sys; from sslmedsam2.cli.main import main\n"
        f"assert main(['weights', 'verify', '--model', {str(weights_dir)!r}]) == 0\n"
        "fetch = ['weights', 'fetch', 'medsam2', '--accept-licence', '--from', 'absent']\n"
        f"assert main([*fetch, '--to', {str(weights_dir)!r}]) == 4\n"
        "heavy = {'torch', 'numpy', 'nnunetv2', 'SimpleITK', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr


@pytest.fixture
def small_official(monkeypatch):
    """Put small files in the place of the official ones; return their content."""
    content = b"tensors"
    catalogue = {
        name: replace(
            entry, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), urls=()
        )
        for name, entry in OFFICIAL.items()
    }
    monkeypatch.setattr("sslmedsam2.cli.weights.OFFICIAL", catalogue)
    return content


@pytest.mark.parametrize(
    ("name", "file_name", "terms", "accepting"),
    [
        ("sam2.1-hiera-tiny", "sam2.1_hiera_tiny.pt", "Apache-2.0", []),
        ("medsam2", "MedSAM2_latest.pt", "research and education only", ["--accept-licence"]),
    ],
)
def test_fetch_shows_the_terms_and_writes_the_path(
    small_official, tmp_path, capsys, name, file_name, terms, accepting
):
    (tmp_path / "copy.pt").write_bytes(small_official)
    source, folder = str(tmp_path / "copy.pt"), tmp_path / "sam2"

    command = ["weights", "fetch", name, "--from", source, "--to", str(folder), *accepting]
    assert main(command) == ExitCode.OK

    reported = capsys.readouterr()
    assert reported.out == f"{folder / file_name}\n"
    assert f"Licence: {terms}" in reported.err
    assert (folder / file_name).read_bytes() == small_official


@pytest.mark.usefixtures("small_official")
def test_fetch_off_a_terminal_wants_restrictive_terms_accepted_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["weights", "fetch", "medsam2", "--to", str(tmp_path)]) == ExitCode.USAGE

    reported = capsys.readouterr().err
    assert "error: medsam2: its terms were not accepted (research and education only)" in reported
    assert "--accept-licence" in reported
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("answer", "code"), [("y", ExitCode.MODEL_INVALID), ("n", ExitCode.USAGE)])
def test_fetch_on_a_terminal_asks_and_obeys(tmp_path, answer, code):
    (tmp_path / "copy.pt").write_bytes(b"not the official file")
    ours, terminal = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    places = ["--to", str(tmp_path), "--from", str(tmp_path / "copy.pt")]
    run = subprocess.run(
        [sys.executable, str(ENTRYPOINT), "weights", "fetch", "medsam2", *places],
        stdin=terminal,
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(terminal)
    os.close(ours)

    assert run.returncode == code, run.stderr
    assert "Do you accept these terms?" in run.stderr
    assert ("has 21 bytes where medsam2 has" in run.stderr) == (answer == "y")


def test_fetch_of_an_unknown_name_lists_the_known_ones(capsys):
    assert main(["weights", "fetch", "sam3"]) == ExitCode.USAGE
    assert "medsam2" in capsys.readouterr().err
