"""The page of a run with many cases: how long it takes to open, to sort and to go through.

Phantoms of the size of a scan, one for each sequence, stand in for the scans, their references for
masks. The command `report` makes the page of one case; its scripts are then repeated for all the
others, which makes no difference to a browser. That is a Chromium without a screen, which draws on
the CPU: with a graphics card cases open faster.

    python benchmarks/report_page.py --json benchmarks/results/report_page.json
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import ROOT, parser, report, run

from sslmedsam2.reporting.run_report import (
    RunReport,
    SeriesResult,
    SeriesStatus,
    start_report,
    write_report,
)
from sslmedsam2.reporting.volume_table import VOLUME_TABLE_NAME, volume_table

if TYPE_CHECKING:
    from headless_chromium import Browser

SEQUENCES = ("GED4", "T1", "T2", "DWI_800")
VENDORS = ("A", "B1", "B2", "C")
SHAPE_ZYX = (48, 320, 320)
SPACING_ZYX_MM = (5.0, 1.2, 1.2)
STEPS = 30
"""How many series are gone through."""

_DRAWN = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
_IS_SHOWN = (
    "document.getElementById('case').open && "
    "document.getElementById('stage-message').textContent === '' && "
    "document.getElementById('case-title').textContent !== before"
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cases", type=int, default=200)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        one_case = write_run(scratch)
        folders = ["--run", str(scratch / "run"), "--input", str(scratch / "input")]
        made = run([sys.executable, str(ROOT / "entrypoint.py"), "report", *folders])
        folder = scratch / "run" / "report"
        series = repeat_page(folder, one_case, n_cases=arguments.cases)
        cases = [path.stat().st_size for path in (folder / "cases").iterdir()]
        figures = {
            "cases": arguments.cases,
            "series": series,
            "voxels": " x ".join(str(n) for n in SHAPE_ZYX[::-1]),
            "making_seconds_one_case": round(made.seconds, 1),
            "making_peak_memory_mb": round(made.peak_memory_mb),
            "page_kb": round((folder / "index.html").stat().st_size / 1e3),
            "largest_series_kb": round(max(cases) / 1e3),
            "whole_mb": round(sum(cases) / 1e6),
            **use(folder / "index.html", scratch),
        }
    report(figures, arguments.json)


def write_run(scratch: Path) -> RunReport:
    """Leave what ``predict`` leaves of one case."""
    run_report = start_report(models=(), device="cpu", backend="none", options={})
    for sequence in SEQUENCES:
        result = SeriesResult(
            case="0001-A",
            vendor="A",
            sequence=sequence,
            input_path=f"0001-A/{sequence}.nii.gz",
            output_path=f"LiSeg_pred/0001-A/{sequence}_pred.nii.gz",
            status=SeriesStatus.OK,
            seconds={"read": 0.5, "network": 2.0},
            liver_volume_ml=1400.0,
            mean_foreground_confidence=0.95,
        )
        write_phantom(
            sequence,
            scratch / "input" / result.input_path,
            scratch / "run" / f"LiSeg_pred/0001-A/{sequence}_pred.nii.gz",
        )
        run_report = run_report.with_series(result)
    write_report(run_report.ended(exit_code=0), scratch / "run" / "run_report.json")
    return run_report


def write_phantom(sequence: str, image_path: Path, mask_path: Path) -> None:
    import nibabel
    import numpy as np

    from sslmedsam2.phantom.anatomy import make_anatomy
    from sslmedsam2.phantom.rendering import axial_grid, render_sequence

    grid = axial_grid(shape_zyx=SHAPE_ZYX, spacing_zyx_mm=SPACING_ZYX_MM)
    image, mask = render_sequence(make_anatomy(7), sequence, grid=grid, seed=7)
    z, y, x = SPACING_ZYX_MM
    affine = np.diag([-x, -y, z, 1.0])
    for array, path in ((image.astype(np.int16), image_path), (mask.astype(np.uint8), mask_path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.T, affine), path)


def repeat_page(folder: Path, one_case: RunReport, *, n_cases: int) -> int:
    """Write the page of many cases, each with the scripts of the one; return how many series."""
    from sslmedsam2.reporting.page import write_page
    from sslmedsam2.reporting.page_data import PageEntry, page_data, worst_first

    made = sorted(one_case.series, key=lambda result: result.key)
    scripts = [path.read_text() for path in sorted((folder / "cases").iterdir())]
    entries = []
    for number in range(n_cases):
        vendor = VENDORS[number % len(VENDORS)]
        for result, script in zip(made, scripts, strict=True):
            series_id = f"{len(entries) + 1:04d}"
            named = script.replace(f'"{script_id(script)}"', f'"{series_id}"', 1)
            (folder / "cases" / f"{series_id}.js").write_text(named)
            result = replace(
                result,
                case=f"{number + 1:04d}-{vendor}",
                vendor=vendor,
                mean_foreground_confidence=0.8 + 0.15 * (number * 37 % 100) / 100,
                warnings=() if number % 5 else ("touches_border: words of the usual length",),
            )
            entries.append(PageEntry(series_id, result, shown="volumes"))
    many = replace(one_case, series=tuple(entry.result for entry in entries))
    data = page_data(many, worst_first(entries), notes=[])
    write_page(folder, data, title="many cases", downloads={VOLUME_TABLE_NAME: volume_table(many)})
    return len(entries)


def script_id(script: str) -> str:
    """Return under which id a series' script delivers itself."""
    return script.split('"', 2)[1]


def use(page: Path, scratch: Path) -> dict[str, Any]:
    """Open the page, sort, search, and go through cases."""
    sys.path.insert(0, str(ROOT / "tests"))
    from headless_chromium import Browser

    with Browser(scratch / "profile") as browser:
        browser.open(page)
        figures = {
            "open_ms": browser.run(
                "return performance.timing.domComplete - performance.timing.navigationStart"
            ),
            "files_at_opening": len(
                {name for name in browser.requests() if name.startswith("file:")}
            ),
            "sort_ms": timed(
                browser, "document.querySelector(\"th[data-name='Confidence'] button\").click()"
            ),
            "search_ms": timed(
                browser,
                "const field = document.getElementById('search'); field.value = '0042';"
                "field.dispatchEvent(new Event('input'))",
            ),
            "clear_ms": timed(
                browser, "document.querySelector('#filters button[type=reset]').click()"
            ),
        }
        first = step(browser, "document.querySelector('#rows a').click()")
        memory = [renderer_memory_mb()]
        steps = []
        for _ in range(STEPS - 1):
            steps.append(step(browser, "document.getElementById('case-next').click()"))
            memory.append(renderer_memory_mb())
        complaints = browser.complaints()
    return figures | {
        "first_series_ms": first,
        "next_series_ms_median": round(statistics.median(steps)),
        "next_series_ms_worst": max(steps),
        "browser_mb_after_10": memory[9],
        f"browser_mb_after_{STEPS}": memory[-1],
        "console_complaints": len(complaints),
    }


def timed(browser: Browser, action: str) -> int:
    """Return how long the page takes to do something and to draw it, in ms."""
    return round(
        browser.run(
            f"const start = performance.now(); {action};"
            f"return {_DRAWN}.then(() => performance.now() - start)"
        )
    )


def step(browser: Browser, action: str) -> int:
    """Return how long it takes until another case is drawn, in ms."""
    return round(
        browser.run(
            "const before = document.getElementById('case-title').textContent;"
            f"const start = performance.now(); {action};"
            "return new Promise((done) => { const look = () => {"
            f"if (!({_IS_SHOWN})) setTimeout(look, 5);"
            f"else {_DRAWN}.then(() => done(performance.now() - start));"
            "}; setTimeout(look, 5); })"
        )
    )


def renderer_memory_mb() -> int:
    """Return the resident size of the processes that draw pages, below this one, in MB."""
    found = 0
    for process in _descendants(os.getpid()):
        folder = Path("/proc") / str(process)
        if b"--type=renderer" in (folder / "cmdline").read_bytes():
            resident_pages = int((folder / "statm").read_text().split()[1])
            found += resident_pages * os.sysconf("SC_PAGE_SIZE")
    return round(found / 1e6)


def _descendants(process: int) -> Iterator[int]:
    for task in (Path("/proc") / str(process) / "task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))


if __name__ == "__main__":
    main()
