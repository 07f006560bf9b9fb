"""The option ``--cluster`` of the commands."""

import pickle

import pytest

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode, InputError


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "--input", "a", "--output", "b"],
        ["pseudo-label", "--support", "a", "--query", "b", "--output", "c"],
        ["retrain", "--labelled", "a", "--unlabelled", "b", "--work-dir", "c"],
    ],
)
def test_what_it_does_not_know_is_refused_at_once(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--cluster", "moon"]) == ExitCode.USAGE
    assert "--cluster moon: it is of no known form" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_errors_come_back_from_other_processes_as_they_were():
    error = InputError("scan.nii.gz", kind="odd", reason="it is odd", remedy="Correct it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InputError
    assert str(copy) == str(error)
    assert (copy.subject, copy.kind) == ("scan.nii.gz", "odd")
    assert (copy.reason, copy.remedy) == ("it is odd", "Correct it")
