import json
import sys
from pathlib import Path

import click
import pytest

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.errors import UsageError


@pytest.fixture
def probe():
    """A command that returns the options it was given."""

    @click.command(cls=ConfiguredCommand)
    @click.argument("scans", nargs=-1, type=click.Path(path_type=Path))
    @click.option("--input", "input_dir", type=click.Path(path_type=Path), default=Path("/input"))
    @click.option("--sequences", default="GED4")
    @click.option("--mode", type=click.Choice(["exact", "fast"]), default="exact")
    @click.option("--on-failure", type=click.Choice(["fallback", "skip"]), default="fallback")
    @click.option("--mirror/--no-mirror", default=False)
    @click.option("--batch", type=int, default=1)
    def command(**options):
        return options

    def run(*args):
        return command.main(list(args), standalone_mode=False)

    return run


@pytest.fixture
def config(tmp_path):
    def write(table, name="options.json"):
        path = tmp_path / name
        path.write_text(json.dumps(table) if not isinstance(table, str) else table)
        return str(path)

    return write


@pytest.mark.parametrize("args", [["--input", ""], ["--input="], ["--mirror", "--input", ""]])
def test_an_empty_path_is_refused_and_does_not_mean_the_current_folder(probe, args):
    with pytest.raises(UsageError, match="--input: its value is empty"):
        probe(*args)


@pytest.mark.parametrize("args", [[""], ["a", ""], ["--batch", "2", "", "a"], ["--", ""]])
def test_an_empty_argument_is_refused_like_an_empty_option(probe, args):
    with pytest.raises(UsageError, match="SCANS: its value is empty"):
        probe(*args)


@pytest.mark.parametrize("value", ["", [""], []])
def test_an_empty_path_in_a_file_is_refused_like_an_empty_option(probe, config, value):
    path = config({"input": value})

    with pytest.raises(UsageError, match="key 'input': its value is empty") as caught:
        probe("--config", path)

    assert path in str(caught.value)


def test_an_empty_value_of_another_option_is_for_its_command(probe):
    assert probe("--sequences", "")["sequences"] == ""


def test_file_values_replace_defaults_and_leave_others(probe, config):
    options = probe("--config", config({"mode": "fast", "mirror": True, "input": "/data"}))

    assert options["mode"] == "fast"
    assert options["mirror"] is True
    assert options["input_dir"] == Path("/data")
    assert options["batch"] == 1


def test_command_line_beats_environment_beats_file_beats_default(probe, config, monkeypatch):
    path = config({"mode": "fast", "batch": 2, "on-failure": "skip"})
    monkeypatch.setenv("SSLMEDSAM2_BATCH", "3")
    monkeypatch.setenv("SSLMEDSAM2_MODE", "fast")

    options = probe("--config", path, "--mode", "exact")

    assert options["mode"] == "exact"
    assert options["batch"] == 3
    assert options["on_failure"] == "skip"
    assert options["sequences"] == "GED4"


def test_every_option_has_an_environment_variable(probe, monkeypatch):
    monkeypatch.setenv("SSLMEDSAM2_INPUT", "/elsewhere")
    monkeypatch.setenv("SSLMEDSAM2_ON_FAILURE", "skip")
    monkeypatch.setenv("SSLMEDSAM2_MIRROR", "1")

    options = probe()

    assert options["input_dir"] == Path("/elsewhere")
    assert options["on_failure"] == "skip"
    assert options["mirror"] is True


def test_a_switch_set_in_the_file_is_undone_on_the_command_line(probe, config):
    assert probe("--config", config({"mirror": True}), "--no-mirror")["mirror"] is False


def test_the_file_itself_may_come_from_the_environment(probe, config, monkeypatch):
    monkeypatch.setenv("SSLMEDSAM2_CONFIG", config({"batch": 7}))

    assert probe()["batch"] == 7


def test_underscores_and_lists_are_understood(probe, config):
    options = probe("--config", config({"on_failure": "skip", "sequences": ["T1", "T2"]}))

    assert options["on_failure"] == "skip"
    assert options["sequences"] == "T1,T2"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML is read from Python 3.11 on")
def test_toml_is_read(probe, config):
    assert probe("--config", config('mode = "fast"\nbatch = 4\n', "options.toml"))["batch"] == 4


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"modee": "fast"}, "no such option"),
        ({"config": "other.json"}, "no such option"),
        ({"mode": "quick"}, "'quick' is not one of"),
        ({"batch": "many"}, "not a valid integer"),
        ({"batch": True}, "not a value for --batch"),
        ({"mirror": "perhaps"}, "not a valid boolean"),
        ({"mode": {"name": "fast"}}, "not a value for --mode"),
        (["mode", "fast"], "does not hold a table"),
        ({"mirror": 3}, "3 is not a value for --mirror"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_wrong_file_is_a_usage_error_that_names_it(probe, config, table, said):
    path = config(table)

    with pytest.raises(UsageError, match=said) as caught:
        probe("--config", path)

    assert path in str(caught.value)


def test_a_file_of_another_kind_is_a_usage_error(probe, config):
    with pytest.raises(UsageError, match=r"not a \.toml or \.json"):
        probe("--config", config("mode: fast", "options.yaml"))
