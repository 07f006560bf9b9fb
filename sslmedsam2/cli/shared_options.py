"""Options that mean the same to several commands."""

from __future__ import annotations

import click

device_option = click.option(
    "--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True
)
