"""Label values, network presets and nnU-Net's plans.

nnU-Net's planner sizes a network for a GPU. The compact preset trades in-plane resolution for
context: at 6 x 3 x 3 mm one patch covers most of an abdomen, so stray components are rare (the
Hausdorff distance counts the farthest voxel) and an iteration is short on two CPU cores. The wide
preset has twice the features at its three finest resolutions. The other presets are
residual-encoder networks (Isensee et al. 2024, arXiv:2404.09556) of nnU-Net's planner. The planner
reads a fingerprint of the data from folders named in the environment; temporary ones are made for
it here.

The network learns liver against background. Masks of other organs, where they exist, are kept in
the training data as *auxiliary* labels: the contrast augmentation changes each organ separately,
and the network learns them as additional targets (`organs.py`). Uncertain voxels of a pseudo label
get nnU-Net's ignore label.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import msgspec
import numpy as np

BACKGROUND: Final = 0
LIVER: Final = 1
IGNORE: Final = 2
UNSURE_LIVER: Final = 3
"""Liver by the pseudo mask, but uncertain: repainted with the liver, then ignored. Otherwise the
liver would keep a rim of another brightness, and networks would learn to end before it."""
AUXILIARY_OFFSET: Final = 10
"""Organ ``k`` of an ``organs_*`` file is stored as ``AUXILIARY_OFFSET + k``, above the ignore
label, which must be the highest *trained* one."""

TRAINED_LABELS: Final = {"background": BACKGROUND, "liver": LIVER}
"""The ``labels`` entry of nnU-Net's dataset.json."""

TRAINED_LABELS_WITH_IGNORE: Final = {**TRAINED_LABELS, "ignore": IGNORE}
"""The same where pseudo masks take part."""

DATASET_NAME: Final = "Dataset001_Liver"
CONFIGURATION: Final = "3d_fullres"
PLANS_NAME: Final = "nnUNetPlans"

_RESAMPLER = "resample_data_or_seg_to_shape"


@dataclass(frozen=True)
class Schedule:
    """Lengths of trainings: in a round, of a fold, and of the final network on all cases."""

    round_epochs: int
    fold_epochs: int
    final_epochs: int
    iterations_per_epoch: int


class Preset:
    """Size of a network: a `CompactPreset` or a `ResidualPreset`, both dataclasses.

    ``schedule`` is the default length of its training.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    schedule: ClassVar[Schedule]

    @staticmethod
    def from_plain(content: dict[str, Any]) -> Preset:
        """Return the preset that a JSON object describes; raises ValueError."""
        kind: type[Preset] = ResidualPreset if "residual_encoder" in content else CompactPreset
        return msgspec.convert(content, kind)


@dataclass(frozen=True)
class CompactPreset(Preset):
    """Size of the network and of its patches; its schedule was measured on two CPU cores."""

    schedule = Schedule(30, 28, 18, 50)
    spacing_zyx_mm: tuple[float, float, float] = (6.0, 3.0, 3.0)
    patch_zyx: tuple[int, int, int] = (32, 96, 96)
    features: tuple[int, ...] = (16, 32, 64, 128, 192)
    strides_zyx: tuple[tuple[int, int, int], ...] = field(
        default=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    )
    batch_size: int = 1


@dataclass(frozen=True)
class Grid:
    """Shape and spacing of an image in the canonical orientation."""

    shape_zyx: tuple[int, ...]
    spacing_zyx_mm: tuple[float, float, float]


def dataset_json(*, n_cases: int, labels: dict[str, int]) -> dict[str, Any]:
    """Return nnU-Net's ``dataset.json`` for one MR channel."""
    return {
        "channel_names": {"0": "MR"},
        "labels": labels,
        "numTraining": n_cases,
        "file_ending": ".nii.gz",
    }


def compact_plans(
    preset: CompactPreset,
    *,
    dataset_name: str,
    median_shape_zyx: tuple[int, int, int],
    median_spacing_zyx_mm: tuple[float, float, float],
    intensity: dict[str, float],
) -> dict[str, Any]:
    """Return a plans dictionary that every nnU-Net v2 tool can read.

    Parameters
    ----------
    median_shape_zyx, median_spacing_zyx_mm
        Over the training cases, before resampling.
    intensity
        Foreground intensity statistics of the one channel; z-scoring does not use them, but the
        plans format asks for them.
    """
    n_stages = len(preset.features)
    resampled = [
        round(n * old / new)
        for n, old, new in zip(
            median_shape_zyx, median_spacing_zyx_mm, preset.spacing_zyx_mm, strict=True
        )
    ]
    configuration = {
        "data_identifier": f"{PLANS_NAME}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": preset.batch_size,
        "patch_size": list(preset.patch_zyx),
        "median_image_size_in_voxels": resampled,
        "spacing": list(preset.spacing_zyx_mm),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": _RESAMPLER,
        "resampling_fn_seg": _RESAMPLER,
        "resampling_fn_probabilities": _RESAMPLER,
        "resampling_fn_data_kwargs": _resampling(is_seg=False, order=3),
        "resampling_fn_seg_kwargs": _resampling(is_seg=True, order=1),
        "resampling_fn_probabilities_kwargs": _resampling(is_seg=False, order=1),
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": n_stages,
                "features_per_stage": list(preset.features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[1, 3, 3]] + [[3, 3, 3]] * (n_stages - 1),
                "strides": [list(stride) for stride in preset.strides_zyx],
                "n_conv_per_stage": [2] * n_stages,
                "n_conv_per_stage_decoder": [1] * (n_stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    interpolate_between_slices(configuration)
    return {
        "dataset_name": dataset_name,
        "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": list(median_spacing_zyx_mm),
        "original_median_shape_after_transp": list(median_shape_zyx),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensity},
    }


def interpolate_between_slices(configuration: dict[str, Any]) -> None:
    """Resample linearly along the thick axis, where nnU-Net's default repeats slices; in place.

    A liver taken from 3 mm slices to 6 mm and back keeps a Dice of 0.98 with repeated slices and of
    0.999 with interpolated ones (``benchmarks/slice_resampling.py``).
    """
    for what in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{what}_kwargs"]["order_z"] = 1


def _resampling(*, is_seg: bool, order: int) -> dict[str, Any]:
    return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}


_PLANNERS = (
    "nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners"
)


_FINEST_SLICES_MM = 3.0
"""Slices are not planned thinner than this if most scans have thicker ones. nnU-Net's planner takes
the tenth percentile: a few scans with thin slices would turn 24 slices of 8.5 mm into 157."""


@dataclass(frozen=True)
class ResidualPreset(Preset):
    """A network of the size that nnU-Net calls M (9 to 11 GB of GPU memory) or L (24 GB).

    Its schedule is a tenth of nnU-Net's own, which starts from random weights with SGD, and has not
    been measured.
    """

    schedule = Schedule(100, 100, 60, 250)
    residual_encoder: Literal["M", "L"]


def residual_plans(
    preset: ResidualPreset, grids: Sequence[Grid], *, intensity: Mapping[str, float]
) -> dict[str, Any]:
    """Return the plans for images on these canonical grids, with one configuration only.

    Axes keep their order and intensities are z-scored over the whole image, as in the compact
    plans.
    """
    meta = dataset_json(n_cases=len(grids), labels=TRAINED_LABELS)
    fingerprint = {
        "spacings": [list(grid.spacing_zyx_mm) for grid in grids],
        "shapes_after_crop": [list(grid.shape_zyx) for grid in grids],
        # Below 0.75 voxels of 0 would be left out of the z-score.
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": dict(intensity)},
    }
    with tempfile.TemporaryDirectory() as folder:
        raw, preprocessed = (Path(folder) / kind / DATASET_NAME for kind in ("raw", "preprocessed"))
        # An empty list of files keeps the planner from looking for images.
        _write(raw / "dataset.json", {**meta, "dataset": {}})
        _write(preprocessed / "dataset_fingerprint.json", fingerprint)
        with _nnunet_settings(raw=raw.parent, preprocessed=preprocessed.parent):
            planner_name = _plan(preset)
        plans = json.loads((preprocessed / f"{PLANS_NAME}.json").read_text(encoding="utf-8"))
    configuration = plans["configurations"][CONFIGURATION]
    configuration["data_identifier"] = f"{PLANS_NAME}_{CONFIGURATION}"
    interpolate_between_slices(configuration)
    return {
        **plans,
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": planner_name,
    }


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@contextlib.contextmanager
def _nnunet_settings(*, raw: Path, preprocessed: Path) -> Iterator[None]:
    """Set the environment variables of nnU-Net's folders while the context is open."""
    settings = {
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(preprocessed),
        # The planner takes it for a number of threads, which cannot be 0.
        "nnUNet_n_proc_DA": "1",
    }
    former = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _plan(preset: ResidualPreset) -> str:
    """Run nnU-Net's planner, which writes the plans, and return its name."""
    import torch

    base = getattr(
        importlib.import_module(_PLANNERS), f"nnUNetPlannerResEnc{preset.residual_encoder}"
    )

    class Planner(base):  # type: ignore[misc, valid-type]
        """Plans ``3d_fullres`` alone, without looking at files."""

        def determine_reader_writer(self) -> type:
            from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

            return SimpleITKIO

        def determine_fullres_target_spacing(self) -> Any:
            planned = super().determine_fullres_target_spacing()
            median = np.median(np.vstack(self.dataset_fingerprint["spacings"]), axis=0)
            return np.maximum(planned, np.minimum(median, _FINEST_SLICES_MM))

        def get_plans_for_configuration(self, spacing: Any, *args: Any) -> dict[str, Any]:
            if len(spacing) == 2:
                return {}
            plans: dict[str, Any] = super().get_plans_for_configuration(spacing, *args)
            return plans

    planner = Planner(DATASET_NAME, plans_name=PLANS_NAME, suppress_transpose=True)
    planner.lowres_creation_threshold = 0
    # The planner builds networks to count their feature maps, and prints the plans.
    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        planner.plan_experiment()
    name: str = base.__name__
    return name


PRESETS: Final[Mapping[str, Preset]] = {
    "compact": CompactPreset(),
    "wide": CompactPreset(features=(32, 64, 128, 160, 192)),
    "resenc-m": ResidualPreset("M"),
    "resenc-l": ResidualPreset("L"),
}


@dataclass(frozen=True)
class PlannedNetwork:
    """Spacing, patch and batch size of a planned network."""

    spacing_zyx_mm: tuple[float, float, float]
    patch_zyx: tuple[int, int, int]
    batch_size: int


def default_preset(device: str) -> str:
    """Return the name of the preset for ``cpu`` or ``cuda``."""
    return "compact" if device == "cpu" else "resenc-m"


def plan_network(
    preset: Preset, grids: Sequence[Grid], *, intensity: Mapping[str, float]
) -> dict[str, Any]:
    """Return nnU-Net's plans for training images on these grids.

    Parameters
    ----------
    intensity
        Statistics of the liver, which the format asks for; z-scoring does not use them.
    """
    if isinstance(preset, ResidualPreset):
        return residual_plans(preset, grids, intensity=intensity)
    assert isinstance(preset, CompactPreset)
    shape = np.median([grid.shape_zyx for grid in grids], axis=0)
    spacing = np.median([grid.spacing_zyx_mm for grid in grids], axis=0)
    return compact_plans(
        preset,
        dataset_name=DATASET_NAME,
        median_shape_zyx=tuple(int(n) for n in shape),  # type: ignore[arg-type]
        median_spacing_zyx_mm=tuple(float(s) for s in spacing),  # type: ignore[arg-type]
        intensity=dict(intensity),
    )


def planned_network(plans: Mapping[str, Any]) -> PlannedNetwork:
    """Return spacing, patch and batch size of the network that plans describe."""
    configuration = plans["configurations"][CONFIGURATION]
    return PlannedNetwork(
        spacing_zyx_mm=tuple(configuration["spacing"]),
        patch_zyx=tuple(configuration["patch_size"]),
        batch_size=configuration["batch_size"],
    )
