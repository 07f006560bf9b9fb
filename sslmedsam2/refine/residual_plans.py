"""Plans of a residual-encoder U-Net, by nnU-Net's own planner.

The planner sizes patch and batch for a GPU's memory (Isensee et al. 2024, arXiv:2404.09556). It
knows its data by a fingerprint and finds that in folders named by the environment: both are made
here for the moment that it takes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sslmedsam2.refine.labels import TRAINED_LABELS
from sslmedsam2.refine.plans import (
    CONFIGURATION,
    DATASET_NAME,
    PLANS_NAME,
    Grid,
    dataset_json,
    interpolate_between_slices,
)

_PLANNERS = (
    "nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners"
)


@dataclass(frozen=True)
class ResidualPreset:
    """A network of the size that nnU-Net calls M (9 to 11 GB of GPU memory) or L (24 GB)."""

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
    """Point nnU-Net, which looks nowhere but in the environment, at these folders."""
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
    """Let nnU-Net write its plans, and return the name of its planner."""
    import torch

    base = getattr(
        importlib.import_module(_PLANNERS), f"nnUNetPlannerResEnc{preset.residual_encoder}"
    )

    class Planner(base):  # type: ignore[misc, valid-type]
        """Plans ``3d_fullres`` alone, without looking at files."""

        def determine_reader_writer(self) -> type:
            from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

            return SimpleITKIO

        def get_plans_for_configuration(self, spacing: Any, *args: Any) -> dict[str, Any]:
            if len(spacing) == 2:
                return {}
            plans: dict[str, Any] = super().get_plans_for_configuration(spacing, *args)
            return plans

    planner = Planner(DATASET_NAME, plans_name=PLANS_NAME, suppress_transpose=True)
    planner.lowres_creation_threshold = 0
    # The planner builds networks to count their feature maps, and prints what it finds.
    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        planner.plan_experiment()
    name: str = base.__name__
    return name
