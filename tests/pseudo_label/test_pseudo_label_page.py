"""The results page of a folder of pseudo labels."""

import json
import re

import numpy as np
import pytest
from tiny_scans import abdomen, write_scan

from sslmedsam2.cli.main import main
from sslmedsam2.contract.pseudo_label_outputs import pseudo_label_paths
from sslmedsam2.errors import ExitCode
from sslmedsam2.imaging.geometry import affine_lps
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.reading import read_volume
from sslmedsam2.imaging.records import write_record
from sslmedsam2.imaging.writing import write_map, write_mask
from sslmedsam2.pseudo_label.records import PseudoLabelRecord


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "queries", tmp_path / "pseudo"


def add(folders, case, *, verdict="accept", dice=0.9, error=None):
    queries, pseudo = folders
    path = write_scan(queries / case / "T2.nii.gz")
    paths = pseudo_label_paths(pseudo, ImageFile(case=case, vendor=None, sequence="T2", path=path))
    if error is None:
        write_mask(abdomen()[1], like=read_volume(path), path=paths.mask)
    labelled = {"verdict": verdict, "estimated_dice": dice, "interval": (dice - 0.1, dice + 0.05)}
    record = PseudoLabelRecord(
        case,
        "T2",
        None,
        f"{case}/T2.nii.gz",
        error=error,
        **({} if error else {**labelled, "volume_ml": 1200.0}),
    )
    write_record(paths.record, record)


def report(folders, *more):
    queries, pseudo = folders
    return main(["report", "--run", str(pseudo), "--input", str(queries), *more])


def page_data(folders):
    text = (folders[1] / "report" / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="page-data">(.*?)</script>', text)[1])


def test_pseudo_labels_have_a_page_the_most_doubtful_first(folders):
    add(folders, "0001-A", dice=0.93)
    add(folders, "0002-A", verdict="doubtful", dice=0.7)
    add(folders, "0003-A", error="no slice was found")

    assert report(folders) == ExitCode.OK

    data = page_data(folders)
    series = data["series"]
    assert [row["case"] for row in series] == ["0003-A", "0002-A", "0001-A"]
    assert [row["status"] for row in series] == ["failed", "check", "ok"]
    assert series[1]["flags"] == ["doubtful"]
    assert series[1]["estimated_dice_interval"] == [pytest.approx(0.6), pytest.approx(0.75)]
    assert [row["shown"] for row in series] == ["volumes"] * 3
    assert "1200 ml" in data["volumes"]


def test_a_pseudo_label_opens_where_it_is_most_uncertain(folders):
    add(folders, "0001-A")
    queries, pseudo = folders
    path = queries / "0001-A" / "T2.nii.gz"
    image = ImageFile(case="0001-A", vendor=None, sequence="T2", path=path)
    scan = read_volume(path)
    uncertainty = np.zeros(scan.array_zyx.shape, np.float32)
    uncertainty[4:7, 5:8, 6:9] = 1
    write_map(uncertainty, like=scan, path=pseudo_label_paths(pseudo, image).uncertainty)

    report(folders)

    x, y, z = affine_lps(scan.geometry)[:3] @ [7, 6, 5, 1]
    assert page_data(folders)["series"][0]["most_doubtful_lps_mm"] == pytest.approx(
        [x, y, z], abs=15
    )


def test_pseudo_labels_are_compared_with_references(folders, tmp_path):
    add(folders, "0001-A")
    reference = tmp_path / "references" / "0001-A" / "mask_T2.nii.gz"
    write_scan(reference, abdomen()[1], dtype=np.uint8)

    assert report(folders, "--references", str(tmp_path / "references")) == ExitCode.OK

    assert page_data(folders)["series"][0]["dice"] == 1


def test_the_table_can_be_downloaded(folders):
    add(folders, "0001-A")
    (folders[1] / "pseudo_labels.csv").write_text("case\n0001-A\n")
    report(folders)
    assert (folders[1] / "report" / "pseudo_labels.csv").read_text() == "case\n0001-A\n"


def test_a_folder_without_records_says_what_to_give(folders, capsys):
    folders[1].mkdir()
    assert report(folders) == ExitCode.NO_VALID_INPUT
    assert "Give the output folder of predict or of pseudo-label" in capsys.readouterr().err
