"""The SAM2 network and its checkpoints: this project's compact one, the official Hiera-T."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from sslmedsam2.errors import ModelError, first_line
from sslmedsam2.imaging.atomic import write_bytes_atomic
from sslmedsam2.imaging.records import sha256_file

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


logger = logging.getLogger(__name__)

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

    with _gpu_hidden():
        return instantiate(OmegaConf.merge(_official_architecture(), changes))


@cache
def _official_architecture() -> Any:
    from omegaconf import OmegaConf

    package = importlib.util.find_spec("sam2")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "configs/sam2.1/sam2.1_hiera_t.yaml"
    return OmegaConf.load(path).model


@contextmanager
def _gpu_hidden() -> Iterator[None]:
    """Hide GPUs from SAM2 while it is built: it would put tables there even for the CPU."""
    is_available = torch.cuda.is_available
    torch.cuda.is_available = lambda: False
    try:
        yield
    finally:
        torch.cuda.is_available = is_available


COMPACT_SUFFIX: Final = ".safetensors"
OFFICIAL_IMAGE_SIZE: Final = 512
"""MedSAM2 was fine-tuned at this size, and the published method used it."""

_ARCHITECTURE_KEY: Final = "architecture"
_HIERA_TINY_KEY: Final = "maskmem_tpos_enc"


@dataclass(frozen=True)
class LoadedSam2:
    """A frozen SAM2 in evaluation mode.

    Attributes
    ----------
    sha256
        Of the file.
    path
        Of the file, to load it again on the CPU if a GPU fails.
    """

    model: SAM2Base
    sha256: str
    path: Path | None = None

    @property
    def image_size(self) -> int:
        """Side of the square slices that it is shown, in pixels."""
        return self.model.image_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute without gradients, and in bfloat16 where a GPU has it and does not emulate it."""
        device = self.device.type
        in_bfloat16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=in_bfloat16):
            yield


def save_compact(
    model: SAM2Base,
    path: Path,
    *,
    architecture: CompactArchitecture,
    notes: Mapping[str, str],
) -> None:
    """Write a compact SAM2 in half precision, with its architecture and ``notes`` inside."""
    from safetensors.torch import save

    halves = {name: value.half().contiguous().cpu() for name, value in model.state_dict().items()}
    metadata = {_ARCHITECTURE_KEY: json.dumps(dataclasses.asdict(architecture)), **notes}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not save_file: it makes a file that only its owner may read.
    write_bytes_atomic(path, save(halves, metadata=metadata))


def hash_sam2(path: Path) -> str:
    """Return the SHA-256 of a checkpoint; raises ModelError if there is none."""
    _check_is_file(path)
    return sha256_file(path)


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(
            path,
            reason="there is no such file",
            remedy="Give a SAM2 checkpoint, or the name of one: see weights fetch --help",
        )


def load_sam2(path: Path, *, device: torch.device) -> LoadedSam2:
    """Load ``*.safetensors`` as a compact SAM2 and anything else as a Hiera-T checkpoint.

    Where a GPU cannot take it, it stays on the CPU.

    Raises
    ------
    ModelError
        The file is missing, damaged, or holds another network.
    """
    _check_is_file(path)
    # The bytes that were hashed are loaded, even if the file changes meanwhile.
    content = path.read_bytes()
    load = _load_compact if path.suffix == COMPACT_SUFFIX else _load_hiera_tiny
    model = load(path, content)
    try:
        model = model.to(device)
    except RuntimeError as error:
        if device.type == "cpu":
            raise
        logger.warning("the GPU cannot take SAM2 (%s): it runs on the CPU", first_line(error))
        model = load(path, content)  # The first may have been moved in part.
    model = model.eval().requires_grad_(False)
    return LoadedSam2(model, hashlib.sha256(content).hexdigest(), path)


def _load_compact(path: Path, content: bytes) -> SAM2Base:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = {name: value.float() for name, value in load(content).items()}
        # The file begins with the length of a JSON header, which holds the metadata.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        fields = json.loads(header["__metadata__"][_ARCHITECTURE_KEY])
        fields["stages"] = tuple(fields["stages"])
        model = build_compact(CompactArchitecture(**fields))
    except (SafetensorError, KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise _damaged(path, error) from error
    _fill(model, state, path)
    return model


def _load_hiera_tiny(path: Path, stored: bytes) -> SAM2Base:
    try:
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    # A damaged or malicious pickle can make the unpickler fail in almost any way.
    except Exception as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or _HIERA_TINY_KEY not in state:
        raise _damaged(path, "it holds no SAM2 network")
    model = build_hiera_tiny(OFFICIAL_IMAGE_SIZE)
    _fill(model, state, path)
    return model


def _fill(model: SAM2Base, state: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, detail: object) -> ModelError:
    # What torch misses is not in its first line.
    line = " ".join(str(detail).split())[:200] or "no details"
    return ModelError(
        path,
        reason=f"it is no SAM2.1 Hiera-T or compact checkpoint, or it is damaged ({line})",
        remedy="Fetch it again with weights fetch, or restore the shipped file",
    )
