"""A small network with real nnU-Net plans, saved the way nnU-Net's trainer saves it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from sslmedsam2.nnunet.plans import CONFIGURATION, CompactPreset, compact_plans
from sslmedsam2.weights.manifest import ModelCard

CARD = ModelCard(
    training_data="random numbers",
    recipe="no training",
    licence="Apache-2.0",
    created="2026-01-31",
    measured={"dice": 0.5, "cases": 3},
)
MACHINE_FOLDER = "/home/somebody/secret-project"


@dataclass(frozen=True)
class Training:
    """A folder as nnU-Net's training leaves it, and the networks of its folds."""

    folder: Path
    networks: dict


def make_network(seed):
    torch.manual_seed(seed)
    architecture = plans()["configurations"][CONFIGURATION]["architecture"]
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        2,
        deep_supervision=False,
    )


def plans():
    preset = CompactPreset(
        patch_zyx=(8, 16, 16), features=(4, 8), strides_zyx=((1, 1, 1), (2, 2, 2))
    )
    return compact_plans(
        preset,
        dataset_name="Dataset001_Liver",
        median_shape_zyx=(8, 16, 16),
        median_spacing_zyx_mm=(6.0, 2.0, 2.0),
        intensity={},
    )


def save_like_the_trainer(network, path, fold):
    path.parent.mkdir(parents=True)
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": torch.optim.AdamW(network.parameters()).state_dict(),
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float32(0.4), np.float64(0.5)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {
            "plans": plans() | {"source": MACHINE_FOLDER},
            "configuration": CONFIGURATION,
            "fold": fold,
            "dataset_json": {},
            "device": torch.device("cpu"),
        },
        "trainer_name": "SomeTrainerOfTheProject",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, path)
