"""The command ``predict``."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sslmedsam2.cli.cluster_option import cluster_option, for_cluster, open_executor
from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.logging_setup import terminal_console, write_json_line
from sslmedsam2.cli.shared_options import (
    device_option,
    dicom_sequence_map_option,
    mode_option,
    model_option,
    path_option,
    resume_option,
    sequences_option,
    slug_option,
)
from sslmedsam2.execution.units import duration

_LOG = logging.getLogger(__name__)
_CONTAINER_INPUT = Path("/input")
_CONTAINER_OUTPUT = Path("/output")
_OTHER_FILES = (".gz", ".zip", ".dcm", ".png", ".jpg", ".stl")
"""A folder for results is hardly called so: a file is meant."""
_OPTIONS_OF_A_FOLDER = ("resume", "report", "maps", "statistics")
_IN_SUMMARY = {"check": "to check", "skipped_resume": "kept"}

if TYPE_CHECKING:
    from rich.progress import Progress

    from sslmedsam2.reporting.run_report import RunReport, SeriesResult


@click.command(cls=ConfiguredCommand)
@click.argument("scans", nargs=-1, type=click.Path(path_type=Path))
@path_option(
    "-i",
    "--input",
    "input_paths",
    multiple=True,
    help="The same as SCANS; may be repeated.  [default: /input in the container]",
)
@path_option(
    "-o",
    "--output",
    "output_dir",
    help="Folder for masks, previews and run_report.json; or the name of one mask, such as"
    " liver.nii.gz, for one scan.  [default: /output in the container]",
)
@model_option
@sequences_option(help="Sequences to segment.  [default: GED4,T1,T2,DWI_800]")
@click.option("--sequence", help="Sequence of all scans whose names give none, such as T2.")
@click.option(
    "--layout",
    type=click.Choice(["challenge", "bids", "grand-challenge"]),
    default="challenge",
    help="Names of the masks: of the CARE-LiSeg challenge, of BIDS derivatives, or of an output"
    " of grand-challenge.org.",
)
@slug_option
@click.option(
    "--output-format",
    "mask_format",
    type=click.Choice(["nii.gz", "mha", "nrrd", "same"]),
    default="nii.gz",
    help="Format of the masks; same: that of each scan.",
)
@device_option
@mode_option
@click.option(
    "--mirror/--no-mirror",
    default=True,
    help="Test-time mirroring, if the model was trained for it.",
)
@click.option(
    "--second-view/--no-second-view",
    default=True,
    help="Segment a scan of which the network is unsure also with inverted contrast, average, and"
    " correct the mask by the brightness of the scan.",
)
@click.option(
    "--on-failure",
    type=click.Choice(["auto", "fallback", "skip"]),
    default="auto",
    help="fallback: write a marked guess where a scan fails; skip: write no mask; auto: fallback"
    " for the challenge's sequences in its container, else skip.",
)
@resume_option
@click.option(
    "--previews/--no-previews", default=True, help="Write a PNG with the outline of each mask."
)
@click.option(
    "--report/--no-report",
    default=False,
    help="Write the results page at the end, as the command report does.",
)
@click.option(
    "--mask-dtype",
    type=click.Choice(["uint8", "input"]),
    default="uint8",
    help="Voxel type of the masks; input: the type of each scan.",
)
@dicom_sequence_map_option
@click.option(
    "--dicom-seg/--no-dicom-seg",
    default=True,
    help="Write a DICOM-SEG object for each mask of a DICOM series.",
)
@click.option(
    "--statistics",
    is_flag=True,
    help="Add mean, standard deviation and percentiles of each scan inside its mask to"
    " liver_volumes.csv.",
)
@click.option(
    "--maps",
    is_flag=True,
    help="Write maps of probability and uncertainty (entropy in bits) to the folder maps.",
)
@click.option("--strict", is_flag=True, help="Exit code 1 also if the mask of a scan is to check.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "json", "none"]),
    default="auto",
    help="auto: a bar with the time left, on a terminal; json: each line of standard error is one"
    " JSON object, for programs.",
)
@cluster_option
@click.pass_context
def predict(
    ctx: click.Context,
    *,
    scans: tuple[Path, ...],
    input_paths: tuple[Path, ...],
    progress: str,
    cluster: str,
    **options: Any,
) -> int:
    """Segment the liver in SCANS.

    SCANS are volumes, folders of cases or volumes, and folders of DICOM files. Writes one mask for
    each scan, liver_volumes.csv and run_report.json. Exit code 0: all scans have a mask; 1: some
    failed or have a guess; 2: invalid option; 3: no usable scan; 4: model missing or altered.
    """
    from sslmedsam2.contract.names import parse_sequence_list
    from sslmedsam2.predict.pipeline import PredictOptions
    from sslmedsam2.predict.pipeline import predict as run
    from sslmedsam2.reporting.volume_table import VOLUME_TABLE_NAME

    if scans and ctx.get_parameter_source("input_paths") is not ParameterSource.COMMANDLINE:
        input_paths = ()
    options["input_path"], options["only"] = _inputs((*scans, *input_paths))
    if options["layout"] != "challenge" and options["mask_format"] != "nii.gz":
        raise click.UsageError("--output-format needs --layout challenge")
    if options["sequence"] is not None:
        [options["sequence"], *others] = parse_sequence_list(
            options["sequence"], option="--sequence"
        )
        if others:
            raise click.UsageError("--sequence takes one sequence; --sequences takes several")
    options = for_cluster(cluster, options)
    folder = _output_folder(options)
    with_page = options.pop("report")
    with (
        folder as options["output_dir"],
        open_executor(cluster) as executor,
    ):
        with _progress(progress) as bar:
            printer = _ProgressPrinter(bar, as_json=progress == "json")
            report = run(PredictOptions(**options), on_result=printer, executor=executor)
        _summarise(report, options["mask_file"] or options["output_dir"] / VOLUME_TABLE_NAME)
        if with_page and not report.interrupted:
            _make_page(options)
    return report.exit_code or 0


def _inputs(paths: Sequence[Path]) -> tuple[Path, tuple[Path, ...]]:
    """Return the input path and, for several paths, their common folder and the paths."""
    if len(paths) < 2:
        return (paths[0] if paths else _CONTAINER_INPUT), ()
    from sslmedsam2.errors import NoInputError

    for path in paths:
        if not path.exists():
            raise NoInputError(
                path,
                reason="does not exist",
                remedy="Check the path; the folder of the masks is given by --output",
            )
    only = tuple(Path(os.path.abspath(path)) for path in paths)  # noqa: PTH100 (resolve() would follow links)
    folders = [path if path.is_dir() else path.parent for path in only]
    return Path(os.path.commonpath(folders)), only


def _output_folder(options: dict[str, Any]) -> AbstractContextManager[Path]:
    """Return the folder of the run; where ``--output`` names a mask, a temporary one."""
    from sslmedsam2.errors import UsageError
    from sslmedsam2.imaging.formats import WRITTEN_EXTENSIONS, image_extension

    output, options["mask_file"] = options["output_dir"], None
    if output is None and not _CONTAINER_OUTPUT.is_dir():
        raise UsageError(
            "--output",
            reason=f"it is not given, and there is no folder {_CONTAINER_OUTPUT}",
            remedy="Say where the masks go: --output FOLDER",
        )
    output = output or _CONTAINER_OUTPUT
    if output.is_dir():
        return nullcontext(output)
    if not output.name.lower().endswith(WRITTEN_EXTENSIONS):
        if image_extension(output) or output.suffix.lower() in _OTHER_FILES:
            raise UsageError(
                f"--output {output}",
                reason="masks are not written in the format of this name",
                remedy=f"Give a folder, or a name that ends in {', '.join(WRITTEN_EXTENSIONS)}",
            )
        return nullcontext(output)
    for option in _OPTIONS_OF_A_FOLDER:
        if options[option]:
            raise UsageError(
                f"--{option}",
                reason="it needs a folder of results, and --output names one mask",
                remedy="Give a folder to --output",
            )
    options["mask_file"], options["previews"] = output.absolute(), False
    options["dicom_seg"] = False
    return _temporary_folder()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _progress(kind: str) -> AbstractContextManager[Progress | None]:
    """Return a progress bar on a terminal, nothing elsewhere."""
    console = terminal_console()
    if console is None or kind != "auto":
        return nullcontext()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
    )


class _ProgressPrinter:
    """Updates the progress bar and logs one line, or writes one object, for each result."""

    def __init__(self, progress: Progress | None, *, as_json: bool) -> None:
        self._progress, self._as_json = progress, as_json
        self._task = None
        if progress is not None:
            self._task = progress.add_task("segmenting", total=None, left="")
        self._start = time.monotonic()

    def __call__(self, result: SeriesResult, done: int, total: int) -> None:
        from sslmedsam2.reporting.run_report import NOTES

        seconds_left = (time.monotonic() - self._start) / done * (total - done)
        if self._progress is not None and self._task is not None:
            left = f"about {_duration(seconds_left)} left" if done < total else ""
            self._progress.update(self._task, completed=done, total=total, left=left, refresh=True)
        if self._as_json:
            write_json_line(
                event="scan",
                done=done,
                total=total,
                seconds_left=round(seconds_left, 1),
                case=result.case,
                sequence=result.sequence,
                status=result.status.value,
                input_path=result.input_path,
                output_path=result.output_path,
                liver_volume_ml=result.liver_volume_ml,
                estimated_dice=result.estimated_dice,
                estimated_dice_interval=result.estimated_dice_interval,
                verdict=result.verdict,
                warnings=list(result.warnings),
                error=result.error,
            )
            return
        _LOG.info(
            "%d/%d %s %s: %s%s%s, %.1f s",
            done,
            total,
            result.case,
            result.sequence,
            _IN_SUMMARY.get(result.status.value, result.status.value),
            "" if result.liver_volume_ml is None else f", {result.liver_volume_ml:.0f} ml",
            _estimate(result),
            sum(result.seconds.values()),
        )
        if result.status.value == "check":
            for warning in result.warnings:
                if warning.partition(":")[0] not in NOTES:
                    _LOG.warning("%s %s: %s", result.case, result.sequence, warning)


def _estimate(result: SeriesResult) -> str:
    if result.estimated_dice is None or result.estimated_dice_interval is None:
        return ""
    low, high = result.estimated_dice_interval
    return f", estimated Dice {result.estimated_dice:.2f} ({low:.2f} to {high:.2f})"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else duration(seconds)


def _make_page(options: dict[str, Any]) -> None:
    from sslmedsam2.predict.page import ReportOptions, report_or_none

    _LOG.info("writing the results page")
    page = report_or_none(
        ReportOptions(options["output_dir"], options["input_path"], only=options["only"])
    )
    if page is not None:
        click.echo(f"open {page.index_path} in a browser")


def _summarise(report: RunReport, place: Path) -> None:
    counts = ", ".join(
        f"{count} {_IN_SUMMARY.get(status, status)}"
        for status, count in report.counts.items()
        if count
    )
    if report.n_left_out:
        counts += f"{', ' if counts else ''}{report.n_left_out} left out"
    interrupted = "interrupted after: " if report.interrupted else ""
    where = f"; see {place}" if place.exists() else ""
    click.echo(f"{interrupted}{counts or 'nothing done'}{where}")
