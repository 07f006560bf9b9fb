"""Scans degraded on purpose, and the fit of the estimated Dice."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import bright_tissue_model
from tiny_scans import SPACING_ZYX_MM, abdomen, write_scan
from tiny_training import write_labelled_case

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode, UsageError
from sslmedsam2.inference.confidence import Evidence, expit, read_calibration
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.train.calibration import Observation, add_calibration, fit, patients_left_out
from sslmedsam2.train.degradation import DEGRADATIONS, ORIGINAL, Scan, degraded
from sslmedsam2.weights.freeze import freeze_model
from sslmedsam2.weights.locate import locate_models
from sslmedsam2.weights.manifest import ModelCard

N_PATIENTS = 120


def observations(
    *, n_patients=N_PATIENTS, noise=0.3, noise_of_cut=0.0, noise_of_patient=0.0, seed=0
):
    """Return six predictions a patient whose Dice follows the expected one, but for noise."""
    random = np.random.default_rng(seed)
    found = []
    for patient in range(n_patients):
        of_patient = random.normal(0, noise_of_patient)
        for kind in range(6):
            logit = random.uniform(-1, 3.5)
            side = random.uniform(0, 0.1)
            evidence = Evidence(expit(logit), random.uniform(0.8, 1.0), side)
            error = of_patient + random.normal(0, noise + noise_of_cut * (side > 0.05))
            dice = expit(0.2 + 0.9 * logit + error)
            found.append(Observation(f"p{patient}", "T2", str(kind), evidence, dice))
    return found


@pytest.fixture(scope="module")
def fitted():
    return fit(observations())


def test_the_fit_ranks_unseen_patients_and_its_interval_holds_nine_of_ten(fitted):
    calibration = fitted
    assert calibration.spearman > 0.9
    assert 0.85 <= calibration.coverage <= 0.95
    unseen = observations(seed=1)
    estimates = [calibration.estimate(one.evidence) for one in unseen]
    inside = [
        e.interval[0] <= one.dice <= e.interval[1] for e, one in zip(estimates, unseen, strict=True)
    ]
    assert 0.84 <= np.mean(inside) <= 0.96


def test_interval_holds_new_patients_if_all_predictions_of_a_patient_err_alike():
    inside = []
    for seed in range(8):
        known, new = (
            observations(n_patients=n, noise=0.1, noise_of_patient=0.5, seed=k)
            for n, k in ((10, seed), (40, 100 + seed))
        )
        calibration = fit(known)
        for one in new:
            low, high = calibration.estimate(one.evidence).interval
            inside.append(low <= one.dice <= high)
    assert np.mean(inside) > 0.85


def test_noisier_predictions_have_wider_intervals():
    evidence = Evidence(0.9, 1.0, 0.0)
    narrow, wide = (
        fit(observations(n_patients=15, noise=noise)).estimate(evidence) for noise in (0.1, 0.6)
    )
    assert np.diff(wide.interval) > 2 * np.diff(narrow.interval)


def test_masks_at_the_border_of_the_scan_have_wider_intervals_if_they_are_worse_known():
    whole, cut = Evidence(0.9, 1.0, 0.0), Evidence(0.9, 1.0, 0.1)
    widths = {}
    for noise_of_cut in (0.0, 1.0):
        calibration = fit(observations(noise=0.1, noise_of_cut=noise_of_cut))
        intervals = [calibration.estimate(one).interval for one in (whole, cut)]
        widths[noise_of_cut] = [high - low for low, high in intervals]
    assert widths[1.0][1] > 2 * widths[1.0][0]
    assert widths[0.0][1] == pytest.approx(widths[0.0][0], rel=0.5)


def test_more_doubt_never_raises_the_estimate():
    # Dropped components and cut-off masks go with a better Dice here, which is chance.
    misleading = [
        replace(one, evidence=replace(one.evidence, kept_share=1 - one.dice, side_share=one.dice))
        for one in observations(n_patients=15)
    ]
    calibration = fit(misleading)
    expected, kept, side = calibration.weights
    assert expected > 0
    assert kept >= 0
    assert side <= 0
    assert calibration.side_spread >= 0


def test_patients_are_left_out_whole():
    found = observations(n_patients=10)
    spoilt = [replace(one, dice=0.02) if one.patient == "p0" else one for one in found]
    before, after = (patients_left_out(one)[0] for one in (found, spoilt))
    of_first = np.array([one.patient == "p0" for one in found])
    assert before[of_first] == pytest.approx(after[of_first], abs=1e-9)


def test_too_few_patients_are_refused():
    with pytest.raises(UsageError, match="7 labelled patient"):
        fit(observations(n_patients=7))


def scan():
    array, liver = abdomen()
    return Scan(array, liver > 0, SPACING_ZYX_MM)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_a_degraded_copy_is_another_image_on_the_grid_of_its_mask(kind):
    original = scan()
    before = original.array_zyx.copy()
    copy = degraded(original, kind=kind, seed="a")
    again = degraded(original, kind=kind, seed="a")
    assert copy.array_zyx.shape == copy.liver_zyx.shape
    assert copy.array_zyx.dtype == np.float32
    assert np.isfinite(copy.array_zyx).all()
    assert (original.array_zyx == before).all()
    assert copy.array_zyx.shape != before.shape or not np.array_equal(copy.array_zyx, before)
    assert np.array_equal(copy.array_zyx, again.array_zyx)
    assert degraded(original, kind=ORIGINAL, seed="a") is original


def test_a_coarse_copy_covers_the_same_volume():
    original, copy = scan(), degraded(scan(), kind="coarse", seed="a")
    millilitres = [one.liver_zyx.sum() * np.prod(one.spacing_zyx_mm) for one in (original, copy)]
    assert millilitres[1] == pytest.approx(millilitres[0], rel=0.1)


@pytest.fixture
def frozen(tmp_path):
    training = bright_tissue_model(tmp_path / "training")
    card = ModelCard("phantoms", "none", "none", "2026-11-28")
    freeze_model(training, tmp_path / "weights", name="liver", sequences=("*",), card=card)
    return tmp_path / "weights"


def test_a_calibration_joins_the_manifest_and_is_used(frozen, fitted):
    add_calibration(frozen / "liver", fitted, folds=("0",))
    [model] = locate_models(frozen)
    assert "confidence.json" in {entry.path for entry in model.files}
    found = read_calibration(read_model_spec(frozen / "liver"))
    assert found.weights == fitted.weights
    add_calibration(frozen / "liver", fitted, folds=("0",))
    assert locate_models(frozen)


def test_freezing_the_same_weights_again_keeps_their_calibration(frozen, fitted, tmp_path):
    add_calibration(frozen / "liver", fitted, folds=("0",))
    card = ModelCard("phantoms", "none", "none", "2026-11-28")

    freeze_model(tmp_path / "training", frozen, name="liver", sequences=("*",), card=card)

    assert sorted(path.name for path in frozen.iterdir()) == ["liver", "manifest.json"]
    assert read_calibration(read_model_spec(frozen / "liver")) is not None
    assert locate_models(frozen)


def test_the_command_calibrates_a_model_and_keeps_whether_it_looks_twice(
    frozen, fitted, tmp_path, capsys
):
    add_calibration(frozen / "liver", replace(fitted, sure_from=0.965), folds=("0",))
    for number in range(8):
        write_labelled_case(tmp_path / f"labelled/{number:04}-A", seed=number)
    call = ["weights", "calibrate", "--model", str(frozen), "--device", "cpu"]

    assert main([*call, "--labelled", str(tmp_path / "labelled")]) == ExitCode.OK

    assert "of 8 patients: Spearman" in capsys.readouterr().out
    found = read_calibration(read_model_spec(frozen / "liver"))
    assert found.weights != fitted.weights
    assert found.sure_from == 0.965


def test_masks_of_several_organs_are_calibrated_with_the_label_of_the_liver(
    frozen, tmp_path, capsys
):
    for number in range(8):
        case = write_labelled_case(tmp_path / f"labelled/{number:04}-A", seed=number)
        liver = abdomen(seed=number)[1]
        organs = np.where(liver > 0, 6, np.flip(liver, axis=2) * 2)
        write_scan(case.mask, organs, dtype=np.uint8)
    call = ["weights", "calibrate", "--model", str(frozen), "--device", "cpu"]
    call += ["--labelled", str(tmp_path / "labelled")]

    assert main(call) != ExitCode.OK
    assert "--label" in capsys.readouterr().err
    assert main([*call, "--label", "6"]) == ExitCode.OK
