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


@pytest.mark.parametrize(
    ("output", "named"),
    [("file/net.safetensors", "file"), ("folder.safetensors", "folder.safetensors")],
)
def test_an_output_that_cannot_be_written_is_noticed_before_the_training(
    output, named, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()

    code = main(["pretrain-sam2", "--work-dir", "work", "--output", output])

    assert code == ExitCode.SOME_CASES_FAILED
    said = capsys.readouterr().err
    assert said.startswith(f"error: {named}: cannot be written")
    assert said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.safetensors"}
