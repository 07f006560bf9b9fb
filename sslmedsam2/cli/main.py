"""The command group. A command is imported only when it is run.

Without a command the group runs ``predict``, so that a container started without arguments, or
with options only, does the task of the challenge: ``predict`` from ``/input`` to ``/output``.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from sslmedsam2 import __version__
from sslmedsam2.cli.config import apply_verbosity, verbosity_options
from sslmedsam2.cli.logging_setup import write_error
from sslmedsam2.errors import ExitCode, SslMedSam2Error
from sslmedsam2.imaging.atomic import output_error

_LOG = logging.getLogger(__name__)
_OF_WRITING_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EEXIST)


class _Entry(NamedTuple):
    """A command's module in this package, and its line in the listing, shown without importing."""

    module: str
    summary: str


_COMMANDS = {
    "predict": _Entry("predict", "Segment the liver in every scan of a folder."),
    "dicom": _Entry("dicom", "List the DICOM series of a folder."),
    "evaluate": _Entry("submission", "Score masks against reference masks."),
    "report": _Entry("report", "Write the results page of a finished run."),
    "validate": _Entry("submission", "Check masks against the rules of the challenge."),
    "package": _Entry("submission", "Pack masks as a submission zip."),
    "weights": _Entry("weights", "List, verify and download weights."),
    "train": _Entry("train", "Train a model from labelled scans."),
    "pseudo-label": _Entry(
        "pseudo_label", "Label scans with a frozen SAM2, from a few labelled scans."
    ),
    "retrain": _Entry("retrain", "Train a model from a few labelled and many unlabelled scans."),
    "refine": _Entry("retrain", "Run the stages of retrain one at a time."),
    "plan-cluster": _Entry("retrain", "Estimate time, memory and disk of retrain on a cluster."),
    "pretrain-sam2": _Entry("train", "Train the compact SAM2 on synthetic volumes and organs."),
    "serve": _Entry("serve", "Keep a model loaded and segment over HTTP."),
    "phantom": _Entry("phantom", "Write synthetic test studies."),
    "info": _Entry("info", "Describe models, sequences, formats and exit codes."),
    "doctor": _Entry("doctor", "Check device, libraries, weights and folders."),
}
_DEFAULT_COMMAND = "predict"
_VERBOSITY_FLAGS = {"-v", "--verbose", "-q", "--quiet"}
_GROUP_ONLY_OPTIONS = {"-h", "--help", "--version"}


class _LazyGroup(click.Group):
    """A group whose commands are imported on first use."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, after naming the default command where the caller named none."""
        first = next((i for i, arg in enumerate(args) if arg not in _VERBOSITY_FLAGS), len(args))
        rest = args[first:]
        takes_default = not rest or (rest[0].startswith("-") and rest[0] not in _GROUP_ONLY_OPTIONS)
        # A shell that completes a line asks for the names of the commands.
        if takes_default and not ctx.resilient_parsing:
            args = [*args[:first], _DEFAULT_COMMAND, *rest]
        return super().parse_args(ctx, args)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in the order of the listing."""
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of that name."""
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"sslmedsam2.cli.{entry.module}")
        return getattr(module, cmd_name.replace("-", "_"))

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the listing from the summaries, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Set the log up, for errors in the command's options, then run the command."""
        apply_verbosity(ctx)
        # openvino imports its model converter where it can: half of its import time, never used.
        sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
        return super().invoke(ctx)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sslmedsam2")
def cli() -> None:
    """Liver segmentation in abdominal MRI.

    Without a command, predict runs on /input and writes to /output.
    """


cli.params.extend(verbosity_options())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the process's exit code.

    Errors of the project's family and of the file system become one line on standard error
    (``--verbose`` adds the traceback); anything else is a defect and keeps its traceback.
    """
    _replace_closed_streams()
    _let_streams_take_any_text()
    try:
        result = cli.main(args=None if args is None else list(args), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SslMedSam2Error as error:
        _LOG.debug("where the error arose", exc_info=True)
        write_error(str(error))
        return int(error.exit_code)
    except OSError as error:
        # Of a path looked up, or of a library that writes files itself, such as nnU-Net its logs.
        _LOG.debug("where the error arose", exc_info=True)
        # A stream has no name, and a library may have named its file in bytes.
        name = error.filename if isinstance(error.filename, (str, bytes)) else None
        write_error(str(_file_error(Path(os.fsdecode(name)) if name else None, error)))
        return int(ExitCode.SOME_CASES_FAILED)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return int(ExitCode.INTERRUPTED)
    return int(result or ExitCode.OK)


def _file_error(path: Path | None, error: OSError) -> SslMedSam2Error:
    """Say what failed; whether a file was read or written, most errors do not tell."""
    if path is None or error.errno in _OF_WRITING_ONLY:
        return output_error(path or Path("standard output or a file"), error)
    return SslMedSam2Error(
        path,
        reason=f"cannot be read or written ({error.strerror})",
        remedy="Check the path, and what this user may do with it",
    )


def _let_streams_take_any_text() -> None:
    """Print names of files that are no text with backslashes, as Python does on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _replace_closed_streams() -> None:
    """Give services and windows without a console, which have no streams, some that lead nowhere.

    They take the numbers of the closed ones: files of results must not get them, for libraries
    write messages there.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r+"))  # noqa: SIM115 (open to the end)
