"""A failure that nobody foresaw, as an error of the family that stays with its volume."""

from __future__ import annotations

import logging
from pathlib import Path

from sslmedsam2.errors import SslMedSam2Error

logger = logging.getLogger(__name__)


def unforeseen(path: Path, error: Exception) -> SslMedSam2Error:
    """Wrap any exception that arose over ``path``; its traceback goes to the debug log."""
    logger.debug("unforeseen error", exc_info=error)
    detail = " ".join(str(error).split())[:200] or "no details"
    return SslMedSam2Error(
        path,
        reason=f"an unforeseen error: {type(error).__name__}: {detail}",
        remedy="Run again with --verbose and report the traceback",
    )
