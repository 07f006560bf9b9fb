"""SAM2 checkpoints: the compact one of this project, and the official Hiera-T ones."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from sslmedsam2.errors import ModelError, first_line
from sslmedsam2.fewshot.network import CompactArchitecture, build_compact, build_hiera_tiny
from sslmedsam2.imaging.atomic import write_bytes_atomic
from sslmedsam2.weights.manifest import sha256_file

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

logger = logging.getLogger(__name__)

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
    name
        The file's stem, for reports.
    sha256
        Of the file.
    path
        Of the file, to load it again on the CPU if a GPU fails.
    """

    model: SAM2Base
    name: str
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


@dataclass(frozen=True)
class Sam2File:
    """A checkpoint that is there; ``name`` and ``sha256`` as in :class:`LoadedSam2`."""

    path: Path
    name: str
    sha256: str


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


def identify_sam2(path: Path) -> Sam2File:
    """Return what a checkpoint is, without loading it; raises ModelError if there is none."""
    if not path.is_file():
        raise ModelError(
            path,
            reason="there is no such file",
            remedy="Give a SAM2 checkpoint, or the name of one: see weights fetch --help",
        )
    return Sam2File(path, path.stem, sha256_file(path))


def load_sam2(path: Path, *, device: torch.device) -> LoadedSam2:
    """Load ``*.safetensors`` as a compact SAM2 and anything else as a Hiera-T checkpoint.

    Where a GPU cannot take it, it stays on the CPU.

    Raises
    ------
    ModelError
        The file is missing, damaged, or holds another network.
    """
    file = identify_sam2(path)
    load = _load_compact if path.suffix == COMPACT_SUFFIX else _load_hiera_tiny
    model = load(path)
    try:
        model = model.to(device)
    except RuntimeError as error:
        if device.type == "cpu":
            raise
        logger.warning("the GPU cannot take SAM2 (%s): it runs on the CPU", first_line(error))
        model = load(path)  # The first may have been moved in part.
    model = model.eval().requires_grad_(False)
    return LoadedSam2(model=model, name=file.name, sha256=file.sha256, path=path)


def _load_compact(path: Path) -> SAM2Base:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        fields = json.loads(metadata[_ARCHITECTURE_KEY])
        fields["stages"] = tuple(fields["stages"])
        model = build_compact(CompactArchitecture(**fields))
    except (SafetensorError, KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise _damaged(path, error) from error
    _fill(model, state, path)
    return model


def _load_hiera_tiny(path: Path) -> SAM2Base:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
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
    first_line = str(detail).strip().splitlines()[0][:160] if str(detail).strip() else "no details"
    return ModelError(
        path,
        reason=f"it is no SAM2.1 Hiera-T or compact checkpoint, or it is damaged ({first_line})",
        remedy="Fetch it again with weights fetch, or restore the shipped file",
    )
