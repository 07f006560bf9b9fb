"""Every kind of bad input, alone and among good ones: named, isolated, and nothing left over."""

import numpy as np
import pytest
from bad_inputs import BAD_INPUTS
from predict_samples import assert_valid_mask, liver_dice

from sslmedsam2.errors import ExitCode, InputError, NoInputError
from sslmedsam2.imaging.orientation import apply_reorientation, reorientation_of
from sslmedsam2.imaging.reading import read_grid, read_mask, read_volume
from sslmedsam2.imaging.volume import CanonicalVolume
from sslmedsam2.predict.series import LARGEST_GUESS_VOXELS
from sslmedsam2.reporting.previews import draw_preview
from sslmedsam2.reporting.run_report import SeriesStatus

FOUND_BEFORE_READING = {
    "missing": "holds no image",
    "unsupported_extension": "holds no image",
    "broken_symlink": "is a link that leads nowhere",
    "folder_with_image_name": "is a folder though it is named like a volume",
}
"""What discovery, which opens no file, refuses already, and its words."""

READ_AND_REFUSED = [
    name for name, bad in BAD_INPUTS.items() if bad.kind and name not in FOUND_BEFORE_READING
]
REPAIRED = [name for name, bad in BAD_INPUTS.items() if bad.repair]
WITH_AND_WITHOUT_A_GRID = ("truncated_gzip", "all_nan_mha", "zero_bytes", "header_claims_far_more")
GOOD_CASES = ("0001-A", "0500-B1", "0999-C")


def reading_error(path):
    with pytest.raises(InputError) as caught:
        read_volume(path)
    return str(caught.value)


def has_grid(path):
    """Tell whether a file's header is sound, and does not claim more than any scan holds."""
    try:
        grid = read_grid(path)
    except InputError:
        return False
    return grid.array_zyx.size <= LARGEST_GUESS_VOXELS


def test_the_table_is_as_wide_as_the_project_claims():
    assert len(READ_AND_REFUSED) + len(FOUND_BEFORE_READING) >= 60
    assert len(REPAIRED) >= 10


def test_a_grid_is_known_for_many_bad_files_and_not_for_all(tmp_path):
    paths = {name: BAD_INPUTS[name].write(tmp_path, name) for name in READ_AND_REFUSED}

    guessed = {name for name, path in paths.items() if has_grid(path)}

    assert {"truncated_gzip", "wrong_checksum", "all_zero", "all_nan_mha"} <= guessed
    assert not {"header_claims_far_more", "zero_bytes", "two_dimensional"} & guessed


@pytest.mark.parametrize("name", WITH_AND_WITHOUT_A_GRID)
def test_alone_a_bad_file_is_named_and_gets_a_fallback_where_its_grid_is_known(workplace, name):
    path = BAD_INPUTS[name].write(workplace.input, "scan")
    before = workplace.tree_outside()

    ended = workplace.run(on_failure="fallback")

    result = ended.of("scan")
    assert result.input_path == path.name
    assert result.error.startswith(reading_error(path))
    if has_grid(path):
        assert result.status is SeriesStatus.FALLBACK
        assert ended.exit_code == ExitCode.SOME_CASES_FAILED
        assert workplace.written() == {"run_report.json", "liver_volumes.csv", "scan_liver.nii.gz"}
        assert_valid_mask(workplace.mask_of(result), path)
    else:
        assert result.status is SeriesStatus.FAILED
        assert ended.exit_code == ExitCode.NO_VALID_INPUT
        assert workplace.written() == {"run_report.json", "liver_volumes.csv"}
    assert workplace.tree_outside() == before


def test_the_preview_of_a_guess_says_so_and_is_black_where_the_scan_cannot_be_read(workplace):
    BAD_INPUTS["truncated_gzip"].write(workplace.input, "scan")

    ended = workplace.run(on_failure="fallback", previews=True)

    result = ended.of("scan")
    guess = read_mask(workplace.mask_of(result))
    turn = reorientation_of(guess.geometry)
    z, y, x = (guess.geometry.spacing_zyx_mm[axis] for axis in turn.axes)
    mask = apply_reorientation(guess.array_zyx, turn)
    expected = workplace.root / "expected.png"
    draw_preview(
        CanonicalVolume(np.zeros(mask.shape, np.float32), (z, y, x), turn),
        mask,
        path=expected,
        title="scan",
        flags=("GUESS",),
        warnings=(result.error,),
    )
    drawn = workplace.output / "previews" / "scan_liver.png"
    assert drawn.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", FOUND_BEFORE_READING)
def test_alone_what_is_no_image_ends_the_run_with_a_reason(workplace, name):
    BAD_INPUTS[name].write(workplace.input, "scan")

    ended = workplace.run()

    assert isinstance(ended.error, NoInputError)
    assert ended.exit_code == ended.report.exit_code == ExitCode.NO_VALID_INPUT
    assert workplace.written() == {"run_report.json", "liver_volumes.csv"}


@pytest.fixture
def bad_among_good(workplace):
    """Give every bad input a case folder, with sound cases at the ends and in the middle."""
    for case in GOOD_CASES:
        workplace.add(f"Vendor-A/{case}/GED4.nii.gz")
    cases = {}
    for number, (name, bad) in enumerate(BAD_INPUTS.items(), start=450):
        case = f"{number:04}-B2"
        folder = workplace.input / "Vendor-B2" / case
        folder.mkdir(parents=True)
        cases[case] = (name, bad.write(folder, "GED4"))
    return cases


@pytest.mark.parametrize("policy", ["fallback", "skip"])
def test_among_good_cases_each_bad_one_is_named_and_none_is_in_the_way(
    workplace, bad_among_good, policy
):
    before = workplace.tree_outside()

    ended = workplace.run(on_failure=policy)

    expected = {"run_report.json", "liver_volumes.csv"}
    for case in GOOD_CASES:
        result = ended.of(case)
        assert result.status is SeriesStatus.OK
        assert liver_dice(workplace.mask_of(result)) > 0.85
        expected.add(result.output_path)
    for case, (name, path) in bad_among_good.items():
        result = ended.of(case)
        if BAD_INPUTS[name].repair:
            # The repair is one thing, noise without a liver in it another.
            no_liver = SeriesStatus.FALLBACK if policy == "fallback" else SeriesStatus.EMPTY
            assert result.status in (SeriesStatus.OK, no_liver)
            assert any(note.startswith(f"{BAD_INPUTS[name].repair}:") for note in result.warnings)
        elif name in FOUND_BEFORE_READING:
            assert FOUND_BEFORE_READING[name] in result.error
            assert result.status is SeriesStatus.FAILED
        else:
            assert result.error.startswith(reading_error(path))
            is_guessed = policy == "fallback" and has_grid(path)
            assert result.status is (SeriesStatus.FALLBACK if is_guessed else SeriesStatus.FAILED)
        if result.output_path is not None:
            assert result.output_path == f"LiSeg_pred/{case}/GED4_pred.nii.gz"
            assert_valid_mask(workplace.mask_of(result), path)
            expected.add(result.output_path)
    assert workplace.written() == expected
    assert ended.exit_code == ExitCode.SOME_CASES_FAILED
    assert len(ended.report.series) == len(GOOD_CASES) + len(BAD_INPUTS)
    assert workplace.tree_outside() == before
