"""Keeps ``run_report.json`` up to date while ``predict`` runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sslmedsam2.errors import ExitCode
from sslmedsam2.reporting.run_report import RunReport, SeriesResult, write_report
from sslmedsam2.reporting.volume_table import VOLUME_TABLE_NAME, write_volume_table

logger = logging.getLogger(__name__)

OnResult = Callable[[SeriesResult, int, int], None]
"""Called with a result, how many series are done, and how many there are."""


_SAVED_EACH_TIME = 100
"""With more series than this the report is not rewritten after each of them."""


class RunRecorder:
    """Collects the results of a run, writes its report and tells the listener.

    Nothing is written before :meth:`start_writing`, so that the report of a resumed run stays until
    its results are taken over.

    Parameters
    ----------
    report
        The report of the run that begins.
    path
        Where it is written.
    total
        Number of results to come.
    listener
        Called after each result, or None.
    shown
        Turns a message into one with the paths that the user knows.
    """

    def __init__(
        self,
        report: RunReport,
        path: Path,
        *,
        total: int,
        listener: OnResult | None,
        shown: Callable[[str], str],
    ) -> None:
        self.report = report
        self._path, self._total = path, total
        self._listener, self._shown = listener, shown
        self._is_writing = False
        self._next_save = 0.0

    def start_writing(self) -> None:
        """Write the report now, and from here on after each result."""
        self._is_writing = True
        write_report(self.report, self._path)

    def add(self, result: SeriesResult) -> None:
        """Add one result, write the report, log problems and tell the listener."""
        result = replace(
            result,
            error=result.error and self._shown(result.error),
            warnings=tuple(map(self._shown, result.warnings)),
        )
        self.report = self.report.with_series(result)
        if self._is_writing:
            self._save()
        if result.error:
            logger.error("%s: %s", result.status.value, result.error)
        for warning in result.warnings:
            if warning.startswith(("no_dicom_seg: ", "no_preview: ")):
                logger.warning("%s: %s", result.case, warning.partition(": ")[2])
        if self._listener is not None:
            self._listener(result, len(self.report.series), self._total)

    def _save(self) -> None:
        """Write the report; in a long run, spend at most a tenth of the time on it."""
        start = time.monotonic()
        if len(self.report.series) > _SAVED_EACH_TIME and start < self._next_save:
            return
        write_report(self.report, self._path)
        end = time.monotonic()
        self._next_save = end + 9 * (end - start)

    def end(self, code: ExitCode, *, interrupted: bool = False) -> RunReport:
        """Write the finished report and the table of volumes, and return the report."""
        self.report = self.report.ended(exit_code=int(code), interrupted=interrupted)
        write_report(self.report, self._path)
        write_volume_table(self.report, self._path.with_name(VOLUME_TABLE_NAME))
        return self.report
