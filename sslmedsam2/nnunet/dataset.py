"""From labelled volumes to nnU-Net's preprocessed data set.

The volumes are first turned to the canonical orientation, as in ``predict``, so that the network
sees only one orientation.
"""

from __future__ import annotations

import logging
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import OutputError, UsageError
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.intensity import window_if_hounsfield
from sslmedsam2.imaging.labelled import read_labelled
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
from sslmedsam2.imaging.records import (
    key_of,
    move_aside,
    read_record,
    read_record_or_none,
    sha256_file,
    write_record,
)
from sslmedsam2.nnunet.plans import (
    AUXILIARY_OFFSET,
    CONFIGURATION,
    DATASET_NAME,
    LIVER,
    PLANS_NAME,
    TRAINED_LABELS,
    Grid,
    Preset,
    dataset_json,
    plan_network,
)

_INPUTS_NAME = "inputs.json"
"""Record of what a data set was made from; written last, so a data set with it is complete."""
_BUILDING = ".building_"
_ABANDONED_AFTER_SECONDS = 3600
_SPLITS_NAME = "splits_final.json"
_SAMPLING_NAME = "sampling.json"
_UNLABELLED_NAME = "unlabelled.json"
_SAMPLED_VOXELS = 200_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledArray:
    """A canonical image with its labels, both ``[z, y, x]``."""

    image_zyx: npt.NDArray[np.float32]
    labels_zyx: npt.NDArray[np.int16]
    spacing_zyx_mm: tuple[float, float, float]


def case_key(series: ImageFile) -> str:
    """Return the identifier of a training image within the data set."""
    return f"{series.case}__{series.sequence_or_volume}"


def load_labelled(image: ImageFile) -> LabelledArray:
    """Read an image with its labels and turn them to the canonical orientation.

    Raises InputError: as :func:`~sslmedsam2.imaging.labelled.read_labelled`.
    """
    read = read_labelled(image)
    canonical = to_canonical(read.volume)
    labels = read.labels_zyx.astype(np.int16)
    if read.organs_zyx is not None:
        other = (labels == 0) & (read.organs_zyx > LIVER)
        labels[other] = read.organs_zyx[other].astype(np.int16) + AUXILIARY_OFFSET
    array, _ = window_if_hounsfield(canonical.array_zyx)
    return LabelledArray(
        image_zyx=array,
        labels_zyx=apply_reorientation(labels, canonical.reorientation),
        spacing_zyx_mm=canonical.spacing_zyx_mm,
    )


def build_dataset(
    series: Sequence[ImageFile],
    *,
    preprocessed_dir: Path,
    preset: Preset,
    labels: Mapping[str, int] = TRAINED_LABELS,
    plans: Mapping[str, Any] | None = None,
) -> Path:
    """Write nnU-Net's preprocessed data set and return its folder.

    Without ``plans`` they are made for these images. Weights can be carried over between data sets
    only if the plans are the same.

    ``dataset.json``, the plans and a fingerprint lie beside the cases, so that nnU-Net's own
    trainer can use the folder. A complete data set of the same files and preset is kept; a damaged
    one is made again, and a folder that this program did not make is moved aside. The folder is
    renamed when it is complete, so several processes may call this at the same time.

    Raises UsageError: there is no labelled image, or the folder holds a data set of
    other files or another preset, on which networks may have been trained; InputError: see
    :func:`load_labelled`.
    """
    if not series:
        raise UsageError(
            "labelled data",
            reason="no labelled image found",
            remedy="Point at case folders that hold <SEQ>.nii.gz and mask_<SEQ>.nii.gz",
        )
    folder = preprocessed_dir / DATASET_NAME
    inputs = _inputs(series, preset, labels=labels, plans=plans)
    if _is_finished(folder, inputs):
        logger.info("the %d preprocessed images are up to date", len(series))
        return folder
    preprocessed_dir.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(preprocessed_dir)
    with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=preprocessed_dir) as scratch:
        # In a folder of its own: a temporary folder can be read by its owner only.
        building = Path(scratch) / DATASET_NAME
        _write_cases(
            building,
            series,
            plans=dict(plans) if plans is not None else make_plans(series, preset),
            meta=dataset_json(n_cases=len(series), labels=dict(labels)),
        )
        write_record(building / _INPUTS_NAME, inputs)
        try:
            building.rename(folder)
        except OSError:
            if _is_finished(folder, inputs):
                return folder
            if (folder / _INPUTS_NAME).is_file():
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.exists():
                move_aside(folder, why=f"it holds no {_INPUTS_NAME} of this program")
            # If there was no folder, this raises the error of the first attempt.
            building.rename(folder)
    return folder


def _write_cases(
    folder: Path, series: Sequence[ImageFile], *, plans: dict[str, Any], meta: dict[str, Any]
) -> None:
    data_folder = folder / f"{PLANS_NAME}_{CONFIGURATION}"
    data_folder.mkdir(parents=True)
    write_record(folder / "dataset.json", meta)
    write_record(folder / f"{PLANS_NAME}.json", plans)
    fingerprint: dict[str, list[Any]] = {"spacings": [], "shapes_before_crop": []}
    # One at a time: a release does not fit into memory.
    for item in series:
        key, labelled = case_key(item), load_labelled(item)
        fingerprint["spacings"].append(labelled.spacing_zyx_mm)
        fingerprint["shapes_before_crop"].append(labelled.image_zyx.shape)
        _preprocess(labelled, plans=plans, meta=meta, target=data_folder / key)
        logger.info("preprocessed %s", key)
    write_record(folder / "dataset_fingerprint.json", fingerprint)


def _clear_abandoned(preprocessed_dir: Path) -> None:
    """Remove what killed processes left; a running process writes every few seconds."""
    for scratch in preprocessed_dir.glob(f"{_BUILDING}*"):
        try:
            written = [path.stat().st_mtime for path in (scratch, *scratch.glob("*/*/"))]
        except FileNotFoundError:
            # Another process has just finished with it.
            continue
        if time.time() - max(written) > _ABANDONED_AFTER_SECONDS:
            shutil.rmtree(scratch, ignore_errors=True)


def make_plans(series: Sequence[ImageFile], preset: Preset) -> dict[str, Any]:
    """Plan a network for these images; raises InputError as :func:`load_labelled` does."""
    grids, livers = [], []
    # One at a time; a sample of the liver's intensities is kept of each.
    for item in series:
        labelled = load_labelled(item)
        liver = labelled.image_zyx[labelled.labels_zyx == LIVER]
        livers.append(liver[:: max(1, liver.size // _SAMPLED_VOXELS)].copy())
        grids.append(Grid(labelled.image_zyx.shape, labelled.spacing_zyx_mm))
    foreground = np.concatenate(livers)
    low, median, high = np.percentile(foreground, [0.5, 50, 99.5])
    intensity = {
        "mean": float(foreground.mean()),
        "std": float(foreground.std()),
        "min": float(foreground.min()),
        "max": float(foreground.max()),
        "median": float(median),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
    }
    return plan_network(preset, grids, intensity=intensity)


def read_plans(path: Path) -> dict[str, Any]:
    """Read nnU-Net's plans; raises InputError."""
    return read_record(path, dict[str, Any])


def _inputs(
    series: Sequence[ImageFile],
    preset: Preset,
    *,
    labels: Mapping[str, int],
    plans: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what decides a data set's content."""
    cases = {}
    for item in series:
        hashes = {role: sha256_file(path) for role, path in item.files.items()}
        label = {} if item.label is None else {"label": item.label}
        cases[case_key(item)] = {**hashes, **label}
    return {"preset": asdict(preset), "labels": labels, "plans": plans, "sha256": cases}


def _is_finished(folder: Path, inputs: dict[str, Any]) -> bool:
    path = folder / _INPUTS_NAME
    if not path.is_file():
        return False
    if key_of(read_record(path, dict[str, Any])) == key_of(inputs):
        damaged = _damaged_case(folder, inputs["sha256"])
        if damaged is None:
            return True
        logger.warning("%s cannot be read: the images are preprocessed again", damaged)
        return False
    raise UsageError(
        folder,
        reason="it was made from other images, masks or settings",
        remedy="Choose another work directory, or remove that one to begin anew",
    )


def _damaged_case(folder: Path, cases: Iterable[str]) -> Path | None:
    """Return a file of a preprocessed case that is missing or incomplete, if there is one."""
    import blosc2

    for case in cases:
        stem = folder / f"{PLANS_NAME}_{CONFIGURATION}" / case
        properties, *arrays = (Path(f"{stem}{end}") for end in (".pkl", ".b2nd", "_seg.b2nd"))
        # A pickle ends with this; it is not loaded here.
        if not properties.is_file() or properties.read_bytes()[-1:] != pickle.STOP:
            return properties
        for path in arrays:
            try:
                blosc2.open(str(path), mode="r")
            except (OSError, RuntimeError, ValueError):
                return path
    return None


def _preprocess(
    item: LabelledArray, *, plans: dict[str, Any], meta: dict[str, Any], target: Path
) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    data, seg, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        item.image_zyx[None],
        item.labels_zyx[None],
        {"spacing": list(item.spacing_zyx_mm)},
        manager,
        configuration,
        meta,
    )
    data = data.astype(np.float32, copy=False)
    seg = seg.astype(np.int16, copy=False)
    patch = tuple(configuration.patch_size)
    blocks, chunks = comp_blosc2_params(data.shape, patch, data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, patch, seg.itemsize)
    try:
        nnUNetDatasetBlosc2.save_case(
            data,
            seg,
            properties,
            str(target),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
        )
    except (OSError, RuntimeError) as error:
        # Blosc raises RuntimeError if the disk is full.
        raise OutputError(
            target,
            reason=f"the preprocessed image cannot be written ({error})",
            remedy="Free disk space, and check that the work directory is writable",
        ) from error


def write_splits(dataset_folder: Path, splits: Sequence[dict[str, list[str]]]) -> None:
    """Write nnU-Net's ``splits_final.json``: one ``{"train": [...], "val": [...]}`` for each fold.

    Raises UsageError: the file holds other splits; a fold that was trained with them may have seen
    its new validation cases.
    """
    path = dataset_folder / _SPLITS_NAME
    if path.is_file() and read_record(path, list[dict[str, list[str]]]) != list(splits):
        raise UsageError(
            path,
            reason="the work directory is split into other folds",
            remedy="Use as many folds as before, or another work directory",
        )
    write_record(path, list(splits))


def split_cases(cases: Iterable[str], *, n_folds: int) -> tuple[frozenset[str], ...]:
    """Split sorted cases over folds in turn; returns the held-out cases of each fold."""
    ordered = sorted(set(cases))
    return tuple(frozenset(ordered[fold::n_folds]) for fold in range(n_folds))


def alternating_splits(
    images: Sequence[ImageFile],
    *,
    n_folds: int,
    others: Sequence[ImageFile] = (),
    identity: Callable[[str], str] = str,
) -> list[dict[str, list[str]]]:
    """Split patients over folds in turn; see `splits_of`.

    Cases of equal ``identity`` are one patient, whose name is spelled in several ways.
    """
    # Sorted by a spelling, not by identity: splits of earlier versions stay as they are.
    patients = {identity(case): case for case in sorted(image.case for image in images)}
    held_out = [
        frozenset(image.case for image in images if patients[identity(image.case)] in mine)
        for mine in split_cases(patients.values(), n_folds=n_folds)
    ]
    return splits_of(held_out, images, others=others)


def splits_of(
    held_out: Sequence[frozenset[str]],
    images: Sequence[ImageFile],
    *,
    others: Sequence[ImageFile] = (),
) -> list[dict[str, list[str]]]:
    """Return the training and validation images of each fold, given its held-out cases.

    All images of a case are in one fold: a network must not be scored on a patient that it has seen
    in another sequence. ``others`` are never used for validation.
    """
    return [
        {
            "train": sorted(case_key(one) for one in (*images, *others) if one.case not in cases),
            "val": sorted(case_key(one) for one in images if one.case in cases),
        }
        for cases in held_out
    ]


@dataclass(frozen=True)
class Sampling:
    """``cases`` fill ``share`` of the training patches in each fold, all other cases the rest."""

    cases: tuple[str, ...]
    share: float

    def probabilities(self, training: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return how often each of a fold's training cases is drawn."""
        chosen = np.isin(training, self.cases)
        n_chosen = int(chosen.sum())
        of_chosen = self.share / max(n_chosen, 1)
        of_others = (1 - self.share) / max(len(training) - n_chosen, 1)
        drawn = np.where(chosen, of_chosen, of_others)
        # The sum is less than 1 in a fold whose cases are all of one kind.
        return drawn / drawn.sum()


def write_sampling(dataset_folder: Path, sampling: Sampling) -> None:
    """Write which share of the training patches some cases fill.

    Raises UsageError: the file holds another share or other cases, which folds were trained with.
    """
    path = dataset_folder / _SAMPLING_NAME
    # That of an earlier version, which did not hold the share, is passed over.
    before = read_record_or_none(path, Sampling)
    if before is not None and before != sampling:
        raise UsageError(
            path,
            reason=f"it gives a share of {before.share:g} of the patches to {len(before.cases)}"
            f" image(s), not {sampling.share:g} to {len(sampling.cases)}",
            remedy="Give the same share and folders to go on, or another work directory",
        )
    write_record(path, sampling)


def read_sampling(dataset_folder: Path) -> Sampling | None:
    """Return what :func:`write_sampling` wrote; None if all cases are drawn equally often."""
    path = dataset_folder / _SAMPLING_NAME
    return read_record(path, Sampling) if path.is_file() else None


@dataclass(frozen=True)
class UnlabelledCase:
    """An image without a reference mask, whose labels are those of the few-shot branch.

    Attributes
    ----------
    fewshot_weight
        Initial weight of these labels against the teacher's prediction, 0 to 1.
    yields_above
        If the network has this Dice on reference masks, the labels do not count; None if there are
        no reference masks of such images.
    """

    fewshot_weight: float
    yields_above: float | None = None


def write_unlabelled(dataset_folder: Path, cases: Mapping[str, UnlabelledCase]) -> None:
    """Write which cases of the data set have no reference mask."""
    write_record(dataset_folder / _UNLABELLED_NAME, dict(cases))


def read_unlabelled(dataset_folder: Path) -> dict[str, UnlabelledCase]:
    """Return what :func:`write_unlabelled` wrote; empty if it did not."""
    path = dataset_folder / _UNLABELLED_NAME
    return read_record(path, dict[str, UnlabelledCase]) if path.is_file() else {}
