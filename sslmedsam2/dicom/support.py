"""Check that pydicom and highdicom are installed, and silence warnings that quote patients.

Both warn about values that break the standard and quote them, names of patients included. Such
warnings would appear in the log.
"""

from __future__ import annotations

import importlib
import logging
import warnings

from sslmedsam2.errors import UsageError

INSTALL_HINT = ".venv/bin/pip install -c constraints.txt -e '.[dicom]'"
_PACKAGES = ("pydicom", "highdicom")


def require_dicom() -> None:
    """Import pydicom and highdicom, and silence them; to be called before any file is opened.

    Raises
    ------
    UsageError
        One of them is not installed.
    """
    try:
        for package in _PACKAGES:
            importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            "DICOM",
            reason=f"it needs the package {error.name}, which is not installed",
            remedy=f"Run in the clone: {INSTALL_HINT}",
        ) from error
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=rf"{package}(\..*)?$")
