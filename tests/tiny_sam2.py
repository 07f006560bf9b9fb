"""Tiny SAM2 networks with random weights, and supports and queries for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import sam2
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.sam2_base import SAM2Base
from tiny_scans import centred_grid, render

from sslmedsam2.fewshot.checkpoint import (
    CompactArchitecture,
    LoadedSam2,
    build_compact,
    save_compact,
)
from sslmedsam2.fewshot.strategy import Query, Support
from sslmedsam2.imaging.orientation import apply_reorientation, reorientation_of
from sslmedsam2.imaging.volume import CanonicalVolume, Geometry

TINY = CompactArchitecture(
    image_size=64, embed_dim=8, stages=(1, 1, 2, 1), d_model=32, mem_dim=16, memory_layers=1
)
PRESENT, ABSENT = 50.0, -50.0


def tiny_compact(*, seed: int = 0) -> LoadedSam2:
    """Build a compact SAM2 whose random weights make every part of it matter."""
    torch.manual_seed(seed)
    model = _stirred(build_compact(TINY)).eval().requires_grad_(False)
    return LoadedSam2(model, "0" * 64)


def write_tiny_compact(path: Path) -> Path:
    """Write the compact SAM2 of :func:`tiny_compact` as ``pseudo-label`` loads it."""
    save_compact(tiny_compact().model, path, architecture=TINY, notes={})
    return path


def tiny_official(*, seed: int = 0) -> SAM2Base:
    """Build a small SAM2.1 with every switch as in the official Hiera-T, but with few channels."""
    config = OmegaConf.load(Path(sam2.__file__).parent / "configs/sam2.1/sam2.1_hiera_t.yaml")
    attention = {"embedding_dim": 32, "feat_sizes": [4, 4]}
    small = {
        "image_size": 64,
        "image_encoder": {
            "trunk": {"embed_dim": 8, "stages": [1, 1, 2, 1], "global_att_blocks": [3]},
            "neck": {
                "d_model": 32,
                "backbone_channel_list": [64, 32, 16, 8],
                "position_encoding": {"num_pos_feats": 32},
            },
        },
        "memory_attention": {
            "d_model": 32,
            "num_layers": 1,
            "layer": {
                "d_model": 32,
                "dim_feedforward": 64,
                "self_attention": attention,
                "cross_attention": attention | {"kv_in_dim": 16},
            },
        },
        "memory_encoder": {
            "in_dim": 32,
            "out_dim": 16,
            "position_encoding": {"num_pos_feats": 16},
            "mask_downsampler": {"embed_dim": 32},
            "fuser": {"num_layers": 1, "layer": {"dim": 32}},
        },
    }
    torch.manual_seed(seed)
    model = instantiate(OmegaConf.merge(config.model, small), _recursive_=True)
    return _stirred(model).eval().requires_grad_(False)


def _stirred(model: SAM2Base) -> SAM2Base:
    """Move what starts near zero or neutral, or a mistake there would not show.

    The object is judged to be there wherever it is asked for: see :func:`leaning_towards`.
    """
    learned_places = ("no_mem_embed", "no_obj", "maskmem_tpos_enc", "no_obj_embed_spatial")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(learned_places):
                parameter.normal_(0, 1)
            elif name.endswith("gamma"):
                parameter.fill_(0.5)
            elif "cross_attn_image.v_proj" in name or "cross_attn_image.out_proj" in name:
                parameter.mul_(4)
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(PRESENT)
    return model


@contextmanager
def leaning_towards(model: SAM2Base, bias: float) -> Iterator[None]:
    """Let the mask decoder lean to "there is an object" or "there is none" for a while."""
    last = model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    before = last.clone()
    with torch.no_grad():
        last.fill_(bias)
        yield
        last.copy_(before)


def canonical(array_zyx: np.ndarray, geometry: Geometry) -> CanonicalVolume:
    """Turn a stored array as the reader does."""
    turn = reorientation_of(geometry)
    z, y, x = (geometry.spacing_zyx_mm[axis] for axis in turn.axes)
    return CanonicalVolume(apply_reorientation(array_zyx, turn), (z, y, x), turn)


def make_support(
    name: str, *, seed: int, geometry: Geometry | None = None, case: str | None = None
) -> Support:
    """Render a labelled phantom; ``case`` is by default the name's first part."""
    geometry = geometry or centred_grid()
    image, mask = render(geometry, seed=seed)
    volume = canonical(image, geometry)
    return Support(
        name=name,
        case=case or name.split("/")[0],
        image=volume,
        geometry=geometry,
        mask_zyx=apply_reorientation(mask, volume.reorientation),
    )


def make_query(
    name: str, *, seed: int, geometry: Geometry | None = None, inverted: bool = False
) -> Query:
    """Render a phantom without its mask."""
    geometry = geometry or centred_grid()
    image, _ = render(geometry, seed=seed, inverted=inverted)
    return Query(name, name.split("/")[0], canonical(image, geometry), geometry)
