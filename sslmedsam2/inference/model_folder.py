"""Read an ordinary nnU-Net v2 model folder, and refuse what this engine does not do.

Layout: ``dataset.json``, ``plans.json``, ``fold_<k>/checkpoint_final.pth``. Reading the two JSON
files needs neither torch nor nnU-Net; weights are loaded separately, with ``weights_only``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sslmedsam2.errors import ModelError

if TYPE_CHECKING:
    import torch

CHECKPOINT_NAME: Final = "checkpoint_final.pth"
_DEFAULT_RESAMPLER: Final = "resample_data_or_seg_to_shape"
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
    """What plans and data set description say about a model.

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


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one fold and the axes it may be mirrored along."""

    weights: Mapping[str, torch.Tensor]
    mirror_axes: tuple[int, ...]


def read_model_spec(path: Path) -> ModelSpec:
    """Read ``dataset.json`` and ``plans.json`` of a model folder.

    Raises
    ------
    ModelError
        Something is missing or malformed, or the model is of a kind that is not supported: more
        than one foreground label, regions, cascades, 2-D, several input channels.
    """
    dataset = _read_json(path / "dataset.json")
    plans = _read_json(path / "plans.json")
    folds = _folds(path)
    configuration = _configuration_name(path / f"fold_{folds[0]}" / CHECKPOINT_NAME)
    _check_labels(path, dataset)
    try:
        return _spec(path, plans=plans, folds=folds, configuration=configuration)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            path / "plans.json",
            reason=f"the plans lack or garble an entry ({error!r})",
            remedy="Copy the plans.json that nnU-Net wrote beside the folds",
        ) from error


def load_checkpoint(spec: ModelSpec, fold: str) -> Checkpoint:
    """Load the weights of one fold.

    Raises
    ------
    ModelError
        The file is unreadable or holds anything beyond plain tensors and numbers.
    """
    content = _torch_load(spec.path / f"fold_{fold}" / CHECKPOINT_NAME)
    axes = content.get("inference_allowed_mirroring_axes") or ()
    return Checkpoint(
        weights=content["network_weights"], mirror_axes=tuple(int(axis) for axis in axes)
    )


def _torch_load(path: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    # nnU-Net's own checkpoints carry numpy scalars in their log; these three rebuild them and
    # can run no code.
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    harmless = [scalar, np.dtype, *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")}]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content["network_weights"], dict):
            raise TypeError("network_weights")
    except Exception as error:
        reason = str(error).splitlines()[0][:160]
        raise ModelError(
            path,
            reason=f"the checkpoint cannot be loaded safely ({reason})",
            remedy="Freeze it with this project's tools, or restore the original file",
        ) from error
    return content


def _configuration_name(checkpoint: Path) -> str:
    try:
        return str(_torch_load(checkpoint)["init_args"]["configuration"])
    except KeyError as error:
        raise ModelError(
            checkpoint,
            reason="the checkpoint does not name its nnU-Net configuration",
            remedy="Use a checkpoint written by nnU-Net v2",
        ) from error


def _folds(path: Path) -> tuple[str, ...]:
    folds = sorted(
        folder.name.removeprefix("fold_")
        for folder in path.glob("fold_*")
        if (folder / CHECKPOINT_NAME).is_file()
    )
    # A fold trained on everything stands alone, as in nnU-Net's own fold detection.
    numbered = tuple(fold for fold in folds if fold.isdigit())
    if numbered or folds:
        return numbered or tuple(folds)
    raise ModelError(
        path,
        reason=f"no fold_*/{CHECKPOINT_NAME} found",
        remedy="Point --model at the folder that holds plans.json and the fold folders",
    )


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
        path / "dataset.json", reason=f"unsupported model: {problem}", remedy=_REMEDY_RETRAIN
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
    return ModelSpec(
        path=path,
        folds=folds,
        configuration=configuration,
        transpose_forward=_three(axes),
        spacing_mm=_three(tuple(float(s) for s in entry["spacing"])),
        patch_size=_three(tuple(int(n) for n in entry["patch_size"])),
        normalization=entry["normalization_schemes"][0],
        use_mask_for_norm=bool(entry["use_mask_for_norm"][0]),
        intensity=plans["foreground_intensity_properties_per_channel"]["0"],
        image_resampling=_resampling(path, entry, "data"),
        logit_resampling=_resampling(path, entry, "probabilities"),
        architecture=Architecture(
            class_name=architecture["network_class_name"],
            kwargs=architecture["arch_kwargs"],
            kwargs_to_import=tuple(architecture["_kw_requires_import"]),
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
    """Let nnU-Net translate plans from before it stored architectures."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    return ConfigurationManager(dict(entry)).configuration["architecture"]


def _resampling(path: Path, entry: dict[str, Any], role: str) -> Resampling:
    function = entry[f"resampling_fn_{role}"]
    if function != _DEFAULT_RESAMPLER:
        raise ModelError(
            path / "plans.json",
            reason=f"unsupported resampling function '{function}'",
            remedy=f"Use plans with '{_DEFAULT_RESAMPLER}', nnU-Net's default",
        )
    kwargs = entry[f"resampling_fn_{role}_kwargs"]
    return Resampling(
        order=int(kwargs["order"]),
        order_z=int(kwargs["order_z"]),
        force_separate_z=kwargs["force_separate_z"],
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            path,
            reason="missing or not valid JSON",
            remedy="Point --model at a complete nnU-Net v2 model folder",
        ) from error
