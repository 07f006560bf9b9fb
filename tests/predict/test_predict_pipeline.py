"""``predict`` from end to end on sound inputs, and what it refuses as a whole."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tiny_scans
from held_locks import held_elsewhere
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from predict_samples import assert_valid_mask, liver_dice
from tiny_models import bright_tissue_model

from sslmedsam2.errors import ExitCode, ModelError, NoInputError, OutputError, UsageError
from sslmedsam2.imaging.orientation import apply_reorientation, reorientation_of
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.inference.confidence import FEATURES
from sslmedsam2.inference.openvino_backend import bfloat16_is_native
from sslmedsam2.inference.segmenter import CanonicalSegmenter
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.predict.series import MAP_KINDS
from sslmedsam2.reporting.run_report import SeriesStatus
from sslmedsam2.submission.validate import validate
from sslmedsam2.weights.freeze import freeze_model
from sslmedsam2.weights.manifest import ModelCard

CASE = "Vendor-A/0001-A/GED4.nii.gz"


def test_studies_become_masks_and_a_report_in_the_contracts_places(workplace):
    workplace.add("Vendor-A/0001-A/GED4.nii.gz")
    workplace.add("Vendor-A/0001-A/T2WI.nii.gz", dtype=np.float32)
    workplace.add("LiQA/Data/Vendor_B1/1053-B1/GED4.nii.gz")

    ended = workplace.run()

    assert ended.exit_code == ExitCode.OK
    assert workplace.written() == {
        "liver_volumes.csv",
        "run_report.json",
        "LiSeg_pred/0001-A/GED4_pred.nii.gz",
        "LiSeg_pred/0001-A/T2_pred.nii.gz",
        "LiSeg_pred/1053-B1/GED4_pred.nii.gz",
    }
    for result in ended.report.series:
        assert_valid_mask(workplace.mask_of(result), workplace.input / result.input_path)
        assert liver_dice(workplace.mask_of(result)) > 0.85
    assert validate(input_path=workplace.input, output_dir=workplace.output).failures == 0


@pytest.mark.slow
def test_without_a_gpu_torch_is_not_even_loaded_to_choose_the_device(workplace):
    workplace.add(CASE)
    script = """
import sys
from sslmedsam2.cli.main import main
from sslmedsam2.inference.device import has_cuda_driver
try:
    main()
finally:
    print("torch" in sys.modules and not has_cuda_driver())
"""
    command = [sys.executable, "-c", script, "predict", "--device", "auto"]
    command += ["--input", str(workplace.input), "--output", str(workplace.output)]
    command += ["--model", str(workplace.model)]

    ended = subprocess.run(command, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "False"


def test_the_report_says_what_was_done(workplace):
    workplace.add(CASE)

    ended = workplace.run(mode="fast")

    report, result = ended.report, ended.of("0001-A", "GED4")
    assert report.backend == f"openvino {'bf16' if bfloat16_is_native() else 'fp32'}"
    assert report.device == "cpu"
    assert report.options["mode"] == "fast"
    assert report.finished is not None
    assert report.versions["openvino"]
    [model] = report.models
    assert set(model.sha256) == {"dataset.json", "plans.json", "fold_0/checkpoint_final.pth"}
    assert result.vendor == "A"
    assert result.status is SeriesStatus.OK
    assert set(result.seconds) == {"read", "prepare", "network", "finish", "write"}
    voxel_ml = np.prod(tiny_scans.SPACING_ZYX_MM) / 1000
    mask = read_mask(workplace.mask_of(result)).array_zyx
    assert result.liver_volume_ml == pytest.approx(mask.sum() * voxel_ml, abs=0.1)
    assert result.components == 2
    assert result.touches_border is False
    assert 0.5 < result.mean_foreground_confidence < 1
    assert result.peak_memory_mb > 50
    assert result.geometry.native_shape == (80, 70, 26)
    assert str(workplace.root) not in (workplace.output / "run_report.json").read_text()


def volume_rows(workplace):
    with (workplace.output / "liver_volumes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_holds_the_volume_of_each_written_mask(workplace):
    workplace.add(CASE)
    workplace.add("Vendor-A/0002-A/T1.nii.gz")

    ended = workplace.run()

    rows = volume_rows(workplace)
    assert [row["case"] for row in rows] == ["0001-A", "0002-A"]
    for row, result in zip(rows, ended.report.series, strict=True):
        mask = read_mask(workplace.mask_of(result))
        volume_ml = mask.array_zyx.sum() * np.prod(mask.geometry.spacing_zyx_mm) / 1000
        assert float(row["volume_ml"]) == pytest.approx(volume_ml, abs=0.051)


def test_statistics_are_of_the_scan_inside_its_mask(workplace):
    scan = workplace.add(CASE)

    ended = workplace.run(statistics=True)

    result = ended.of("0001-A")
    inside = nib.load(scan).get_fdata()[nib.load(workplace.mask_of(result)).get_fdata() > 0]
    assert result.intensity["mean"] == pytest.approx(inside.mean(), rel=1e-4)
    assert result.intensity["sd"] == pytest.approx(inside.std(), rel=1e-4)
    assert result.intensity["p95"] == pytest.approx(np.percentile(inside, 95), rel=1e-4)
    assert float(volume_rows(workplace)[0]["intensity_p50"]) == result.intensity["p50"]


def test_statistics_of_a_kept_mask_are_added(workplace):
    workplace.add(CASE)
    assert workplace.run().of("0001-A").intensity is None

    kept = workplace.run(resume=True, statistics=True).of("0001-A")

    assert kept.status is SeriesStatus.SKIPPED_RESUME
    assert kept.intensity["mean"] > 0


def calibrated(model, folder, *, intercept):
    """Copy a model and give it a calibration of its weights."""
    shutil.copytree(model, folder)
    checkpoint = "fold_0/checkpoint_final.pth"
    record = {
        "checkpoints": {checkpoint: sha256_file(folder / checkpoint)},
        "features": FEATURES,
        "intercept": intercept,
        "weights": [1.0, 0.0, 0.0],
        "spread": [0.0, 0.0],
        "fitted_range": [-5.0, 5.0],
        "offsets": [-0.5, 0.5],
        "volumes": 100,
        "patients": 20,
        "spearman": 0.8,
        "coverage": 0.9,
    }
    (folder / "confidence.json").write_text(json.dumps(record))
    return folder


def test_a_calibrated_model_gives_an_estimated_dice_with_its_interval(workplace, tmp_path):
    workplace.add(CASE)
    model = calibrated(workplace.model, tmp_path / "sure", intercept=4.0)

    result = workplace.run(model_dir=model).of("0001-A")

    low, high = result.estimated_dice_interval
    assert 0.5 < low < result.estimated_dice < high < 1
    assert (result.status, result.verdict) == (SeriesStatus.OK, "ok")
    [row] = volume_rows(workplace)
    assert float(row["estimated_dice"]) == result.estimated_dice
    assert (float(row["estimated_dice_low"]), float(row["estimated_dice_high"])) == (low, high)
    x, y, z = result.most_doubtful_lps_mm
    mask = nib.load(workplace.mask_of(result))
    inside = nib.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0))
    assert np.linalg.norm(inside - (-x, -y, z), axis=1).min() < 40


def test_a_low_estimate_asks_for_a_look_at_the_mask(workplace, tmp_path):
    workplace.add(CASE)
    model = calibrated(workplace.model, tmp_path / "unsure", intercept=-3.0)

    result = workplace.run(model_dir=model).of("0001-A")

    assert result.estimated_dice < 0.8
    assert (result.status, result.verdict) == (SeriesStatus.CHECK, "check")
    assert "low_estimate" in result.flags


def test_without_a_calibration_the_estimate_is_withheld(workplace):
    workplace.add(CASE)
    result = workplace.run().of("0001-A")
    assert (result.estimated_dice, result.estimated_dice_interval) == (None, None)
    assert result.verdict == "ok"
    assert (
        json.loads((workplace.output / "run_report.json").read_text())["series"][0][
            "estimated_dice"
        ]
        is None
    )


def test_maps_lie_on_the_grid_of_the_scan_and_are_made_again_if_missing(workplace):
    scan = nib.load(workplace.add(CASE))

    result = workplace.run(maps=True).of("0001-A")

    paths = [workplace.output / f"maps/{kind}_0001-A_GED4.nii.gz" for kind in MAP_KINDS]
    probability, uncertainty = (nib.load(path) for path in paths)
    assert np.array_equal(probability.affine, scan.affine)
    p, bits = probability.get_fdata(), uncertainty.get_fdata()
    mask = nib.load(workplace.mask_of(result)).get_fdata() > 0
    assert np.mean(p[mask] > 0.5) > 0.99
    assert 0 <= bits.min() < bits.max() <= 1
    assert bits[np.abs(p - 0.5) < 0.05].min() > 0.95
    paths[1].unlink()
    assert workplace.run(maps=True, resume=True).of("0001-A").status is SeriesStatus.OK
    assert paths[1].is_file()


def test_a_scan_that_fails_for_its_maps_leaves_no_mask(workplace):
    workplace.add(CASE)
    # In the way of the folder, as a full disk is.
    workplace.output.mkdir()
    (workplace.output / "maps").write_bytes(b"")

    ended = workplace.run(maps=True)

    assert ended.of("0001-A").status is SeriesStatus.FAILED
    assert workplace.written() == {"maps", "run_report.json", "liver_volumes.csv"}


def test_previews_are_drawn_unless_not_wanted(workplace):
    workplace.add(CASE)

    ended = workplace.run(previews=True)

    assert ended.of("0001-A").preview_path == "previews/0001-A_GED4.png"
    preview = workplace.output / "previews" / "0001-A_GED4.png"
    assert preview.read_bytes().startswith(b"\x89PNG")
    assert len(workplace.written()) == 4


def test_a_preview_that_cannot_be_written_costs_no_mask_and_is_reported(workplace, caplog):
    workplace.add(CASE)
    (workplace.output).mkdir()
    (workplace.output / "previews").write_text("in the way")

    # A run that does not resume moves away what is there.
    ended = workplace.run(previews=True, resume=True)

    result = ended.of("0001-A")
    assert result.status is SeriesStatus.OK
    assert any(note.startswith("no_preview:") for note in result.warnings)
    reported = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert any("previews" in line and "cannot be written" in line for line in reported)
    assert_valid_mask(workplace.mask_of(result), workplace.input / CASE)


def test_only_the_sequences_asked_for_are_predicted(workplace):
    for name in ("GED4", "T1", "GED1"):
        workplace.add(f"0001-A/{name}.nii.gz")

    assert {result.sequence for result in workplace.run().report.series} == {"GED4", "T1"}
    chosen = workplace.run(sequences=("T1", "GED1")).report
    assert {result.sequence for result in chosen.series} == {"T1", "GED1"}
    [left_out] = chosen.left_out
    assert (left_out.case, left_out.sequence) == ("0001-A", "GED4")


def test_a_picture_that_is_left_out_is_a_case_by_its_own_name(workplace):
    workplace.add("anna.nii.gz")
    (workplace.input / "emil.png").write_bytes(b"\x89PNG")

    [left_out] = workplace.run().report.left_out

    assert (left_out.case, left_out.input_path) == ("emil", "emil.png")


def test_a_single_volume_is_enough(workplace):
    path = workplace.add("somewhere/scan.nii.gz")

    ended = workplace.run(input_path=path)

    assert ended.exit_code == ExitCode.OK
    assert ended.of("scan").input_path == "scan.nii.gz"
    assert workplace.written() == {"run_report.json", "liver_volumes.csv", "scan_liver.nii.gz"}


def test_a_flat_folder_of_several_formats_works(workplace):
    workplace.add("one.nii")
    array, _ = tiny_scans.abdomen()
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(tiny_scans.SPACING_ZYX_MM[::-1])
    for name in ("two.mha", "three.nrrd"):
        sitk.WriteImage(image, str(workplace.input / name))

    ended = workplace.run()

    assert ended.exit_code == ExitCode.OK
    assert workplace.written() == {
        "liver_volumes.csv",
        "run_report.json",
        *(f"{stem}_liver.nii.gz" for stem in ("one", "two", "three")),
    }
    for result in ended.report.series:
        assert_valid_mask(workplace.mask_of(result), workplace.input / result.input_path)
        assert liver_dice(workplace.mask_of(result)) > 0.85


def test_a_trailing_axis_of_one_is_kept(workplace):
    path = workplace.add(CASE, trailing_axis=True)

    ended = workplace.run()

    mask = workplace.mask_of(ended.of("0001-A"))
    assert nib.load(mask).shape == nib.load(path).shape == (80, 70, 26, 1)
    assert_valid_mask(mask, path)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint16])
def test_masks_take_the_images_voxel_type_on_request(workplace, dtype):
    path = workplace.add(CASE, dtype=dtype)

    ended = workplace.run(mask_dtype="input")

    mask = nib.load(workplace.mask_of(ended.of("0001-A")))
    assert mask.get_data_dtype() == nib.load(path).get_data_dtype() == dtype
    assert set(np.unique(mask.dataobj)) == {0, 1}


def test_a_ct_is_windowed_and_says_so(workplace):
    array, _ = tiny_scans.abdomen()
    hounsfield = np.where(array < 60, -1000, array - 100)
    # Fat below the skin, which every CT shows.
    hounsfield[:, :16] = np.where(hounsfield[:, :16] > -1000, -100, -1000)
    workplace.add(CASE, array_zyx=hounsfield)

    result = workplace.run().of("0001-A")

    # Fat and noise are liver to this network, so that its mask is one to check.
    assert result.status is SeriesStatus.CHECK
    assert_valid_mask(workplace.mask_of(result), workplace.input / CASE)
    assert any(note.startswith("hounsfield_window") for note in result.warnings)


def oblique(affine):
    """Turn the patient by 15 degrees about z and 10 about x."""
    a, b = np.radians([15, 10])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn = np.eye(4)
    turn[:3, :3] = about_x @ about_z
    return turn @ affine


def reoriented(image, codes):
    """Store an image's voxels in another order of axes, the patient staying in place."""
    target = axcodes2ornt(tuple(codes))
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), target))


def canonical_masks(workplace, ended):
    """Return each case's mask, checked against its image, in the canonical orientation."""
    masks = {}
    for result in ended.report.series:
        path = workplace.mask_of(result)
        assert_valid_mask(path, workplace.input / result.input_path)
        mask = read_mask(path)
        turn = reorientation_of(mask.geometry)
        masks[result.case] = apply_reorientation(mask.array_zyx, turn)
    return masks


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_mask_does_not_depend_on_how_the_scan_is_stored(workplace, mode):
    original = nib.load(workplace.add("LPS.nii.gz"))
    for codes in ("LAS", "RAS", "RPI", "SAL", "PIR"):
        nib.save(reoriented(original, codes), workplace.input / f"{codes}.nii.gz")
    tilted = nib.Nifti1Image(original.dataobj, oblique(original.affine))
    nib.save(tilted, workplace.input / "oblique.nii.gz")
    nib.save(reoriented(tilted, "ASR"), workplace.input / "oblique_permuted.nii.gz")

    ended = workplace.run(mode=mode)

    assert ended.exit_code == ExitCode.OK
    canonical = canonical_masks(workplace, ended)
    assert len(canonical) == 8
    for case, mask in canonical.items():
        np.testing.assert_array_equal(mask, canonical["LPS"], err_msg=case)
    left_handed = {r.case: r.geometry.left_handed for r in ended.report.series}
    assert left_handed["LAS"] is not left_handed["RAS"]


def test_a_guess_for_damaged_voxels_lies_at_the_patients_right_however_stored(workplace):
    original = nib.load(workplace.add("LPS.nii.gz"))
    for codes in ("LAS", "RAS", "SAL"):
        nib.save(reoriented(original, codes), workplace.input / f"{codes}.nii.gz")
    for path in workplace.input.iterdir():
        path.write_bytes(path.read_bytes()[:-500])

    ended = workplace.run(on_failure="fallback")

    assert ended.report.counts["fallback"] == 4
    canonical = canonical_masks(workplace, ended)
    _, _, x = np.nonzero(canonical["LPS"])
    assert x.mean() < 0.4 * canonical["LPS"].shape[2]
    for case, mask in canonical.items():
        np.testing.assert_array_equal(mask, canonical["LPS"], err_msg=case)


@pytest.fixture
def hopeless_model(tmp_path):
    """A model that finds no liver anywhere."""
    return bright_tissue_model(tmp_path / "hopeless", threshold=50.0)


def test_an_empty_prediction_becomes_the_likeliest_region_and_is_flagged(workplace, hopeless_model):
    path = workplace.add(CASE)

    ended = workplace.run(model_dir=hopeless_model, previews=True, on_failure="fallback")

    result = ended.of("0001-A")
    assert ended.exit_code == ExitCode.SOME_CASES_FAILED
    assert result.status is SeriesStatus.FALLBACK
    assert "found no liver" in result.error
    assert result.mean_foreground_confidence is None
    assert_valid_mask(workplace.mask_of(result), path)
    _, liver = tiny_scans.abdomen()
    guess = read_mask(workplace.mask_of(result)).array_zyx
    assert (guess & liver).sum() > 0.9 * guess.sum()
    assert "previews/0001-A_GED4.png" in workplace.written()


def test_no_liver_is_made_up_outside_the_container_unless_asked_for(workplace, hopeless_model):
    workplace.add(CASE)
    (workplace.input / "0002-A").mkdir()
    (workplace.input / "0002-A/GED4.nii.gz").write_bytes(
        (workplace.input / CASE).read_bytes()[:-99]
    )

    ended = workplace.run(model_dir=hopeless_model)

    assert ended.of("0001-A").status is SeriesStatus.EMPTY
    assert ended.of("0002-A").status is SeriesStatus.FAILED
    assert workplace.written() == {"run_report.json", "liver_volumes.csv"}


def test_an_empty_prediction_is_a_status_of_its_own_where_no_fallback_is_wanted(
    workplace, hopeless_model
):
    workplace.add(CASE)

    ended = workplace.run(model_dir=hopeless_model, on_failure="skip")

    assert ended.exit_code == ExitCode.SOME_CASES_FAILED
    assert ended.of("0001-A").status is SeriesStatus.EMPTY
    assert workplace.written() == {"run_report.json", "liver_volumes.csv"}


def test_a_network_without_any_preference_leads_to_the_typical_liver(workplace, monkeypatch):
    path = workplace.add(CASE)
    monkeypatch.setattr(
        CanonicalSegmenter, "_margin", lambda _self, prepared: np.full_like(prepared, -3.0)
    )

    ended = workplace.run(on_failure="fallback")

    result = ended.of("0001-A")
    assert result.status is SeriesStatus.FALLBACK
    assert "typical place and size" in result.error
    assert_valid_mask(workplace.mask_of(result), path)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("prepare", ValueError("odd")),
        ("infer", RuntimeError("a tensor\nof two lines")),
        ("finish", MemoryError()),
    ],
)
def test_a_failure_around_the_network_stays_with_its_series(workplace, monkeypatch, error, step):
    for case in ("0001-A", "0002-A", "0003-A"):
        workplace.add(f"{case}/GED4.nii.gz")
    whole, calls = getattr(CanonicalSegmenter, step), []

    def failing_second(self, given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise error
        return whole(self, given, **options)

    monkeypatch.setattr(CanonicalSegmenter, step, failing_second)

    ended = workplace.run(on_failure="fallback")

    statuses = [ended.of(f"000{n}-A").status for n in (1, 2, 3)]
    assert statuses == [SeriesStatus.OK, SeriesStatus.FALLBACK, SeriesStatus.OK]
    assert type(error).__name__ in ended.of("0002-A").error
    assert "\n" not in ended.of("0002-A").error
    assert ended.exit_code == ExitCode.SOME_CASES_FAILED
    for number in (1, 2, 3):
        name = f"000{number}-A"
        assert_valid_mask(workplace.mask_of(ended.of(name)), workplace.input / name / "GED4.nii.gz")


def test_a_volume_is_prepared_and_another_finished_while_the_network_works(workplace, monkeypatch):
    for case in ("0001-A", "0002-A", "0003-A"):
        workplace.add(f"{case}/GED4.nii.gz")
    threads = {"prepare": set(), "infer": set(), "finish": set()}

    def noting(step, whole):
        def noted(self, given, **options):
            threads[step].add(threading.current_thread())
            return whole(self, given, **options)

        return noted

    for step in threads:
        monkeypatch.setattr(
            CanonicalSegmenter, step, noting(step, getattr(CanonicalSegmenter, step))
        )

    workplace.run()

    assert threads["infer"] == {threading.current_thread()}
    assert not threads["infer"] & (threads["prepare"] | threads["finish"])
    assert not threads["prepare"] & threads["finish"]


def test_a_mask_that_cannot_be_written_stays_with_its_series(workplace):
    for case in ("0001-A", "0002-A"):
        workplace.add(f"{case}/GED4.nii.gz")
    (workplace.output / "LiSeg_pred").mkdir(parents=True)
    (workplace.output / "LiSeg_pred" / "0001-A").write_text("in the way")

    # A run that does not resume moves away what is there.
    ended = workplace.run(resume=True)

    assert ended.of("0001-A").status is SeriesStatus.FAILED
    assert "cannot be written" in ended.of("0001-A").error
    assert ended.of("0002-A").status is SeriesStatus.OK
    assert ended.exit_code == ExitCode.SOME_CASES_FAILED


def test_of_cases_that_share_a_name_neither_is_written(workplace):
    for vendor in ("Vendor_A", "Vendor_B1"):
        workplace.add(f"{vendor}/1053/GED4.nii.gz")
    workplace.add("Vendor_C/0007-C/GED4.nii.gz")

    ended = workplace.run()

    clashes = [result for result in ended.report.series if result.case == "1053"]
    assert [result.input_path for result in clashes] == ["Vendor_A/1053", "Vendor_B1/1053"]
    assert all(result.status is SeriesStatus.FAILED for result in clashes)
    assert all("neither is processed" in result.error for result in clashes)
    assert workplace.written() == {
        "run_report.json",
        "liver_volumes.csv",
        "LiSeg_pred/0007-C/GED4_pred.nii.gz",
    }
    assert ended.exit_code == ExitCode.SOME_CASES_FAILED


def test_two_undecided_sequences_of_one_case_are_both_reported(workplace):
    workplace.add("0001-A/GED4.nii.gz")
    for name in ("T1.nii", "T1.nii.gz", "T2.nii", "T2.nii.gz"):
        workplace.add(f"0001-A/{name}")

    ended = workplace.run()

    failed = [result for result in ended.report.series if result.status is SeriesStatus.FAILED]
    assert [result.sequence for result in failed] == ["T1.nii", "T2.nii"]
    assert ended.of("0001-A", "GED4").status is SeriesStatus.OK


def test_each_result_is_reported_as_it_comes(workplace):
    for case in ("0001-A", "0002-A"):
        workplace.add(f"{case}/GED4.nii.gz")
    (workplace.input / "0003-A").mkdir()
    reported = []

    predict(
        PredictOptions(workplace.input, workplace.output, model_dir=workplace.model, device="cpu"),
        on_result=lambda result, done, total: reported.append((result.case, done, total)),
    )

    assert reported == [("0003-A", 1, 3), ("0001-A", 2, 3), ("0002-A", 3, 3)]


def test_without_input_the_run_ends_with_3(workplace):
    with pytest.raises(NoInputError, match="does not exist"):
        predict(PredictOptions(workplace.root / "nowhere", workplace.output))
    assert not workplace.output.exists()

    ended = workplace.run()
    assert isinstance(ended.error, NoInputError)
    assert ended.exit_code == ended.report.exit_code == ExitCode.NO_VALID_INPUT


def test_without_model_nothing_is_written(workplace):
    workplace.add(CASE)

    with pytest.raises(ModelError):
        predict(
            PredictOptions(workplace.input, workplace.output, model_dir=workplace.root / "none")
        )

    assert not workplace.output.exists()


def frozen(workplace, *names):
    """Freeze the test model under one or more names, each for a sequence of its own."""
    weights = workplace.root / "weights"
    for name, sequence in names:
        freeze_model(
            workplace.model, weights, name=name, sequences=(sequence,),
            card=ModelCard("numbers", "none", "Apache-2.0", "2026-01-31"),
        )  # fmt: skip
    return weights


@pytest.mark.parametrize("file", ["plans.json", "fold_0/checkpoint_final.pth"])
def test_a_model_with_one_altered_byte_is_refused_before_anything_is_written(workplace, file):
    workplace.add(CASE)
    weights = frozen(workplace, ("liver", "*"))
    content = bytearray((weights / "liver" / file).read_bytes())
    content[len(content) // 2] ^= 1
    (weights / "liver" / file).write_bytes(content)

    with pytest.raises(ModelError, match="altered") as caught:
        predict(PredictOptions(workplace.input, workplace.output, model_dir=weights))

    assert caught.value.exit_code == ExitCode.MODEL_INVALID
    assert not workplace.output.exists()


def test_each_sequence_is_served_by_its_own_model(workplace):
    workplace.add("0001-A/GED4.nii.gz")
    workplace.add("0001-A/T2.nii.gz")
    weights = frozen(workplace, ("for_t2", "T2"), ("for_the_rest", "*"))

    ended = workplace.run(model_dir=weights)

    assert {model.name for model in ended.report.models} == {"for_t2", "for_the_rest"}
    assert ended.exit_code == ExitCode.OK
    assert len(ended.report.series) == 2


def test_a_series_that_no_model_serves_is_reported_as_left_out(workplace):
    workplace.add("0001-A/GED4.nii.gz")
    workplace.add("0001-A/T2.nii.gz")
    weights = frozen(workplace, ("for_t2", "T2"))

    ended = workplace.run(model_dir=weights)

    assert ended.exit_code == ExitCode.OK
    assert [result.sequence for result in ended.report.series] == ["T2"]
    [left_out] = ended.report.left_out
    assert (left_out.case, left_out.sequence) == ("0001-A", "GED4")
    assert left_out.input_path == "0001-A/GED4.nii.gz"
    assert left_out.reason == "no model serves this sequence (served: T2)"


def test_where_no_model_serves_anything_the_run_says_so(workplace):
    workplace.add("0001-A/GED4.nii.gz")

    ended = workplace.run(model_dir=frozen(workplace, ("for_t2", "T2")))

    assert ended.exit_code == ended.report.exit_code == ExitCode.NO_VALID_INPUT
    assert "0001-A GED4: no model serves this sequence" in str(ended.error)
    assert len(ended.report.left_out) == 1


def test_a_second_model_that_is_broken_ends_the_run_before_it_begins(workplace):
    workplace.add("0001-A/GED4.nii.gz")
    workplace.add("0001-A/T2.nii.gz")
    weights = frozen(workplace, ("for_t2", "T2"))
    # Frozen as it is, hashes and all: only loading it shows that it is of another kind.
    plans = json.loads((workplace.model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoSuchScheme"]
    plans["configurations"]["3d_fullres"]["resampling_fn_data"] = "no_such_function"
    broken = bright_tissue_model(workplace.root / "broken")
    (broken / "plans.json").write_text(json.dumps(plans))
    freeze_model(
        broken, weights, name="odd", sequences=("*",),
        card=ModelCard("numbers", "none", "Apache-2.0", "2026-01-31"),
    )  # fmt: skip

    with pytest.raises(ModelError, match="no_such_function"):
        predict(PredictOptions(workplace.input, workplace.output, model_dir=weights))

    assert not workplace.output.exists()


def test_an_output_folder_that_is_a_file_is_a_clear_error(workplace):
    workplace.add(CASE)
    workplace.output.write_text("in the way")

    with pytest.raises(OutputError, match="A part of the path is a file"):
        predict(PredictOptions(workplace.input, workplace.output, model_dir=workplace.model))

    assert workplace.output.read_text() == "in the way"


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs Unix users")
def test_an_output_folder_that_may_not_be_written_is_a_clear_error(workplace):
    workplace.add(CASE)
    workplace.output.mkdir()
    workplace.output.chmod(0o555)
    # Imports whatever a run needs, while the interpreter's own files can surely be read.
    workplace.run(output_dir=workplace.root / "elsewhere")
    is_root = os.geteuid() == 0
    if is_root:
        # Root may write anywhere; an ordinary user has to reach the folder all the same.
        for parent in (workplace.root, *workplace.root.parents[:3], workplace.model.parent):
            parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        with pytest.raises(OutputError, match="writable"):
            predict(PredictOptions(workplace.input, workplace.output, model_dir=workplace.model))
    finally:
        if is_root:
            os.seteuid(0)

    assert list(workplace.output.iterdir()) == []


def test_what_looks_like_no_liver_is_to_check_and_ends_with_0_unless_strict(workplace):
    workplace.add(CASE)
    noise = np.random.default_rng(1).normal(0, 100, (26, 70, 80))
    workplace.add("Vendor-A/0002-A/GED4.nii.gz", array_zyx=np.abs(noise))

    ended = workplace.run()

    assert ended.exit_code == ExitCode.OK
    assert ended.of("0001-A").status is SeriesStatus.OK
    odd = ended.of("0002-A")
    assert odd.status is SeriesStatus.CHECK
    assert odd.output_path is not None
    assert any(note.startswith("no_typical_liver: ") for note in odd.warnings)
    assert workplace.run(strict=True).exit_code == ExitCode.SOME_CASES_FAILED


def test_a_second_large_region_is_to_check(workplace):
    array, liver = tiny_scans.abdomen()
    array[:, :, 44:] += 100 * np.flip(liver, axis=2)[:, :, 44:]
    workplace.add(CASE)
    workplace.add("Vendor-A/0002-A/GED4.nii.gz", array_zyx=array)

    ended = workplace.run()

    assert ended.of("0001-A").status is SeriesStatus.OK
    assert not any(note.startswith("second_region: ") for note in ended.of("0001-A").warnings)
    double = ended.of("0002-A")
    assert any(note.startswith("second_region: ") for note in double.warnings)
    assert double.status is SeriesStatus.CHECK
    assert double.liver_volume_ml == pytest.approx(ended.of("0001-A").liver_volume_ml, rel=0.1)


def test_a_liver_of_no_usual_size_is_to_check_and_has_no_estimate(workplace):
    affine = tiny_scans.CANONICAL_AFFINE_RAS @ np.diag([1.5, 1.5, 3.0, 1.0])
    workplace.add(CASE, affine_ras=affine)

    [result] = workplace.run().report.series

    assert result.liver_volume_ml > 5000
    assert result.status is SeriesStatus.CHECK
    assert result.estimated_dice is None
    assert any(note.startswith("implausible_volume: ") for note in result.warnings)


def test_output_that_is_not_finite_names_the_case_and_the_patch(workplace, monkeypatch):
    workplace.add(CASE)
    workplace.add("Vendor-A/0002-A/GED4.nii.gz")
    network, calls = "sslmedsam2.inference.openvino_backend.OpenVinoMarginNetwork", []

    def broken(_self, patches):
        calls.append(1)
        return np.full_like(patches, np.nan if len(calls) == 1 else 1)

    monkeypatch.setattr(f"{network}.__call__", broken)
    ended = workplace.run(on_failure="skip")

    assert ended.exit_code == ExitCode.SOME_CASES_FAILED
    assert ended.of("0001-A", "GED4").error.startswith(f"{CASE}, patch [0 to ")
    assert "not finite" in ended.of("0001-A", "GED4").error
    assert ended.of("0002-A", "GED4").output_path is not None


def test_a_folder_that_another_run_writes_to_is_refused_and_left_alone(workplace):
    workplace.add(CASE)
    workplace.run()
    before = (workplace.output / "run_report.json").read_bytes()

    with held_elsewhere(workplace.output):
        refused = workplace.run()

    assert refused.exit_code == ExitCode.USAGE
    assert "another process is writing there" in str(refused.error)
    assert (workplace.output / "run_report.json").read_bytes() == before


def test_a_mask_is_never_written_over_a_scan(workplace):
    scan = workplace.add(CASE)
    before = scan.read_bytes()

    with pytest.raises(UsageError, match="over a scan"):
        predict(
            PredictOptions(
                scan, workplace.output, model_dir=workplace.model, device="cpu", mask_file=scan
            )
        )

    assert scan.read_bytes() == before


def test_a_persons_file_under_the_name_of_a_mask_is_moved_aside(workplace):
    workplace.add("scan.nii.gz")
    persons = workplace.output / "scan_liver.nii.gz"
    persons.parent.mkdir()
    persons.write_bytes(b"by hand")

    ended = workplace.run()

    assert ended.exit_code == ExitCode.OK
    assert read_mask(persons).array_zyx.any()
    (moved,) = workplace.output.glob("scan_liver.nii.gz.replaced-*")
    assert moved.read_bytes() == b"by hand"
