"""The command ``pretrain-sam2``: what it refuses before any training begins."""

import pytest

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--output", "net.pt"], "safetensors"),
        (["--output", "net.safetensors", "--image-size", "100"], "multiple of 32"),
        (["--output", "net.safetensors", "--steps", "0"], "--steps"),
        (["--output", "net.safetensors", "--device", "tpu"], "--device"),
        ([], "--output"),
    ],
)
def test_wrong_options_end_with_2(args, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(["pretrain-sam2", "--work-dir", "work", *args]) == ExitCode.USAGE

    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
