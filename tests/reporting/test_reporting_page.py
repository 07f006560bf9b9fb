import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from parsed_page import ParsedPage
from qc_runs import HOSTILE_TEXT

from sslmedsam2.errors import OutputError
from sslmedsam2.reporting.page import (
    MAX_CASE_BYTES,
    VIEW_BUDGET_BYTES,
    write_page,
    write_preview_case,
    write_volumes_case,
)
from sslmedsam2.reporting.page_data import PageEntry, page_data
from sslmedsam2.reporting.page_volumes import ViewVolumes
from sslmedsam2.reporting.run_report import SeriesResult, SeriesStatus, start_report

ASSETS = Path(str(resources.files("sslmedsam2.reporting") / "assets"))


class Scripts(HTMLParser):
    """Collects the scripts of a page, and their content, as a browser's parser sees them."""

    def __init__(self):
        super().__init__()
        self.scripts = []

    def handle_starttag(self, tag, attrs):
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1][1] += data


def page(folder, *, rows=(), title="run", estimated=False):
    result = SeriesResult("a", "A", "T2", "a/T2.nii.gz", None, SeriesStatus.FAILED)
    report = start_report(models=(), device="cpu", backend="torch", options={})
    data = page_data(report, [PageEntry("0001", result)], notes=[])
    (row,) = data["series"]
    data = {**data, "estimated": estimated, "series": [row | changes for changes in rows]}
    return write_page(folder, data, title=title, downloads={"liver_volumes.csv": "case\r\n"})


def parsed(path):
    parser = Scripts()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.scripts


def test_hostile_text_cannot_leave_its_script_element(tmp_path):
    row = {"id": "0001", "shown": "nothing", "case": HOSTILE_TEXT, "error": "$title <!-- <script>"}
    scripts = parsed(page(tmp_path, rows=[row]))
    (data,) = [text for attributes, text in scripts if attributes.get("type")]
    # An opening "<!-- <script" would keep a browser from seeing the end.
    assert "<" not in data
    (written,) = json.loads(data)["series"]
    assert written.items() >= row.items()
    assert [attributes.get("src") for attributes, _ in scripts] == [
        None,
        "assets/tables.js",
        "assets/run.js",
        "assets/viewer.js",
    ]


def test_the_title_is_escaped(tmp_path):
    text = page(tmp_path, title="a<b>{{ page }}").read_text(encoding="utf-8")
    assert "a&lt;b&gt;{{ page }}" in text
    assert "a<b>" not in text


def test_everything_the_page_refers_to_lies_beside_it(tmp_path):
    text = page(tmp_path).read_text(encoding="utf-8")
    references = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert len(references) == 5
    assert all((tmp_path / name).is_file() for name in references)
    assert (tmp_path / "assets" / "niivue.umd.js").is_file()
    assert (tmp_path / "assets" / "NIIVUE-LICENSE.txt").is_file()


def test_no_file_of_ours_names_an_external_address():
    files = [*ASSETS.iterdir(), *(ASSETS.parent / "templates").iterdir()]
    ours = [path for path in files if "niivue" not in path.name.lower()]
    assert len(ours) == 11
    assert not [
        path.name for path in ours if re.search(r"https?:|//\w+\.\w", path.read_text("utf-8"))
    ]


def test_an_installed_package_has_the_assets_and_templates():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(r'"([^"]+)"', re.search(r'"sslmedsam2.reporting" = (\[.*\])', text)[1])
    files = {path for path in ASSETS.parent.rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert {path for pattern in patterns for path in ASSETS.parent.glob(pattern)} == files


def test_the_table_is_complete_without_a_script(tmp_path):
    rows = [{"id": "0001", "case": "0001-A", "error": HOSTILE_TEXT, "liver_volume_ml": 1432.1}]
    (row,) = ParsedPage(page(tmp_path, rows=rows)).table(
        "Every scan of the run. A case opens with Enter or a click; the arrow keys move between"
        " cases."
    )
    shown = (row["Case"], row["Status"], row["Warnings and errors"], row["Liver ml"])
    assert shown == ("0001-A", "failed", HOSTILE_TEXT, "1432")


def test_an_estimate_without_its_interval_is_left_out(tmp_path):
    row = {"id": "0001", "status": "ok", "estimated_dice": 0.93}
    with_interval = row | {"estimated_dice_interval": [0.88, 0.96]}
    pages = [
        page(tmp_path / name, rows=[changes], estimated=True).read_text(encoding="utf-8")
        for name, changes in (("one", row), ("both", with_interval))
    ]
    assert ["0.88 to 0.96" in text for text in pages] == [False, True]


def test_the_viewer_is_the_pinned_one_and_the_assets_are_small():
    digest = hashlib.sha256((ASSETS / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest in (ASSETS / "README.md").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 4_000_000


def test_volumes_within_the_budget_make_a_script_within_the_limit(tmp_path):
    halves = bytes(VIEW_BUDGET_BYTES // 2)
    volumes = ViewVolumes(
        image_nifti=halves,
        labels_nifti=halves,
        focus_ras_mm=(1.5, -2.5, 3.5),
        slices_xyz=(512, 512, 400),
        block_xyz=(2, 2, 1),
        grey_range=(0.0, 1.0),
        window=(0.0, 1.0),
        note="note",
        thumbnail_png=b"png",
    )
    write_volumes_case(tmp_path, "0001", volumes)
    size = (tmp_path / "cases" / "0001.js").stat().st_size
    assert 0.99 * MAX_CASE_BYTES < size <= MAX_CASE_BYTES


def test_scripts_of_series_that_are_gone_are_removed_and_nothing_else(tmp_path):
    for series_id in ("0001", "0002", "0003"):
        write_preview_case(tmp_path, series_id, b"png")
    (tmp_path / "cases" / "notes.js").write_text("mine")
    page(tmp_path, rows=[{"id": "0001", "shown": "preview"}, {"id": "0002", "shown": "nothing"}])
    assert {path.name for path in (tmp_path / "cases").iterdir()} == {"0001.js", "notes.js"}


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(OutputError, match="choose another output folder") as caught:
        page(tmp_path / "report")
    assert "\n" not in str(caught.value)
