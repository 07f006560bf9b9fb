"""What ``--resume`` keeps of an earlier run, and what it does again."""

import json
import shutil
import time

import nibabel as nib
import numpy as np
import pytest
from predict_samples import Workplace, assert_valid_mask
from tiny_models import bright_tissue_model
from tiny_scans import abdomen

from sslmedsam2.contract.outputs import PREDICTION_FOLDER
from sslmedsam2.errors import ExitCode, NoInputError
from sslmedsam2.imaging.atomic import atomic_path
from sslmedsam2.inference.segmenter import CanonicalSegmenter
from sslmedsam2.predict import recorder, resume
from sslmedsam2.predict.resume import reusable_result
from sslmedsam2.predict.series import MAP_KINDS
from sslmedsam2.reporting.run_report import SeriesStatus
from sslmedsam2.submission.package import plan_package

CASES = ("0001-A", "0002-A")


@pytest.fixture(scope="module")
def earlier_run(tmp_path_factory, bright_model):
    """Two cases and a run that has completed them; tests get copies."""
    workplace = Workplace(tmp_path_factory.mktemp("earlier"), bright_model)
    for case in CASES:
        workplace.add(f"{case}/GED4.nii.gz")
    assert workplace.run().exit_code == ExitCode.OK
    return workplace


@pytest.fixture
def finished(earlier_run, tmp_path):
    """Two cases that an earlier run has completed."""
    return earlier_run.copy_to(tmp_path / "finished")


def mask_path(workplace, case):
    return workplace.output / "LiSeg_pred" / case / "GED4_pred.nii.gz"


def statuses(ended):
    return [ended.of(case).status for case in CASES]


def test_what_is_complete_is_kept_without_the_network(finished, monkeypatch):
    before = {case: mask_path(finished, case).stat().st_mtime_ns for case in CASES}
    first = {case: finished.run(resume=True).of(case) for case in CASES}
    monkeypatch.delattr(CanonicalSegmenter, "infer")

    ended = finished.run(resume=True)

    assert ended.exit_code == ExitCode.OK
    assert statuses(ended) == [SeriesStatus.SKIPPED_RESUME] * 2
    # A second resumption still knows what the first run measured.
    for case in CASES:
        assert ended.of(case) == first[case]
        assert ended.of(case).liver_volume_ml > 100
        assert mask_path(finished, case).stat().st_mtime_ns == before[case]


def test_without_resume_everything_is_done_again(finished):
    assert statuses(finished.run()) == [SeriesStatus.OK] * 2


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    mask = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), path)


def move(path):
    mask = nib.load(path)
    affine = mask.affine.copy()
    affine[:3, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), affine), path)


@pytest.mark.parametrize("damage", [remove, truncate, empty, move])
def test_a_mask_that_no_longer_stands_is_moved_aside_and_made_again_the_others_kept(
    finished, damage
):
    path = mask_path(finished, "0002-A")
    whole = path.read_bytes()
    damage(path)
    damaged = path.read_bytes() if path.exists() else None

    ended = finished.run(resume=True)

    kept = SeriesStatus.SKIPPED_RESUME
    assert statuses(ended) == [kept, SeriesStatus.OK]
    assert path.read_bytes() == whole
    moved = list(path.parent.glob("*.replaced-*"))
    assert [one.read_bytes() for one in moved] == ([] if damaged is None else [damaged])
    assert all(one.name.startswith(f"{path.name}.replaced-") for one in moved)


def test_an_image_replaced_on_the_same_grid_is_done_again(finished):
    earlier = mask_path(finished, "0002-A").read_bytes()
    finished.add("0002-A/GED4.nii.gz", array_zyx=np.roll(abdomen(seed=9)[0], 3, axis=2))

    ended = finished.run(resume=True)

    assert ended.of("0002-A").status is SeriesStatus.OK
    assert ended.of("0001-A").status is SeriesStatus.SKIPPED_RESUME
    assert mask_path(finished, "0002-A").read_bytes() != earlier


def test_an_image_replaced_on_another_grid_is_done_again(finished):
    finished.add("0002-A/GED4.nii.gz", array_zyx=np.pad(abdomen()[0], 2, mode="edge"))

    ended = finished.run(resume=True)

    assert ended.of("0001-A").status is SeriesStatus.SKIPPED_RESUME
    assert ended.of("0002-A").status is not SeriesStatus.SKIPPED_RESUME
    assert_valid_mask(mask_path(finished, "0002-A"), finished.input / "0002-A" / "GED4.nii.gz")


def test_a_new_case_is_done_and_the_old_ones_kept(finished):
    finished.add("0004-A/GED4.nii.gz")

    ended = finished.run(resume=True)

    assert statuses(ended) == [SeriesStatus.SKIPPED_RESUME] * 2
    assert ended.of("0004-A").status is SeriesStatus.OK


@pytest.mark.parametrize(
    "options", [{"mode": "fast"}, {"mirror": True}, {"mask_dtype": "input"}], ids=str
)
def test_other_options_that_change_the_result_do_everything_again(finished, options):
    assert statuses(finished.run(resume=True, **options)) == [SeriesStatus.OK] * 2


@pytest.mark.parametrize("options", [{"previews": True}, {"sequences": ("GED4",)}], ids=str)
def test_options_that_leave_the_masks_alone_do_not_matter(finished, options):
    assert statuses(finished.run(resume=True, **options)) == [SeriesStatus.SKIPPED_RESUME] * 2


def test_another_model_does_everything_again(finished, tmp_path):
    # The same name and architecture, other weights: only the hashes tell.
    other = bright_tissue_model(tmp_path / "elsewhere" / finished.model.name, threshold=0.9)

    ended = finished.run(resume=True, model_dir=other)

    assert statuses(ended) == [SeriesStatus.OK] * 2


def test_a_fallback_is_tried_again(finished, tmp_path):
    hopeless = bright_tissue_model(tmp_path / "hopeless", threshold=50.0)
    assert (
        statuses(finished.run(model_dir=hopeless, on_failure="fallback"))
        == [SeriesStatus.FALLBACK] * 2
    )

    ended = finished.run(model_dir=hopeless, resume=True, on_failure="fallback")

    assert statuses(ended) == [SeriesStatus.FALLBACK] * 2


def files_aside(workplace):
    """List the files that were moved aside, by the names that they had."""
    names = (name.partition(".replaced-") for name in workplace.written())
    return {name for name, aside, _ in names if aside}


def test_a_guess_that_is_no_longer_wanted_is_no_mask_of_the_run(finished, tmp_path):
    hopeless = bright_tissue_model(tmp_path / "hopeless", threshold=50.0)
    options = {"model_dir": hopeless, "previews": True}
    finished.run(on_failure="fallback", **options)
    guess = mask_path(finished, CASES[0]).read_bytes()
    shutil.rmtree(next(finished.output.glob(f"{PREDICTION_FOLDER}.replaced-*")))

    ended = finished.run(resume=True, on_failure="skip", **options)

    assert statuses(ended) == [SeriesStatus.EMPTY] * 2
    with pytest.raises(NoInputError, match="no mask to pack"):
        plan_package(finished.output)
    previews = {f"previews/{case}_GED4.png" for case in CASES}
    masks = {f"LiSeg_pred/{case}/GED4_pred.nii.gz" for case in CASES}
    assert files_aside(finished) >= previews | masks
    assert not finished.written() & previews
    [aside] = mask_path(finished, CASES[0]).parent.iterdir()
    assert aside.read_bytes() == guess


def test_the_mask_of_an_image_that_can_no_longer_be_read_is_no_mask_of_the_run(finished):
    truncate(finished.input / "0002-A" / "GED4.nii.gz")
    mask = mask_path(finished, "0002-A").read_bytes()

    ended = finished.run(resume=True, on_failure="skip")

    assert statuses(ended) == [SeriesStatus.SKIPPED_RESUME, SeriesStatus.FAILED]
    assert [path for _, path in plan_package(finished.output).masks] == [
        mask_path(finished, "0001-A")
    ]
    [aside] = mask_path(finished, "0002-A").parent.iterdir()
    assert aside.read_bytes() == mask


@pytest.fixture
def dicom_series(workplace):
    """Give a function that writes the DICOM series of a workplace."""
    pytest.importorskip("highdicom", reason="needs the extra [dicom]")
    from dicom.dicom_samples import write_series

    array = abdomen()[0][::2, ::2, ::2]

    def write(**tags):
        spacing = (14.0, 8.0, 8.0)
        write_series(workplace.input / "series", array, spacing_zyx_mm=spacing, **tags)

    return write


def test_a_dicom_seg_does_not_outlast_its_mask(workplace, dicom_series, tmp_path):
    dicom_series()
    [first] = workplace.run().report.series
    hopeless = bright_tissue_model(tmp_path / "hopeless", threshold=50.0)

    ended = workplace.run(resume=True, model_dir=hopeless, on_failure="fallback")

    [guess] = ended.report.series
    assert guess.status is SeriesStatus.FALLBACK
    assert files_aside(workplace) == {first.dicom_seg_path}
    assert not (workplace.output / first.dicom_seg_path).exists()


def test_a_dicom_seg_that_the_images_rule_out_is_not_tried_again(workplace, dicom_series):
    dicom_series(SOPInstanceUID="1.2.3")
    [first] = workplace.run().report.series
    assert any(note.startswith("no_dicom_seg: ") for note in first.warnings)

    [again] = workplace.run(resume=True).report.series

    assert again.status is SeriesStatus.SKIPPED_RESUME
    assert again.warnings == first.warnings


def test_a_dicom_seg_that_could_not_be_stored_is_tried_again(workplace, dicom_series):
    dicom_series()
    # In the way of the folder, as a full disk is.
    workplace.output.mkdir()
    (workplace.output / "dicom_seg").write_bytes(b"")
    [first] = workplace.run().report.series
    assert any(note.startswith("no_dicom_seg: ") for note in first.warnings)
    (workplace.output / "dicom_seg").unlink()

    [again] = workplace.run(resume=True).report.series

    assert again.status is SeriesStatus.OK
    assert (workplace.output / again.dicom_seg_path).is_file()


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"schema_version": 99}'])
def test_without_a_usable_report_everything_is_done(finished, content):
    report = finished.output / "run_report.json"
    report.unlink()
    if content is not None:
        report.write_text(content)

    assert statuses(finished.run(resume=True)) == [SeriesStatus.OK] * 2


def correct(path):
    """Move a mask by a voxel, as a person might correct it, and return the file's content."""
    mask = nib.load(path)
    moved = np.roll(np.asarray(mask.dataobj), 1, axis=0)
    nib.save(nib.Nifti1Image(moved, mask.affine, mask.header), path)
    return path.read_bytes()


def test_a_corrected_mask_stands_whatever_has_changed_but_its_image(finished, tmp_path):
    path = mask_path(finished, "0002-A")
    corrected = correct(path)
    other = bright_tissue_model(tmp_path / "elsewhere" / finished.model.name, threshold=0.9)

    for changed in ({}, {"model_dir": other}, {"model_dir": other, "mode": "fast"}):
        ended = finished.run(resume=True, **changed)
        assert ended.of("0002-A").status is SeriesStatus.SKIPPED_RESUME
        assert path.read_bytes() == corrected
        assert [note for note in ended.of("0002-A").warnings if "manually_corrected" in note] == [
            "manually_corrected: the mask is kept as it is"
        ]
    assert not list(finished.output.rglob("*.replaced-*"))

    finished.add("0002-A/GED4.nii.gz", array_zyx=abdomen(seed=9)[0])
    assert finished.run(resume=True).of("0002-A").status is SeriesStatus.OK
    (moved,) = finished.output.rglob("*.replaced-*")
    assert moved.read_bytes() == corrected


def test_a_resumption_of_some_scans_lists_the_masks_of_the_others(finished):
    correct(mask_path(finished, CASES[1]))

    ended = finished.run(resume=True, input_path=finished.input / CASES[0])

    assert statuses(ended) == [SeriesStatus.SKIPPED_RESUME] * 2
    assert ended.of(CASES[1]).warnings == ("manually_corrected: the mask is kept as it is",)
    assert ended.exit_code == ExitCode.OK
    assert not files_aside(finished)


def test_folders_of_patients_can_be_segmented_one_after_another(workplace):
    for case in CASES:
        workplace.add(f"{case}/GED4.nii.gz")
        ended = workplace.run(resume=True, input_path=workplace.input / case)

    assert [one.case for one in ended.report.series] == list(CASES)
    assert not files_aside(workplace)


def test_masks_of_other_scans_and_options_are_moved_aside_unless_corrected(finished):
    finished.add("0003-A/GED4.nii.gz")
    finished.run(resume=True)
    corrected = correct(mask_path(finished, CASES[1]))

    ended = finished.run(resume=True, mirror=True, input_path=finished.input / "0003-A")

    assert [one.case for one in ended.report.series] == [CASES[1], "0003-A"]
    assert files_aside(finished) == {f"LiSeg_pred/{CASES[0]}/GED4_pred.nii.gz"}
    assert mask_path(finished, CASES[1]).read_bytes() == corrected
    assert len(plan_package(finished.output).masks) == 2


def test_masks_in_another_format_are_moved_aside(finished):
    ended = finished.run(resume=True, mask_format="mha")

    assert {one.output_path for one in ended.report.series} == {
        f"LiSeg_pred/{case}/GED4_pred.mha" for case in CASES
    }
    assert files_aside(finished) == {f"LiSeg_pred/{case}/GED4_pred.nii.gz" for case in CASES}


def test_a_corrected_mask_stands_if_the_input_is_a_folder_within_the_earlier_one(finished):
    corrected = correct(mask_path(finished, CASES[1]))

    ended = finished.run(resume=True, input_path=finished.input / CASES[1])

    assert ended.of(CASES[1]).input_path == "GED4.nii.gz"
    assert mask_path(finished, CASES[1]).read_bytes() == corrected
    assert not files_aside(finished)


def test_a_preview_that_is_missing_or_shows_an_older_mask_is_drawn_anew(finished):
    previews = [finished.output / "previews" / f"{case}_GED4.png" for case in CASES]
    # In the way of the picture, as a full disk is.
    previews[0].mkdir(parents=True)
    first = finished.run(resume=True, previews=True)
    assert any(note.startswith("no_preview: ") for note in first.of(CASES[0]).warnings)
    before = previews[1].read_bytes()
    previews[0].rmdir()
    correct(mask_path(finished, CASES[1]))

    ended = finished.run(resume=True, previews=True)

    assert statuses(ended) == [SeriesStatus.SKIPPED_RESUME] * 2
    assert previews[0].read_bytes().startswith(b"\x89PNG")
    assert not any("no_preview" in note for note in ended.of(CASES[0]).warnings)
    assert previews[1].read_bytes() != before


def test_another_version_alone_does_nothing_again(finished):
    report = finished.output / "run_report.json"
    content = json.loads(report.read_text())
    report.write_text(json.dumps({**content, "tool_version": "0.0.1"}))

    assert statuses(finished.run(resume=True)) == [SeriesStatus.SKIPPED_RESUME] * 2


def test_a_kill_while_the_masks_are_checked_leaves_the_report_of_the_earlier_run(
    finished, monkeypatch
):
    report = finished.output / "run_report.json"
    before = report.read_bytes()
    calls = []

    def stops(*args, **more):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return reusable_result(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "reusable_result", stops)
        with pytest.raises(KeyboardInterrupt):
            finished.run(resume=True)
    assert report.read_bytes() == before
    assert statuses(finished.run(resume=True)) == [SeriesStatus.SKIPPED_RESUME] * 2


def test_what_a_killed_run_had_begun_to_write_is_removed_and_nothing_else(finished):
    folder = mask_path(finished, CASES[0]).parent
    begun = folder / ".1a2b3c4d.partial-GED4_pred.nii.gz"
    notes = folder / ".notes.partial-draft.txt.d"
    begun.write_bytes(b"half")
    notes.mkdir()
    (folder / ". x.partial-y").write_bytes(b"a person's")

    finished.run(resume=True)

    assert not begun.exists()
    assert notes.is_dir()
    assert (folder / ". x.partial-y").exists()


def test_what_another_program_is_writing_below_the_output_folder_is_left_alone(finished):
    with atomic_path(finished.output / "work" / "checkpoint.pth") as partial:
        partial.write_bytes(b"half")
        finished.run(resume=True)
        partial.write_bytes(b"whole")

    assert (finished.output / "work" / "checkpoint.pth").read_bytes() == b"whole"


def test_a_run_without_input_leaves_the_record_of_an_earlier_one(finished):
    report = finished.output / "run_report.json"
    before = report.read_bytes()
    shutil.move(finished.input, finished.root / "elsewhere")
    finished.input.mkdir()

    assert isinstance(finished.run().error, NoInputError)
    assert report.read_bytes() == before

    finished.input.rmdir()
    shutil.move(finished.root / "elsewhere", finished.input)
    assert statuses(finished.run(resume=True)) == [SeriesStatus.SKIPPED_RESUME] * 2


def test_folders_of_the_user_that_are_called_as_those_of_a_run_stay(workplace):
    scan = workplace.add("maps/0001-A/GED4.nii.gz")
    notes = workplace.input / "report" / "notes.docx"
    notes.parent.mkdir()
    notes.write_bytes(b"a person's")

    for _ in range(2):
        ended = workplace.run(output_dir=workplace.input)
        assert ended.exit_code == ExitCode.OK
        assert scan.exists()
    assert not list(workplace.input.glob("maps.replaced-*"))


@pytest.mark.parametrize("layout", ["challenge", "bids", "grand-challenge"])
def test_results_beside_the_scans_are_not_segmented_by_the_next_run(workplace, layout):
    workplace.add("anna.nii.gz")
    workplace.add("0001-A/GED4.nii.gz")
    written = {"output_dir": workplace.input, "layout": layout, "maps": True, "previews": True}
    before = [one.key for one in workplace.run(**written).report.series]

    for resumed in (True, False):
        ended = workplace.run(**written, resume=resumed)
        assert [one.key for one in ended.report.series] == before
        assert not ended.report.left_out


def test_maps_of_a_scan_that_is_no_longer_listed_are_moved_aside(finished):
    finished.run(maps=True)

    finished.run(resume=True, mirror=True, input_path=finished.input / CASES[0])

    maps = {f"maps/{kind}_{CASES[1]}_GED4.nii.gz" for kind in MAP_KINDS}
    assert maps < files_aside(finished)


def test_the_report_of_a_long_run_is_not_rewritten_after_each_series(workplace, monkeypatch):
    for number in range(8):
        workplace.add(f"{number:04}-A/GED4.nii.gz")
    writes = []
    real = recorder.write_report

    def slow(report, path):
        writes.append(len(report.series))
        time.sleep(0.3)
        real(report, path)

    monkeypatch.setattr(recorder, "write_report", slow)
    monkeypatch.setattr(recorder, "_SAVED_EACH_TIME", 2)

    ended = workplace.run()

    # At the start, with what is kept of an earlier run, and once more at the end.
    assert writes[:3] == [0, 1, 2]
    assert writes[-1] == 8
    assert len(writes) < 10
    assert len(ended.report.series) == 8


@pytest.mark.parametrize("content", [None, "{}", "["])
def test_without_a_usable_report_a_mask_that_is_there_is_kept_aside(finished, content):
    path = mask_path(finished, CASES[0])
    corrected = correct(path)
    report = finished.output / "run_report.json"
    report.unlink()
    if content is not None:
        report.write_text(content)

    finished.run(resume=True)

    kept = [one.read_bytes() for one in path.parent.glob("*.replaced-*")]
    assert kept == [corrected]
    assert_valid_mask(path, finished.input / CASES[0] / "GED4.nii.gz")
