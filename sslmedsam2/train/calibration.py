"""Calibrate the estimated Dice of a model on scans with reference masks.

A network is good on scans like its training data, so degraded copies of each volume are observed
too: in another contrast, faint, blurred, noisy, cropped, unevenly bright, coarse. Fit and interval
are evaluated on left-out patients.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from sslmedsam2.contract import names
from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.sequence_map import NO_MAP, SequenceMap
from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.labelled import check_labelled
from sslmedsam2.imaging.records import sha256_file, write_record
from sslmedsam2.imaging.volume import CanonicalVolume, mask_dice
from sslmedsam2.inference.confidence import (
    FEATURES,
    Calibration,
    Evidence,
    expit,
    logit,
    read_calibration,
)
from sslmedsam2.inference.device import Device
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.nnunet.dataset import load_labelled
from sslmedsam2.nnunet.plans import LIVER
from sslmedsam2.train.degradation import DEGRADATIONS, ORIGINAL, Scan, degraded, random_of
from sslmedsam2.weights.locate import locate_models
from sslmedsam2.weights.manifest import MANIFEST_NAME, hash_model, read_manifest, write_manifest
from sslmedsam2.weights.model_files import CONFIDENCE_FILE, checkpoint_file

logger = logging.getLogger(__name__)

N_DEGRADED: Final = 3
"""Number of degraded copies of each volume; their kinds follow from its name."""
LEAST_PATIENTS: Final = 8
COVERAGE: Final = 0.9
_RIDGE = 0.3
_LEAST_ERROR = 0.02
"""Error of a logit; smaller ones are chance."""

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Observation:
    """Evidence and true Dice of one prediction; ``kind`` is the degradation of the scan."""

    patient: str
    name: str
    kind: str
    evidence: Evidence
    dice: float


def observe(
    scan: Scan, *, patient: str, name: str, segmenter: CanonicalSegmenter, n_degraded: int
) -> Iterator[Observation]:
    """Segment a scan and some degraded copies; predictions without a mask are left out."""
    order = [str(kind) for kind in random_of(patient + name).permutation(list(DEGRADATIONS))]
    for kind in (ORIGINAL, *order[:n_degraded]):
        copy = degraded(scan, kind=kind, seed=f"{patient}/{name}/{kind}")
        found = segmenter.segment(CanonicalVolume(copy.array_zyx, copy.spacing_zyx_mm))
        if found.evidence is not None:
            dice = mask_dice(found.mask_zyx > 0, copy.liver_zyx)
            yield Observation(patient, name, kind, found.evidence, dice)


def observe_images(
    images: Iterable[ImageFile], *, segmenter: CanonicalSegmenter
) -> list[Observation]:
    """Observe labelled images; raises InputError and ModelError."""
    found: list[Observation] = []
    for image in images:
        truth = load_labelled(image)
        scan = Scan(truth.image_zyx, truth.labels_zyx == LIVER, truth.spacing_zyx_mm)
        name = image.sequence_or_volume
        found += observe(
            scan, patient=image.case, name=name, segmenter=segmenter, n_degraded=N_DEGRADED
        )
        logger.info("calibration: %s %s", image.case, name)
    return found


def calibrate_model(
    model: Path,
    labelled_dir: Path,
    *,
    device: Device,
    label: int | None = None,
    sequence_map: SequenceMap = NO_MAP,
) -> Calibration:
    """Calibrate the only model of a folder on labelled scans, and write ``confidence.json``.

    ``sure_from`` of its present calibration is kept. ``label`` is the value of the liver in masks
    of several values.

    Raises UsageError: there are several models, or fewer than `LEAST_PATIENTS` patients;
    InputError, ModelError, OutputError: a scan, the model or the model's folder cannot be used.
    """
    located = locate_models(model, hash_weights=False)
    if len(located) != 1:
        raise UsageError(
            model, reason=f"it holds {len(located)} models", remedy="Give the folder of one of them"
        )
    images = find_labelled_series(labelled_dir, label=label, sequence_map=sequence_map)
    _check_patients({names.identity_key(image.case) for image in images})
    check_labelled(images)
    only = located[0]
    spec = read_model_spec(only.path, folds=only.folds, sha256=only.sha256)
    present = read_calibration(spec)
    sure_from = present.sure_from if present is not None else 0.0
    segmenter = CanonicalSegmenter(spec, EngineOptions(device=device, sure_from=sure_from))
    found = fit(observe_images(images, segmenter=segmenter), sure_from=sure_from)
    add_calibration(only.path, found, folds=only.folds)
    return found


def fit(observations: Sequence[Observation], *, sure_from: float = 0.0) -> Calibration:
    """Fit the estimate and its interval; the checkpoints of the calibration are not set.

    ``sure_from`` is the value with which the observations were made.

    Raises UsageError: there are fewer than `LEAST_PATIENTS` patients.
    """
    features, wanted, patients = _arrays(observations)
    n_patients = _check_patients(set(patients.tolist()))
    intercept, weights = _linear(features, wanted)
    left_out = _left_out(features, wanted, patients)
    side = _root_of_side(features)
    interval = _interval(left_out, wanted, side, n_patients=n_patients)
    return Calibration(
        checkpoints={},
        features=FEATURES,
        intercept=intercept,
        weights=tuple(float(weight) for weight in weights),
        spread=interval.spread,
        fitted_range=interval.fitted_range,
        offsets=interval.offsets,
        volumes=len(observations),
        patients=n_patients,
        spearman=round(float(stats.spearmanr(left_out, wanted)[0]), 3),
        coverage=round(float(_covered(left_out, wanted, side, patients).mean()), 3),
        sure_from=sure_from,
        side_spread=interval.side_spread,
    )


def fit_if_enough(
    observations: Sequence[Observation], *, sure_from: float = 0.0
) -> Calibration | None:
    """Call `fit`; return None, after a line in the log, if there are too few patients."""
    if len({one.patient for one in observations}) >= LEAST_PATIENTS:
        return fit(observations, sure_from=sure_from)
    logger.info(
        "fewer than %d patients are labelled: this model gives no estimated Dice", LEAST_PATIENTS
    )
    return None


def patients_left_out(observations: Sequence[Observation]) -> tuple[npt.NDArray[np.float64], Bool]:
    """Return the estimate of each observation, and whether its interval contains the true Dice.

    Both are fitted without the patient of the observation.
    """
    features, wanted, patients = _arrays(observations)
    left_out = _left_out(features, wanted, patients)
    estimates = np.array([expit(value) for value in left_out])
    return estimates, _covered(left_out, wanted, _root_of_side(features), patients)


def _arrays(observations: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, logits of the true Dice, and patients."""
    return (
        np.stack([one.evidence.features() for one in observations]),
        np.array([logit(one.dice) for one in observations]),
        np.array([one.patient for one in observations]),
    )


def _left_out(features: np.ndarray, wanted: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return for each observation the estimate of a fit to the other patients."""
    said = np.empty(len(wanted))
    for patient in set(patients.tolist()):
        held = patients == patient
        intercept, weights = _linear(features[~held], wanted[~held])
        said[held] = intercept + features[held] @ weights
    return said


def add_calibration(model_dir: Path, calibration: Calibration, *, folds: Sequence[str]) -> None:
    """Write ``confidence.json`` into a model folder, and list it in the manifest.

    Raises ModelError: the manifest cannot be used; OutputError: a file cannot be written.
    """
    names = [checkpoint_file(fold, model_dir) for fold in folds]
    hashes = {name: sha256_file(model_dir / name) for name in names}
    write_record(model_dir / CONFIDENCE_FILE, replace(calibration, checkpoints=hashes))
    path = model_dir.parent / MANIFEST_NAME
    manifest = read_manifest(path) if path.is_file() else None
    entry = manifest.entry(model_dir.name) if manifest else None
    if manifest is None or entry is None:
        return
    renewed = replace(entry, files=hash_model(model_dir, entry.folds))
    models = tuple(renewed if one is entry else one for one in manifest.models)
    write_manifest(replace(manifest, models=models), path)


def _check_patients(patients: Collection[str]) -> int:
    if len(patients) < LEAST_PATIENTS:
        raise UsageError(
            "calibration",
            reason=f"{len(patients)} labelled patient(s) are too few for an interval",
            remedy=f"Give at least {LEAST_PATIENTS}",
        )
    return len(patients)


def _linear(features: np.ndarray, wanted: np.ndarray) -> tuple[float, np.ndarray]:
    """Fit a robust ridge regression whose weights have given signs."""
    middle, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-3)
    scaled = np.column_stack([(features - middle) / spread, np.ones(len(wanted))])
    n = scaled.shape[1]
    low = np.array([0.0] * (n - 2) + [-np.inf, -np.inf])
    high = np.array([np.inf] * (n - 2) + [0.0, np.inf])
    penalty = np.sqrt(_RIDGE) * np.eye(n)
    penalty[-1] = 0
    trust = np.ones(len(wanted))
    for _ in range(5):
        rows = np.concatenate([scaled * trust[:, None], penalty])
        target = np.concatenate([wanted * trust, np.zeros(n)])
        solution = optimize.lsq_linear(rows, target, bounds=(low, high)).x
        residuals = np.abs(wanted - scaled @ solution)
        limit = 1.5 * max(float(np.median(residuals)) / 0.6745, 1e-3)
        trust = np.sqrt(np.minimum(1.0, limit / np.maximum(residuals, 1e-9)))
    weights = solution[:-1] / spread
    return float(solution[-1] - weights @ middle), weights


def _root_of_side(features: np.ndarray) -> np.ndarray:
    """Return the square root of `Evidence.side_share` of each observation."""
    root: np.ndarray = np.sqrt(features[:, FEATURES.index("side")])
    return root


@dataclass(frozen=True)
class _Interval:
    """The interval of a fitted logit; the fields are those of `Calibration`."""

    spread: tuple[float, float]
    side_spread: float
    fitted_range: tuple[float, float]
    offsets: tuple[float, float]

    def error(self, fitted: np.ndarray, side: np.ndarray) -> np.ndarray:
        intercept, slope = self.spread
        size = intercept + slope * np.clip(fitted, *self.fitted_range) + self.side_spread * side
        usual: np.ndarray = np.exp(size)
        return usual


def _interval(
    fitted: np.ndarray, wanted: np.ndarray, side: np.ndarray, *, n_patients: int
) -> _Interval:
    """Return a conformal interval; its width follows the typical error of such masks.

    The error decreases with the fitted value and increases with ``side``. Predictions of one
    patient err alike, so the correction for a finite sample counts patients: with few of them the
    interval goes from the smallest to the largest error seen.
    """
    residuals = wanted - fitted
    sizes = np.log(np.maximum(np.abs(residuals), _LEAST_ERROR))
    design = np.column_stack([np.ones(len(fitted)), fitted, side])
    low, high = (-np.inf, -np.inf, 0.0), (np.inf, 0.0, np.inf)
    solution = optimize.lsq_linear(design, sizes, bounds=(low, high)).x
    intercept, slope, side_spread = (float(one) for one in solution)
    fitted_range = float(fitted.min()), float(fitted.max())
    interval = _Interval((intercept, slope), side_spread, fitted_range, (0.0, 0.0))
    ratios = residuals / interval.error(fitted, side)
    tail = max(0.0, ((n_patients + 1) * (1 - COVERAGE) / 2 - 1) / n_patients)
    below, above = np.quantile(ratios, (tail, 1 - tail))
    return replace(interval, offsets=(float(below), float(above)))


def _covered(
    fitted: np.ndarray, wanted: np.ndarray, side: np.ndarray, patients: np.ndarray
) -> Bool:
    """Return which observations lie in the interval fitted to the other patients."""
    covered = np.zeros(len(wanted), bool)
    names = set(patients.tolist())
    for patient in names:
        held = patients == patient
        interval = _interval(fitted[~held], wanted[~held], side[~held], n_patients=len(names) - 1)
        ratios = (wanted[held] - fitted[held]) / interval.error(fitted[held], side[held])
        low, high = interval.offsets
        covered[held] = (low <= ratios) & (ratios <= high)
    return covered
