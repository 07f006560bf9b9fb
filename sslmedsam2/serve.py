"""The HTTP interface of ``serve``: one loaded model, one job at a time.

``GET /health`` and ``POST /invoke`` keep the container interface of grand-challenge.org (label
``org.grand-challenge.api-method="invoke"``): the platform mounts the images of a case, calls
``/invoke`` and reads the masks. ``POST /segment`` takes one image and returns its mask, for
viewers. Importing this module imports Starlette; import it inside functions.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sslmedsam2 import __version__
from sslmedsam2.api import LiverSegmenter, Segmentation
from sslmedsam2.contract.names import is_hidden, split_volume_name
from sslmedsam2.contract.outputs import DEFAULT_SLUG
from sslmedsam2.errors import InputError, NoInputError, OutputError, SslMedSam2Error, described
from sslmedsam2.imaging.formats import DETACHED_EXTENSIONS, IMAGE_EXTENSIONS, image_extension
from sslmedsam2.imaging.reading import read_volume

logger = logging.getLogger(__name__)

_IMAGES: Final = "images"
"""Folder of grand-challenge.org's images, below the input and the output folder."""
_ONE_FILE_FORMATS: Final = tuple(end for end in IMAGE_EXTENSIONS if end not in DETACHED_EXTENSIONS)
_SHOWN_OF_A_NAME: Final = 40
_HEADER_CHARACTERS: Final = 2000
"""Clients take 8 KB for all headers together."""


@dataclass(frozen=True)
class ServeOptions:
    """What the server may read and write.

    Attributes
    ----------
    input_dir, output_dir
        Of ``/invoke``: ``input_dir/images/<slug>/*`` gives ``output_dir/images/<output_slug>/*``.
    output_slug
        Name of the output folder that the platform asks for.
    max_upload_bytes
        Limit of a ``/segment`` request. A larger one is refused: before its body is read if it
        declares its length, otherwise once the limit is reached.
    """

    input_dir: Path = Path("/input")
    output_dir: Path = Path("/output")
    output_slug: str = DEFAULT_SLUG
    max_upload_bytes: int = 512 * 2**20


class _TooLargeError(Exception):
    """An upload is beyond the limit, which is in the message."""


class _BusyError(Exception):
    """Another job is running."""


def make_app(segmenter: LiverSegmenter, options: ServeOptions) -> Starlette:
    """Return the ASGI application around a loaded segmenter."""
    handlers = _Handlers(segmenter, options)
    return Starlette(
        routes=[
            Route("/health", handlers.health),
            Route("/invoke", handlers.invoke, methods=["POST"]),
            Route("/segment", handlers.segment, methods=["POST"]),
        ],
        exception_handlers={
            HTTPException: _unknown_request,
            SslMedSam2Error: _refused,
            _BusyError: _busy,
            _TooLargeError: _too_large,
            Exception: _failed,
        },
    )


class _Handlers:
    """The answers to requests; only one job at a time uses the segmenter."""

    def __init__(self, segmenter: LiverSegmenter, options: ServeOptions) -> None:
        self._segmenter, self._options = segmenter, options
        self._lock = threading.Lock()

    def health(self, _request: Request) -> Response:
        """Say that the model is loaded."""
        segmenter = self._segmenter
        about = {"version": __version__, "device": segmenter.device, "backend": segmenter.backend}
        return JSONResponse({"status": "ok", **about})

    def invoke(self, _request: Request) -> Response:
        """Segment the images that grand-challenge.org has mounted."""
        with self._one_job():
            return JSONResponse({"written": segment_case(self._segmenter, self._options)}, 201)

    async def segment(self, request: Request) -> Response:
        """Segment the image in the body of a request and return its mask."""
        name = request.query_params.get("name", "image.nii.gz")
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise InputError(
                name[-_SHOWN_OF_A_NAME:],
                kind="unknown_format",
                reason="it was sent as a form",
                remedy="Send the file itself as the body, as curl does with --data-binary @FILE",
            )
        # Of the sender's file name only the format is used: no path comes from outside.
        extension = _format_of(name)
        with tempfile.TemporaryDirectory(prefix="sslmedsam2-") as scratch:
            image = Path(scratch) / f"image{extension}"
            await _receive(request, image, limit_bytes=self._options.max_upload_bytes)
            try:
                found, mask = await run_in_threadpool(self._segment_file, image)
            except InputError as error:
                # The sender knows nothing of the scratch file.
                shown = name[-_SHOWN_OF_A_NAME:]
                raise error.reworded(lambda text: text.replace(str(image), shown)) from error
        return Response(mask, media_type="application/gzip", headers=_headers(found))

    def _segment_file(self, image: Path) -> tuple[Segmentation, bytes]:
        with self._one_job():
            found = self._segmenter.segment(image)
        mask = image.with_name("mask.nii.gz")
        found.save(mask)
        return found, mask.read_bytes()

    @contextmanager
    def _one_job(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise _BusyError
        try:
            yield
        finally:
            self._lock.release()


def _refused(_request: Request, error: Exception) -> Response:
    status = 422 if isinstance(error, (InputError, NoInputError)) else 500
    logger.error("%s", error)
    return JSONResponse({"error": str(error)}, status)


def _failed(_request: Request, error: Exception) -> Response:
    # Starlette raises the error again afterwards: the server logs its traceback.
    return JSONResponse({"error": f"an unforeseen error: {described(error)}"}, 500)


def _unknown_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{error.detail}; there are GET /health, POST /segment and POST /invoke"
    return JSONResponse({"error": text}, error.status_code, headers=error.headers)


def _busy(_request: Request, _error: Exception) -> Response:
    text = "another image is being segmented; send this one again later"
    return JSONResponse({"error": text}, 503, headers={"Retry-After": "5"})


def _too_large(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 413)


def segment_case(segmenter: LiverSegmenter, options: ServeOptions) -> list[str]:
    """Segment all images below ``input_dir/images`` and return the masks' paths in ``output_dir``.

    With one image the mask is called ``output.mha``, with several each keeps its image's name.

    Raises
    ------
    NoInputError
        There is no image.
    InputError
        An image cannot be used; then no mask of the case is written.
    OutputError
        A mask cannot be written.
    """
    folder = options.input_dir / _IMAGES
    names = {
        path: split_volume_name(path.name)
        for path in sorted(folder.glob("*/*"))
        if not (is_hidden(path.name) or is_hidden(path.parent.name))
    }
    images = {path: name[0] for path, name in names.items() if name}
    if not images:
        raise NoInputError(
            folder, reason="no image was found", remedy="Mount images as <slug>/<name>.mha"
        )
    volumes = {image: read_volume(image) for image in images}
    target = options.output_dir / _IMAGES / options.output_slug
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            target, reason=f"it cannot be made ({error.strerror})", remedy="Check its permissions"
        ) from error
    stems = Counter(images.values())
    written = []
    for image, stem in images.items():
        found = segmenter.segment(volumes.pop(image))
        # Images of one name in several slugs get the slug in front.
        name = stem if stems[stem] == 1 else f"{image.parent.name}_{image.name}"
        mask = target / ("output.mha" if len(images) == 1 else f"{name}.mha")
        found.save(mask)
        logger.info("%s: %.0f ml", image.name, found.volume_ml)
        written.append(mask.relative_to(options.output_dir).as_posix())
    return written


async def _receive(request: Request, path: Path, *, limit_bytes: int) -> None:
    """Write a request's body to ``path``; raises _TooLargeError."""
    megabytes = limit_bytes // 2**20
    too_large = _TooLargeError(f"the image is larger than {megabytes} MB; raise --max-upload-mb")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large
    received = 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit_bytes:
                raise too_large
            file.write(chunk)


def _format_of(name: str) -> str:
    """Return the extension of a sender's file name; raises InputError for other formats."""
    extension = image_extension(Path(name))
    if extension in _ONE_FILE_FORMATS:
        return extension
    raise InputError(
        name[-_SHOWN_OF_A_NAME:],
        kind="unknown_format",
        reason="its name is that of no supported format",
        remedy=f"Send a file that ends in {', '.join(_ONE_FILE_FORMATS)}",
    )


def _headers(found: Segmentation) -> dict[str, str]:
    """Return what is known of a mask as headers, which hold ASCII only."""
    warnings = "; ".join(found.warnings)[:_HEADER_CHARACTERS]
    estimate = {}
    if found.estimate is not None:
        low, high = found.estimate.interval
        estimate = {
            "X-Estimated-Dice": f"{found.estimate.dice:.3f}",
            "X-Estimated-Dice-Interval": f"{low:.3f} {high:.3f}",
        }
    return {
        "Content-Disposition": 'attachment; filename="liver.nii.gz"',
        "X-Liver-Volume-Ml": f"{found.volume_ml:.1f}",
        "X-Verdict": found.verdict,
        **estimate,
        "X-Warnings": quote(warnings, safe=" ;:,.()"),
    }
