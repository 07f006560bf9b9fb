"""Read an nnU-Net v2 model folder, and refuse models that are not supported.

:mod:`sslmedsam2.weights.manifest` defines the layout of the folder, and
:mod:`sslmedsam2.weights.checkpoint` reads checkpoints. This module interprets the plans.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sslmedsam2.errors import ModelError
from sslmedsam2.weights.checkpoint import Weights, check_unaltered, read_checkpoint
from sslmedsam2.weights.model_files import DATASET_FILE, PLANS_FILE, checkpoint_file, find_folds

_DEFAULT_RESAMPLER: Final = "resample_data_or_seg_to_shape"
NORMALISATIONS: Final = (
    "ZScoreNormalization",
    "CTNormalization",
    "RescaleTo01Normalization",
    "NoNormalization",
)
_LARGEST_SPACING_MM: Final = 1000.0
_LARGEST_PATCH: Final = 2**27
"""Voxels; eight times 256 cubed. A larger patch is a damaged file and would exhaust the memory."""
_REMEDY_RETRAIN: Final = "Use a 3-D single-stage nnU-Net v2 model with one foreground label"


@dataclass(frozen=True)
class Resampling:
    """nnU-Net's spline orders: in plane, and along the thick axis of anisotropic volumes."""

    order: int
    order_z: int
    force_separate_z: bool | None


@dataclass(frozen=True)
class Architecture:
    """A network class with its arguments, as plans spell them."""

    class_name: str
    kwargs: Mapping[str, Any]
    kwargs_to_import: tuple[str, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A model as described by its plans and data set.

    Attributes
    ----------
    transpose_forward
        Order in which nnU-Net permutes the ``[z, y, x]`` axes before anything else.
    spacing_mm, patch_size
        Along the permuted axes.
    normalization
        nnU-Net's scheme name.
    use_mask_for_norm
        Whether statistics are taken over non-zero voxels only.
    intensity
        Foreground statistics of the training data, used by CT normalisation.
    sha256
        Expected hashes of the files, by their names in the folder; empty if unknown.
    """

    path: Path
    folds: tuple[str, ...]
    configuration: str
    transpose_forward: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    normalization: str
    use_mask_for_norm: bool
    intensity: Mapping[str, float]
    image_resampling: Resampling
    logit_resampling: Resampling
    architecture: Architecture
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one fold and the axes it may be mirrored along."""

    weights: Weights
    mirror_axes: tuple[int, ...]


def read_model_spec(
    path: Path,
    *,
    folds: tuple[str, ...] | None = None,
    sha256: Mapping[str, str] | None = None,
) -> ModelSpec:
    """Read the description of a model folder, without its weights.

    Parameters
    ----------
    folds
        The folds to use; None for those of :func:`sslmedsam2.weights.model_files.find_folds`.
    sha256
        Expected hashes of the files, by their names in the folder.

    Raises ModelError: a file is missing, malformed or altered, or the model is not supported: more
    than one foreground label, regions, cascades, 2-D, several input channels, another
    normalisation.
    """
    if folds is None:
        folds = find_folds(path)
    sha256 = sha256 or {}
    dataset = _read_json(path / DATASET_FILE, sha256)
    plans = _read_json(path / PLANS_FILE, sha256)
    configuration = _configuration(path, checkpoint_file(folds[0], path), sha256)
    try:
        _check_labels(path, dataset)
        spec = _spec(path, plans=plans, folds=folds, configuration=configuration)
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise ModelError(
            path,
            reason=f"{PLANS_FILE} or {DATASET_FILE} lacks or garbles an entry ({error!r:.80})",
            remedy="Copy both files that nnU-Net wrote beside the folds",
        ) from error
    if spec.normalization not in NORMALISATIONS:
        raise ModelError(
            path / PLANS_FILE,
            reason=f"unsupported normalisation '{spec.normalization:.60}'",
            remedy="Use a model trained with nnU-Net's z-score, CT, 0-1 or no normalisation",
        )
    return replace(spec, sha256=sha256)


def load_checkpoint(spec: ModelSpec, fold: str) -> Checkpoint:
    """Load the weights of one fold.

    Raises ModelError: the file is unreadable, altered since the model was chosen, or holds anything
    beyond plain tensors and numbers.
    """
    name = checkpoint_file(fold, spec.path)
    content = read_checkpoint(spec.path / name, sha256=spec.sha256.get(name))
    axes = content.get("inference_allowed_mirroring_axes") or ()
    return Checkpoint(
        weights=content["network_weights"], mirror_axes=tuple(int(axis) for axis in axes)
    )


def _configuration(path: Path, name: str, sha256: Mapping[str, str]) -> str:
    """Return the configuration of a checkpoint; its weights are neither read nor hashed."""
    try:
        return str(read_checkpoint(path / name)["init_args"]["configuration"])
    except ModelError:
        with suppress(OSError):
            check_unaltered(path / name, (path / name).read_bytes(), sha256.get(name))
        raise


def _check_labels(path: Path, dataset: dict[str, Any]) -> None:
    labels = dict(dataset.get("labels", {}))
    labels.pop("ignore", None)
    channels = dataset.get("channel_names", dataset.get("modality", {}))
    if sorted(map(str, labels.values())) != ["0", "1"]:
        problem = f"its labels are {dict(dataset.get('labels', {}))}"
    elif len(channels) != 1:
        problem = f"it takes {len(channels)} input channels"
    else:
        return
    raise ModelError(
        path / DATASET_FILE, reason=f"unsupported model: {problem}", remedy=_REMEDY_RETRAIN
    )


def _spec(
    path: Path, *, plans: dict[str, Any], folds: tuple[str, ...], configuration: str
) -> ModelSpec:
    entry = _resolve_inheritance(plans["configurations"], configuration)
    if len(entry["patch_size"]) != 3 or entry.get("previous_stage"):
        kind = "a cascade" if entry.get("previous_stage") else "a 2-D configuration"
        raise ModelError(path, reason=f"unsupported model: {kind}", remedy=_REMEDY_RETRAIN)
    architecture = entry.get("architecture") or _modernised_architecture(entry)
    axes = tuple(int(axis) for axis in plans["transpose_forward"])
    spacing_mm = tuple(float(step) for step in entry["spacing"])
    patch_size = tuple(int(length) for length in entry["patch_size"])
    if sorted(axes) != [0, 1, 2]:
        raise ValueError(f"transpose_forward {axes}")
    if not all(0 < step < _LARGEST_SPACING_MM for step in spacing_mm):
        raise ValueError(f"spacing {spacing_mm}")
    if min(patch_size) < 1 or math.prod(patch_size) > _LARGEST_PATCH:
        raise ValueError(f"patch_size {patch_size}")
    return ModelSpec(
        path=path,
        folds=folds,
        configuration=configuration,
        transpose_forward=_three(axes),
        spacing_mm=_three(spacing_mm),
        patch_size=_three(patch_size),
        normalization=str(entry["normalization_schemes"][0]),
        use_mask_for_norm=bool(entry["use_mask_for_norm"][0]),
        intensity=dict(plans["foreground_intensity_properties_per_channel"]["0"]),
        image_resampling=_resampling(path, entry, "data"),
        logit_resampling=_resampling(path, entry, "probabilities"),
        architecture=Architecture(
            class_name=str(architecture["network_class_name"]),
            kwargs=dict(architecture["arch_kwargs"]),
            kwargs_to_import=tuple(map(str, architecture["_kw_requires_import"])),
        ),
    )


def _three(values: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    a, b, c = values
    return a, b, c


def _resolve_inheritance(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    entry = configurations[name]
    if "inherits_from" in entry:
        return {**_resolve_inheritance(configurations, entry["inherits_from"]), **entry}
    return dict(entry)


def _modernised_architecture(entry: dict[str, Any]) -> dict[str, Any]:
    """Let nnU-Net derive the architecture from plans of a version that did not store it."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    return ConfigurationManager(dict(entry)).configuration["architecture"]


def _resampling(path: Path, entry: dict[str, Any], role: str) -> Resampling:
    function = entry[f"resampling_fn_{role}"]
    if function != _DEFAULT_RESAMPLER:
        raise ModelError(
            path / PLANS_FILE,
            reason=f"unsupported resampling function '{function}'",
            remedy=f"Use plans with '{_DEFAULT_RESAMPLER}', nnU-Net's default",
        )
    kwargs = entry[f"resampling_fn_{role}_kwargs"]
    return Resampling(
        order=int(kwargs["order"]),
        order_z=int(kwargs["order_z"]),
        force_separate_z=kwargs["force_separate_z"],
    )


def _read_json(path: Path, sha256: Mapping[str, str]) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        check_unaltered(path, content, sha256.get(path.name))
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            path,
            reason="missing or not valid JSON",
            remedy="Point --model at a complete nnU-Net v2 model folder",
        ) from error
