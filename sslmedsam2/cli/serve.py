"""The command ``serve``."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import (
    device_option,
    folder_option,
    mode_option,
    model_option,
    slug_option,
)
from sslmedsam2.errors import UsageError, missing_packages

GRAND_CHALLENGE_PORT = 4743
_LOG = logging.getLogger(__name__)


@click.command(cls=ConfiguredCommand)
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen on; 0.0.0.0 for all addresses of a container. There is no login.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=GRAND_CHALLENGE_PORT,
    help="Port to listen on; the default is that of grand-challenge.org.",
)
@model_option
@device_option
@mode_option
@folder_option(
    "--input",
    "input_dir",
    default=Path("/input"),
    help="POST /invoke reads images from FOLDER/images/<slug>/.",
)
@folder_option(
    "--output",
    "output_dir",
    default=Path("/output"),
    help="POST /invoke writes masks to FOLDER/images/<output slug>/.",
)
@slug_option
@click.option(
    "--max-upload-mb", type=click.IntRange(1), default=512, help="Largest upload of POST /segment."
)
def serve(
    *,
    host: str,
    port: int,
    model_dir: Path | None,
    device: str,
    mode: str,
    input_dir: Path,
    output_dir: Path,
    slug: str,
    max_upload_mb: int,
) -> int:
    """Keep a model loaded and segment over HTTP.

    GET /health says whether the model is loaded; POST /segment takes an image and returns its
    mask; POST /invoke segments the images of the input folder, as grand-challenge.org calls it.
    """
    try:
        import uvicorn

        from sslmedsam2.serve import ServeOptions, make_app
    except ModuleNotFoundError as error:
        raise missing_packages("serve", "starlette", "uvicorn") from error
    from sslmedsam2.api import LiverSegmenter

    # Before the model, which takes seconds to load. Until then a client is refused.
    with _bound_socket(host, port) as listener:
        segmenter = LiverSegmenter(model_dir, device=device, mode=mode)  # type: ignore[arg-type]
        options = ServeOptions(input_dir, output_dir, slug, max_upload_mb * 2**20)
        config = uvicorn.Config(make_app(segmenter, options), log_level="warning")
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        _LOG.info("ready at %s on %s; Ctrl-C ends it", address, segmenter.device)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _bound_socket(host: str, port: int) -> socket.socket:
    """Take the address; raises UsageError where that is not possible."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"--host {host} --port {port}",
            reason=f"the address cannot be used ({error.strerror or error})",
            remedy="Choose another port, or end the program that uses this one",
        ) from error
    return listener
