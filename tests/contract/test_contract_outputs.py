from pathlib import Path

import pytest

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.masks import find_predictions
from sslmedsam2.contract.outputs import mask_path, preview_path, report_path
from sslmedsam2.contract.pseudo_label_outputs import (
    Shard,
    find_records,
    parse_shard,
    pseudo_label_paths,
    run_record_path,
)
from sslmedsam2.contract.studies import find_studies
from sslmedsam2.errors import OutputError, UsageError
from sslmedsam2.imaging.image_file import ImageFile

OUT = Path("/output")
KINDS = [("0001-A", "DWI_800"), ("0001-A", "GED4"), ("scan", None)]


def series(case, sequence):
    return ImageFile(case=case, vendor="A", sequence=sequence, path=Path("/input/x.nii"))


def test_challenge_masks_are_flat_by_case_under_canonical_names():
    one = series("0930-A", "DWI_800")

    assert mask_path(OUT, one) == Path("/output/LiSeg_pred/0930-A/DWI_800_pred.nii.gz")
    assert preview_path(OUT, one) == Path("/output/previews/0930-A_DWI_800.png")


def test_other_masks_lie_beside_each_other():
    assert mask_path(OUT, series("anna", None)) == Path("/output/anna_liver.nii.gz")


def test_previews_of_both_layouts_never_share_a_name():
    assert preview_path(OUT, series("a_T1", None)) != preview_path(OUT, series("a", "T1"))


def test_the_report_lies_at_the_top():
    assert report_path(OUT) == Path("/output/run_report.json")


@pytest.mark.parametrize("case", ["..", "a/b", "", "a\nb"])
@pytest.mark.parametrize("sequence", ["T1", None])
def test_a_case_cannot_lead_out_of_the_output_folder(case, sequence):
    with pytest.raises(OutputError):
        mask_path(OUT, series(case, sequence))


@pytest.fixture
def output(tmp_path):
    """All files of pseudo labels, empty."""
    for case, sequence in KINDS:
        paths = pseudo_label_paths(tmp_path, series(case, sequence))
        for path in (paths.mask, paths.probability, paths.uncertainty, paths.record, paths.preview):
            path.parent.mkdir(exist_ok=True)
            path.touch()
    return tmp_path


def test_each_part_has_a_name_of_its_own(output):
    assert {path.relative_to(output).as_posix() for path in output.rglob("*.*")} == {
        *(f"0001-A/{sequence}_pred.nii.gz" for sequence in ("DWI_800", "GED4")),
        *(f"0001-A/probability_{sequence}.nii.gz" for sequence in ("DWI_800", "GED4")),
        *(f"0001-A/uncertainty_{sequence}.nii.gz" for sequence in ("DWI_800", "GED4")),
        *(f"0001-A/{sequence}_pseudo.json" for sequence in ("DWI_800", "GED4")),
        *(f"0001-A/{sequence}_pseudo.png" for sequence in ("DWI_800", "GED4")),
        *("scan_pred.nii.gz", "probability_scan.nii.gz", "uncertainty_scan.nii.gz"),
        *("scan_pseudo.json", "scan_pseudo.png"),
    }


def test_nothing_of_it_is_taken_for_an_image_or_a_reference_mask(output):
    assert find_studies(output).series == ()
    assert find_labelled_series(output) == ()


def test_pseudo_masks_can_be_evaluated_as_predictions(output):
    masks = find_predictions(output).masks

    assert [(mask.case, mask.sequence) for mask in masks] == [
        ("0001-A", "GED4"),
        ("0001-A", "DWI_800"),
        ("scan", None),
    ]


def test_records_are_found_again_and_half_written_ones_are_not(output):
    (output / "0001-A" / ".ab12.partial-T1_pseudo.json").touch()

    assert [path.relative_to(output).as_posix() for path in find_records(output)] == [
        "0001-A/DWI_800_pseudo.json",
        "0001-A/GED4_pseudo.json",
        "scan_pseudo.json",
    ]


def test_a_case_name_cannot_lead_out_of_the_output(tmp_path):
    with pytest.raises(OutputError):
        pseudo_label_paths(tmp_path, series("..", "T2"))


def test_shards_are_disjoint_and_hold_everything():
    items = list(range(11))

    parts = [Shard(index, 3).of(items) for index in (1, 2, 3)]

    assert parts[0] == (0, 3, 6, 9)
    assert sorted(item for part in parts for item in part) == items


@pytest.mark.parametrize("text", ["2/8", " 2 / 8 "])
def test_a_shard_is_read(text):
    assert parse_shard(text) == Shard(2, 8)


@pytest.mark.parametrize("text", ["0/8", "9/8", "2", "2/0", "a/b", "-1/2", ""])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UsageError, match="shard"):
        parse_shard(text)


def test_each_shard_keeps_its_own_run_record(tmp_path):
    names = {run_record_path(tmp_path, s).name for s in (None, Shard(1, 2), Shard(2, 2))}

    assert names == {"run.json", "run_1_of_2.json", "run_2_of_2.json"}
