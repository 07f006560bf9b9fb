"""Options of every command from a file, the environment and the command line.

A command declared with ``@click.command(cls=ConfiguredCommand)`` gets

- ``--config FILE`` (TOML or JSON): keys are the long option names, with ``-`` or ``_``;
- ``SSLMEDSAM2_<OPTION>`` in the environment for each option (``--on-failure`` is
  ``SSLMEDSAM2_ON_FAILURE``; a switch takes 1 or 0);
- ``-v/--verbose`` and ``-q/--quiet``, also accepted before the name of the command.

The command line overrides the environment, which overrides the file, which overrides the default.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sslmedsam2.cli.logging_setup import set_up_json_lines, set_up_logging
from sslmedsam2.errors import UsageError

ENVIRONMENT_PREFIX = "SSLMEDSAM2_"
_VERBOSITY_KEY = "sslmedsam2.verbosity"
_OWN_VARIABLE = re.compile("ssl_?medsam", re.IGNORECASE)

logger = logging.getLogger(__name__)


class ConfiguredCommand(click.Command):
    """A command whose options may also come from a configuration file or the environment.

    Its help shows the default of each option.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `click.Command` takes; add the shared options and the environment names."""
        super().__init__(*args, **kwargs)
        self.context_settings = {"show_default": True, **self.context_settings}
        self.params.extend([_config_option(), *verbosity_options()])
        for option in self.params:
            if isinstance(option, click.Option) and option.envvar is None:
                name = _option_name(option)
                option.envvar = ENVIRONMENT_PREFIX + name.replace("-", "_").upper()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse empty paths, which would mean the current folder: a variable was not set."""
        # As they were typed: click.Path makes a full stop of an empty one.
        typed, _, _ = self.make_parser(ctx).parse_args(list(args))
        for param in self.params:
            if _is_empty_path(param, typed.get(param.name or "")):
                raise _empty_path(
                    f"--{_option_name(param)}"
                    if isinstance(param, click.Option)
                    else param.human_readable_name
                )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Set the log up as the command's options say, keep to the container's limits, and run."""
        from sslmedsam2.execution.host import keep_to_limits

        apply_verbosity(ctx)
        if ctx.params.get("progress") == "json":
            set_up_json_lines()
        _warn_of_unknown_variables(ctx.find_root())
        keep_to_limits()
        return super().invoke(ctx)


def _warn_of_unknown_variables(ctx: click.Context) -> None:
    """Name variables of the environment that look like options and are none of any command."""
    named = [name for name in os.environ if _OWN_VARIABLE.match(name)]
    if not named:
        return
    known = _variables_of(ctx, ctx.command)
    for name in sorted(set(named) - known):
        near = difflib.get_close_matches(name.upper(), sorted(known), n=1)
        logger.warning(
            "%s in the environment names no option and has no effect%s",
            name,
            f"; did you mean {near[0]}?" if near else "",
        )


def _variables_of(ctx: click.Context, command: click.Command) -> set[str]:
    """Return the variables of a command's options, and of the commands below it."""
    found = {
        name
        for param in command.params
        for name in ([param.envvar] if isinstance(param.envvar, str) else param.envvar or ())
    }
    if isinstance(command, click.Group):
        below = (command.get_command(ctx, name) for name in command.list_commands(ctx))
        found.update(*(_variables_of(ctx, one) for one in below if one is not None))
    return found


def verbosity_options() -> list[click.Parameter]:
    """Make the switches ``-v/--verbose`` and ``-q/--quiet``; `apply_verbosity` obeys them."""
    texts = {
        "verbose": "Print debug messages and tracebacks.",
        "quiet": "Print warnings and errors only.",
    }
    return [
        click.Option(
            [f"-{name[0]}", f"--{name}"],
            is_flag=True,
            expose_value=False,
            callback=_remember_verbosity,
            help=text,
        )
        for name, text in texts.items()
    ]


def apply_verbosity(ctx: click.Context) -> None:
    """Set the log up as the switches of this context and its parents say.

    Raises UsageError: both switches were given, equally explicitly.
    """
    on_command_line: dict[str, bool] = ctx.meta.get(_VERBOSITY_KEY, {})
    wanted = set(on_command_line)
    if len(wanted) == 2:
        wanted = {name for name, explicit in on_command_line.items() if explicit}
        if len(wanted) != 1:
            raise UsageError(
                "--verbose and --quiet", reason="they exclude each other", remedy="Give one of them"
            )
    set_up_logging(verbose="verbose" in wanted, quiet="quiet" in wanted)


def _remember_verbosity(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Note a switch in the dictionary that a command shares with its group."""
    if value and param.name is not None:
        explicit = ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
        ctx.meta.setdefault(_VERBOSITY_KEY, {})[param.name] = explicit


def _config_option() -> click.Option:
    return click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        # Eager: the defaults have to be in place before the other options are looked at.
        is_eager=True,
        expose_value=False,
        callback=_apply_config,
        help="TOML or JSON file with options.",
    )


def _apply_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.default_map = _option_values(ctx, load_table(path), path=path)


def load_table(path: Path) -> dict[str, Any]:
    """Read a TOML or JSON file that holds a table, such as a configuration.

    Raises UsageError: the file is of another kind, cannot be parsed or does not hold a table.
    """
    loaders = {".toml": _load_toml, ".json": _load_json}
    load = loaders.get(path.suffix.lower())
    if load is None:
        raise UsageError(
            path, reason="not a .toml or .json file", remedy="Rename or convert the file"
        )
    try:
        table = load(path)
    except OSError as error:
        raise UsageError(
            path, reason=f"cannot be read ({error.strerror})", remedy="Make the file readable"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            path, reason=f"cannot be read as a table ({error})", remedy="Correct the file"
        ) from error
    if not isinstance(table, dict):
        raise UsageError(path, reason="does not hold a table", remedy='Write {"name": value, ...}')
    return table


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _load_toml(path: Path) -> Any:
    try:
        import tomllib
    except ModuleNotFoundError as error:
        raise UsageError(
            path, reason="TOML needs Python 3.11 or newer", remedy="Write the same as .json"
        ) from error
    return tomllib.loads(path.read_text(encoding="utf-8-sig"))


def _option_values(ctx: click.Context, table: dict[str, Any], *, path: Path) -> dict[str, Any]:
    """Check a table against the command's options and key it by parameter name.

    Raises UsageError: a key names no option, or its value does not suit the option.
    """
    options = {
        _option_name(param): param
        for param in ctx.command.params
        if isinstance(param, click.Option) and param.name != "config"
    }
    values = {}
    for key, value in table.items():
        option = options.get(key.replace("_", "-"))
        if option is None or option.name is None:
            raise UsageError(
                f"{path}, key {key!r}",
                reason=f"the command '{ctx.command.name}' has no such option",
                remedy=f"Use one of: {', '.join(sorted(options))}",
            )
        if value is not None:
            values[option.name] = _checked_value(ctx, option, value, subject=f"{path}, key {key!r}")
    return values


def _checked_value(ctx: click.Context, option: click.Option, value: Any, *, subject: str) -> Any:
    """Return a value fit for click's default map, or raise UsageError naming file and key."""
    if isinstance(value, list) and not option.multiple:
        # Options such as --sequences take "A,B" on the command line; a list reads better in a file.
        value = ",".join(str(item) for item in value)
    elif option.multiple and not isinstance(value, list):
        value = [value]
    if _is_empty_path(option, value):
        raise _empty_path(subject)
    problem = f"{json.dumps(value, default=str)} is not a value for --{_option_name(option)}"
    if isinstance(value, dict) or (isinstance(value, bool) and not option.is_flag):
        raise UsageError(subject, reason=problem, remedy="See the command's --help")
    try:
        option.type_cast_value(ctx, value)
    # click's types expect text: others can make them fail in any way.
    except Exception as error:
        problem = error.message if isinstance(error, click.BadParameter) else problem
        raise UsageError(
            subject, reason=problem.rstrip("."), remedy="See the command's --help"
        ) from error
    return value


def _is_empty_path(param: click.Parameter, value: Any) -> bool:
    """Return whether a parameter that takes paths has an empty one among its values."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return isinstance(param.type, click.Path) and "" in values


def _empty_path(subject: str) -> UsageError:
    return UsageError(subject, reason="its value is empty", remedy="Give a path")


def _option_name(option: click.Option) -> str:
    """Return the first long spelling without its dashes, such as ``on-failure``."""
    return next(name for name in option.opts if name.startswith("--")).removeprefix("--")
