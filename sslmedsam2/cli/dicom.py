"""The command ``dicom``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sslmedsam2.cli.config import ConfiguredCommand, load_table

if TYPE_CHECKING:
    from sslmedsam2.dicom.model import SeriesRow

_HEADINGS = ("CASE", "SERIES", "IMAGES", "SEQUENCE", "USE", "REASON")


@click.command(cls=ConfiguredCommand)
@click.option(
    "--input",
    "input_path",
    type=click.Path(path_type=Path),
    default=Path("/input"),
    show_default=True,
    help="Folder of DICOM files, or one file.",
)
@click.option("--sequences", help="Sequences to segment.  [default: GED4,T1,T2,DWI_800]")
@click.option(
    "--sequence-map",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML or JSON file that corrects guessed sequences.",
)
@click.option(
    "--identify",
    is_flag=True,
    help="Also print SeriesInstanceUID, description and folder, which may name patients.",
)
def dicom(
    input_path: Path, sequences: str | None, sequence_map: Path | None, identify: bool
) -> None:
    """List the DICOM series of a folder, and what predict would do with each.

    Nothing is segmented or written. Names are neutral, as in run_report.json; --identify prints
    which series they stand for.
    """
    from sslmedsam2.contract.names import parse_sequence_list
    from sslmedsam2.predict.inputs import list_dicom

    found = list_dicom(
        input_path,
        sequences=None if sequences is None else parse_sequence_list(sequences),
        sequence_map=None if sequence_map is None else load_table(sequence_map),
    )
    click.echo(_table(found.rows, found.places if identify else {}))
    for note in found.notes:
        click.echo(f"note: {note}")


def _table(rows: tuple[SeriesRow, ...], places: dict[tuple[str, str], str]) -> str:
    """Format the rows in columns, each followed by its place if there is one to show."""
    cells = [
        (
            row.case,
            row.series,
            str(row.images),
            row.sequence or "-",
            row.use.replace("_", " "),
            row.reason,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    lines = [_line(_HEADINGS, widths)]
    for row, texts in zip(rows, cells, strict=True):
        lines.append(_line(texts, widths))
        place = places.get((row.case, row.series.partition(".")[0]))
        if place:
            lines.append(f"    {place}")
    return "\n".join(lines)


def _line(texts: tuple[str, ...], widths: list[int]) -> str:
    columns = (text.ljust(width) for text, width in zip(texts, widths, strict=True))
    return "  ".join(columns).rstrip()
