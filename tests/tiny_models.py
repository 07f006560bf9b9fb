"""Small real networks in ordinary nnU-Net model folders, for tests that predict."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from sslmedsam2.nnunet.plans import CONFIGURATION, CompactPreset, compact_plans, dataset_json

PATCH = (16, 32, 32)
_ANISOTROPIC = ((1, 1, 1), (1, 2, 2))


def make_plans(
    *,
    residual: bool = False,
    patch: tuple[int, int, int] = PATCH,
    spacing_mm: tuple[float, float, float] = (8.0, 8.0, 8.0),
    strides: tuple[tuple[int, int, int], ...] = _ANISOTROPIC,
    transpose_forward: tuple[int, int, int] = (0, 1, 2),
) -> dict:
    """Return plans for a tiny plain or residual-encoder U-Net."""
    features = (6, 8, 10)[: len(strides)]
    plans = compact_plans(
        CompactPreset(
            patch_zyx=patch, spacing_zyx_mm=spacing_mm, features=features, strides_zyx=strides
        ),
        dataset_name="Dataset001_Liver",
        median_shape_zyx=(30, 60, 60),
        median_spacing_zyx_mm=spacing_mm,
        intensity={
            "mean": 90.0, "std": 40.0, "percentile_00_5": 5.0, "percentile_99_5": 210.0,
        },
    )  # fmt: skip
    plans["transpose_forward"] = list(transpose_forward)
    backward = sorted(range(3), key=transpose_forward.__getitem__)
    plans["transpose_backward"] = backward
    if residual:
        architecture = plans["configurations"][CONFIGURATION]["architecture"]
        architecture["network_class_name"] = (
            "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        )
        kwargs = architecture["arch_kwargs"]
        kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
    return plans


def make_network(plans: dict, *, seed: int) -> nn.Module:
    """Build the network that nnU-Net builds from these plans, with random weights."""
    torch.manual_seed(seed)
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        2,
        deep_supervision=False,
    )
    # Fresh norms are neutral and fresh biases zero: move them, or a mistake there would not show.
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float(".norm.weight" in name), std=0.2)
    return network.eval()


def write_model(
    folder: Path,
    plans: dict,
    networks: dict[str, nn.Module],
    *,
    mirror_axes: tuple[int, ...] | None = None,
) -> Path:
    """Write an ordinary nnU-Net model folder with one checkpoint for each named fold."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = dataset_json(n_cases=2, labels={"background": 0, "liver": 1})
    (folder / "dataset.json").write_text(json.dumps(meta))
    (folder / "plans.json").write_text(json.dumps(plans))
    for fold, network in networks.items():
        (folder / f"fold_{fold}").mkdir()
        checkpoint = {
            "network_weights": network.state_dict(),
            "init_args": {"configuration": CONFIGURATION, "fold": fold},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": mirror_axes,
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def bright_tissue_model(
    folder: Path,
    *,
    threshold: float = 1.0,
    transpose_forward: tuple[int, int, int] = (0, 1, 2),
    **others: float,
) -> Path:
    """Write a model of chosen weights that calls liver what is bright.

    Its margin is the z-scored image less ``threshold``. Each further keyword,
    ``fold_1=2.0``, is one more fold with its threshold.
    """
    # One patch holds all of an `abdomen`, unless its axes are in another order.
    plans = make_plans(transpose_forward=transpose_forward, patch=(24, 40, 40))
    # Norms look at a whole patch; without them each voxel is decided by its surroundings alone.
    kwargs = plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
    kwargs.update(norm_op=None, norm_op_kwargs=None)
    thresholds = {"fold_0": threshold, **others}
    networks = {
        fold.removeprefix("fold_"): _bright_tissue_network(plans, threshold=value)
        for fold, value in thresholds.items()
    }
    return write_model(folder, plans, networks)


def _bright_tissue_network(plans: dict, *, threshold: float) -> nn.Module:
    network = make_network(plans, seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv3d) and "stages" in name:
                # Pass the image on; in the decoder, the skip's channels come second.
                channel = module.in_channels // 2 if name.startswith("decoder.stages") else 0
                centre = tuple(size // 2 for size in module.kernel_size)
                module.weight[(0, channel, *centre)] = 1.0
        head = network.decoder.seg_layers[-1]
        head.weight[1, 0] = 1.0
        head.bias[1] = -threshold
    return network
