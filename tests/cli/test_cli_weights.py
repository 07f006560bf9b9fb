import hashlib
import json
import subprocess
import sys

import pytest

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode
from sslmedsam2.weights.layout import checkpoint_file, model_files
from sslmedsam2.weights.manifest import (
    Manifest,
    ModelCard,
    ModelEntry,
    hash_model,
    write_manifest,
)

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


def test_listing_and_verifying_import_no_heavy_library(weights_dir):
    code = (
        "import sys; from sslmedsam2.cli.main import main\n"
        f"assert main(['weights', 'verify', '--model', {str(weights_dir)!r}]) == 0\n"
        "heavy = {'torch', 'numpy', 'nnunetv2', 'SimpleITK'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
