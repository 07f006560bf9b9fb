"""The command ``dicom``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import dicom_sequence_map_option, path_option, sequences_option

if TYPE_CHECKING:
    from sslmedsam2.dicom.model import Identity, SeriesRow

_HEADINGS = ("CASE", "SERIES", "IMAGES", "SEQUENCE", "USE", "REASON")


@click.command(cls=ConfiguredCommand)
@path_option(
    "--input", "input_path", default=Path("/input"), help="Folder of DICOM files, or one file."
)
@sequences_option(help="Sequences to segment.  [default: GED4,T1,T2,DWI_800]")
@dicom_sequence_map_option
@click.option(
    "--identify",
    is_flag=True,
    help="Also print SeriesInstanceUID, description and folder, which may name patients.",
)
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a CSV file, for its owner only, from the neutral names to PatientID, study and"
    " series.",
)
def dicom(*, input_path: Path, identify: bool, key: Path | None, **options: Any) -> None:
    """List the DICOM series of a folder, and what predict would do with each.

    Nothing is segmented. Names are neutral, as in run_report.json; --identify prints and --key
    writes which patients and series they stand for.
    """
    from sslmedsam2.predict.inputs import list_dicom, write_key

    found = list_dicom(input_path, **options)
    click.echo(_table(found.rows, found.identities if identify else {}))
    for note in found.notes:
        click.echo(f"note: {note}")
    if key is not None:
        click.echo(f"{write_key(found, key)} names in {key}, which holds patient data")


def _table(rows: tuple[SeriesRow, ...], identities: dict[tuple[str, str], Identity]) -> str:
    """Format the rows in columns, each followed by its identifiers if they are given."""
    from sslmedsam2.reporting.volume_table import aligned

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
    heading, *table = aligned([_HEADINGS, *cells])
    lines = [heading]
    for row, line in zip(rows, table, strict=True):
        lines.append(line)
        one = identities.get((row.case, row.series.partition(".")[0]))
        if one:
            shown = (one.series_uid, one.series_uid and (one.description or "(no description)"))
            lines.append("    " + "  ".join(filter(None, (*shown, one.place))))
    return "\n".join(lines)
