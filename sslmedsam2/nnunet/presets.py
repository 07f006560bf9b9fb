"""Network sizes by name, and nnU-Net's plans for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sslmedsam2.nnunet.plans import (
    CONFIGURATION,
    DATASET_NAME,
    CompactPreset,
    Grid,
    Preset,
    ResidualPreset,
    compact_plans,
    residual_plans,
)

PRESETS: Final[Mapping[str, Preset]] = {
    "compact": CompactPreset(),
    "resenc-m": ResidualPreset("M"),
    "resenc-l": ResidualPreset("L"),
}


@dataclass(frozen=True)
class Schedule:
    """How long to train: networks of a round, folds, a last network that starts from a fold's."""

    round_epochs: int
    fold_epochs: int
    final_epochs: int
    iterations_per_epoch: int


@dataclass(frozen=True)
class PlannedNetwork:
    """What plans say of a network in short."""

    spacing_zyx_mm: tuple[float, float, float]
    patch_zyx: tuple[int, int, int]
    batch_size: int


def default_preset(device: str) -> str:
    """Return the name of the preset for ``cpu`` or ``cuda``."""
    return "compact" if device == "cpu" else "resenc-m"


def default_schedule(preset: Preset) -> Schedule:
    """Return the usual length of a training.

    The compact one was measured on two CPU cores. The other is a tenth of nnU-Net's own, which
    starts from random weights with SGD, and has not been measured.
    """
    if isinstance(preset, CompactPreset):
        return Schedule(30, 28, 18, 50)
    return Schedule(100, 100, 60, 250)


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
    """Sum plans up."""
    configuration = plans["configurations"][CONFIGURATION]
    return PlannedNetwork(
        spacing_zyx_mm=tuple(configuration["spacing"]),
        patch_zyx=tuple(configuration["patch_size"]),
        batch_size=configuration["batch_size"],
    )
