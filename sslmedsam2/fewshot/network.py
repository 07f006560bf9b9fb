"""The SAM2 network, built from the package's own configuration, at any size.

`sam2` builds its networks through Hydra's global state, and its video predictor reads folders of
JPEG files. Here the configuration that `sam2` contains is read as a file, changed for a smaller
network if needed, and instantiated.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

STRIDE: Final = 16
"""Pixels per cell of the feature map that memories are made of."""


@dataclass(frozen=True)
class CompactArchitecture:
    """The sizes of a small SAM2.1, trained from scratch by `pretrain-sam2`.

    Attributes
    ----------
    image_size
        Side of the square slices it is shown, in pixels; a multiple of 32.
    embed_dim
        Channels of the first of Hiera's four stages; each further stage doubles them.
    stages
        Transformer blocks per stage.
    d_model
        Channels of the feature map, and of the mask decoder.
    mem_dim
        Channels of a memory; must divide ``d_model``.
    memory_layers
        Layers of the memory attention.
    """

    image_size: int = 128
    embed_dim: int = 32
    stages: tuple[int, int, int, int] = (1, 2, 3, 1)
    d_model: int = 128
    mem_dim: int = 64
    memory_layers: int = 2


def build_compact(architecture: CompactArchitecture) -> SAM2Base:
    """Build a small SAM2.1 with fresh weights, in training mode, on the CPU."""
    cells = architecture.image_size // STRIDE
    attention = {
        "feat_sizes": [cells, cells],
        "embedding_dim": architecture.d_model,
        "dropout": 0.0,
    }
    first_blocks = sum(architecture.stages[:2])
    return _instantiate(
        {
            "image_size": architecture.image_size,
            "image_encoder": {
                "trunk": {
                    "embed_dim": architecture.embed_dim,
                    "stages": list(architecture.stages),
                    # In mid-stage: a stage's first block pools, and must not be global.
                    "global_att_blocks": [first_blocks + 1],
                    "window_spec": [8, 4, 4, 2],
                },
                "neck": {
                    "d_model": architecture.d_model,
                    "backbone_channel_list": [architecture.embed_dim * n for n in (8, 4, 2, 1)],
                    "position_encoding": {"num_pos_feats": architecture.d_model},
                },
            },
            "memory_attention": {
                "d_model": architecture.d_model,
                "num_layers": architecture.memory_layers,
                "layer": {
                    "d_model": architecture.d_model,
                    "dim_feedforward": 2 * architecture.d_model,
                    "dropout": 0.0,
                    "self_attention": attention,
                    "cross_attention": attention | {"kv_in_dim": architecture.mem_dim},
                },
            },
            "memory_encoder": {
                "in_dim": architecture.d_model,
                "out_dim": architecture.mem_dim,
                "position_encoding": {"num_pos_feats": architecture.mem_dim},
                "mask_downsampler": {"embed_dim": architecture.d_model},
                "fuser": {
                    "num_layers": 1,
                    # From 1e-6 a short training would never open this path.
                    "layer": {"dim": architecture.d_model, "layer_scale_init_value": 0.1},
                },
            },
            "multimask_output_in_sam": False,
            "multimask_output_for_tracking": False,
            "use_multimask_token_for_obj_ptr": False,
            # Support slices of other patients have no place in time.
            "add_tpos_enc_to_obj_ptrs": False,
            "proj_tpos_enc_in_obj_ptrs": False,
        }
    )


def build_hiera_tiny(image_size: int) -> SAM2Base:
    """Build SAM2.1 Hiera-T with fresh weights; its position tables follow ``image_size``."""
    return _instantiate({"image_size": image_size})


def _instantiate(changes: dict[str, Any]) -> SAM2Base:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    package = importlib.util.find_spec("sam2")
    assert package is not None
    assert package.origin is not None
    config = OmegaConf.load(Path(package.origin).parent / "configs/sam2.1/sam2.1_hiera_t.yaml")
    with _gpu_hidden():
        return instantiate(OmegaConf.merge(config.model, changes))


@contextmanager
def _gpu_hidden() -> Iterator[None]:
    """Let SAM2 find no GPU while it is built: it would put tables there, whatever was asked for."""
    import torch

    is_available = torch.cuda.is_available
    torch.cuda.is_available = lambda: False
    try:
        yield
    finally:
        torch.cuda.is_available = is_available
