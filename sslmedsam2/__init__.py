"""SSL-MedSAM2: liver segmentation in abdominal MRI, and retraining from a few labelled scans.

``from sslmedsam2 import LiverSegmenter`` loads torch and the engine; importing the package alone
loads no heavy library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sslmedsam2.api import LiverSegmenter, Segmentation

__version__ = "0.1.0"
__all__ = ["LiverSegmenter", "Segmentation", "__version__"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sslmedsam2 import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
