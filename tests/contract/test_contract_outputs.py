from pathlib import Path

import pytest

from sslmedsam2.contract.outputs import mask_path, preview_path, report_path
from sslmedsam2.errors import OutputError
from sslmedsam2.imaging.image_file import ImageFile

OUT = Path("/output")


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
