"""From labelled volumes to nnU-Net's preprocessed data set, in one process.

The volumes are turned to the canonical orientation first, exactly as ``predict`` turns them, so
that the network only ever sees one orientation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import InputError, UsageError
from sslmedsam2.imaging.intensity import looks_like_hounsfield, window_hounsfield
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
from sslmedsam2.imaging.reading import read_labels, read_volume
from sslmedsam2.refine.labels import AUXILIARY_OFFSET, LIVER, TRAINED_LABELS
from sslmedsam2.refine.plans import (
    CONFIGURATION,
    DATASET_NAME,
    PLANS_NAME,
    CompactPreset,
    compact_plans,
    dataset_json,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingImage:
    """One image to train on, with its liver mask and, where there is one, a map of organs."""

    case: str
    sequence: str
    image_path: Path
    mask_path: Path
    organs_path: Path | None


@dataclass(frozen=True)
class LabelledArray:
    """A canonical image with its labels, both ``[z, y, x]``."""

    image_zyx: npt.NDArray[np.float32]
    labels_zyx: npt.NDArray[np.int16]
    spacing_zyx_mm: tuple[float, float, float]


def case_key(series: TrainingImage) -> str:
    """Return the identifier of a training image within the data set."""
    return f"{series.case}__{series.sequence}"


def load_labelled(series: TrainingImage) -> LabelledArray:
    """Read an image with its masks and turn them to the canonical orientation.

    Raises
    ------
    InputError
        A file cannot be read, a mask lies on another grid, or it holds no liver.
    """
    volume = read_volume(series.image_path)
    image = to_canonical(volume)
    labels = _labels_like(series.mask_path, volume.geometry.shape_zyx)
    combined = np.where(labels > 0, LIVER, 0).astype(np.int16)
    if not combined.any():
        raise InputError(
            series.mask_path,
            kind="empty_mask",
            reason="the expert mask holds no liver",
            remedy="Remove the case from the labelled folder, or mend its mask",
        )
    if series.organs_path is not None:
        organs = _labels_like(series.organs_path, volume.geometry.shape_zyx)
        other = (combined == 0) & (organs > LIVER)
        combined[other] = organs[other] + AUXILIARY_OFFSET
    array = image.array_zyx
    if looks_like_hounsfield(array):
        array = window_hounsfield(array)
    return LabelledArray(
        image_zyx=array,
        labels_zyx=apply_reorientation(combined, image.reorientation),
        spacing_zyx_mm=image.spacing_zyx_mm,
    )


def _labels_like(path: Path, shape_zyx: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    labels = read_labels(path).array_zyx
    if labels.shape != shape_zyx:
        raise InputError(
            path,
            kind="shape_mismatch",
            reason=f"the mask has shape {labels.shape}, its image {shape_zyx}",
            remedy="Export the mask on the grid of its image",
        )
    return labels.astype(np.int16)


def build_dataset(
    series: Sequence[TrainingImage], *, preprocessed_dir: Path, preset: CompactPreset
) -> Path:
    """Write nnU-Net's preprocessed data set and return its folder.

    Up-to-date cases are kept. ``dataset.json``, the plans and a fingerprint lie beside them, so
    that nnU-Net's own trainer can work on the folder.

    Raises
    ------
    UsageError
        Fewer than two labelled images.
    InputError
        See :func:`load_labelled`.
    """
    if len(series) < 2:
        raise UsageError(
            "labelled data",
            reason=f"{len(series)} labelled image(s) found, training needs at least two",
            remedy="Point at case folders that hold <SEQ>.nii.gz and mask_<SEQ>.nii.gz",
        )
    folder = preprocessed_dir / DATASET_NAME
    data_folder = folder / f"{PLANS_NAME}_{CONFIGURATION}"
    data_folder.mkdir(parents=True, exist_ok=True)
    loaded = {case_key(item): load_labelled(item) for item in series}
    plans = _plans_for(list(loaded.values()), preset)
    meta = dataset_json(n_cases=len(loaded), labels=TRAINED_LABELS)
    _write_json(folder / "dataset.json", meta)
    _write_json(folder / f"{PLANS_NAME}.json", plans)
    _write_json(
        folder / "dataset_fingerprint.json",
        {
            "spacings": [item.spacing_zyx_mm for item in loaded.values()],
            "shapes_before_crop": [item.image_zyx.shape for item in loaded.values()],
        },
    )
    for key, item in loaded.items():
        _preprocess(item, plans=plans, meta=meta, target=data_folder / key)
        logger.info("preprocessed %s", key)
    return folder


def _plans_for(items: Sequence[LabelledArray], preset: CompactPreset) -> dict[str, Any]:
    foreground = np.concatenate([item.image_zyx[item.labels_zyx == LIVER] for item in items])
    low, median, high = np.percentile(foreground, [0.5, 50, 99.5])
    median_shape = np.median([item.image_zyx.shape for item in items], axis=0)
    median_spacing = np.median([item.spacing_zyx_mm for item in items], axis=0)
    return compact_plans(
        preset,
        dataset_name=DATASET_NAME,
        median_shape_zyx=tuple(int(n) for n in median_shape),  # type: ignore[arg-type]
        median_spacing_zyx_mm=tuple(float(s) for s in median_spacing),  # type: ignore[arg-type]
        intensity={
            "mean": float(foreground.mean()),
            "std": float(foreground.std()),
            "min": float(foreground.min()),
            "max": float(foreground.max()),
            "median": float(median),
            "percentile_00_5": float(low),
            "percentile_99_5": float(high),
        },
    )


def _preprocess(
    item: LabelledArray, *, plans: dict[str, Any], meta: dict[str, Any], target: Path
) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )
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
    # nnU-Net refuses to overwrite its own compressed arrays.
    for stale in target.parent.glob(f"{target.name}*"):
        stale.unlink()
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


def write_splits(dataset_folder: Path, splits: Sequence[dict[str, list[str]]]) -> None:
    """Write nnU-Net's ``splits_final.json``: one ``{"train": [...], "val": [...]}`` a fold."""
    _write_json(dataset_folder / "splits_final.json", list(splits))


def alternating_splits(keys: Sequence[str], *, n_folds: int) -> list[dict[str, list[str]]]:
    """Deal sorted case keys out to folds in turn; each fold's hand is its validation set."""
    ordered = sorted(keys)
    hands = [ordered[fold::n_folds] for fold in range(n_folds)]
    return [{"train": [key for key in ordered if key not in hand], "val": hand} for hand in hands]


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
