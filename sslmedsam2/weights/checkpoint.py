"""Read and write nnU-Net checkpoints without running code that a pickle may hold.

torch is imported inside the functions: listing and verifying models do not need it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.atomic import write_bytes_atomic
from sslmedsam2.weights.manifest import refuse_pointer

if TYPE_CHECKING:
    import torch

_WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")
_TRAINER_NAME: Final = "nnUNetTrainer"
_KEPT_INIT_ARGS: Final = ("configuration", "fold")


def read_checkpoint(path: Path, *, sha256: str | None = None) -> dict[str, Any]:
    """Load an nnU-Net checkpoint onto the CPU, allowing only tensors and plain values.

    nnU-Net's own checkpoints also hold numpy numbers (losses and scores), which are allowed.
    Prefixes that torch's wrappers put before every weight (``module.``, ``_orig_mod.``) are taken
    off.

    Parameters
    ----------
    sha256
        What the file must hash to. It is then read into memory once, hashed and loaded from there.

    Raises
    ------
    ModelError
        The file cannot be read, hashes to something else, holds anything that would run code, or
        lacks what a prediction needs: ``network_weights`` and ``init_args`` with the configuration.
    """
    import torch

    source: Path | io.BytesIO = path
    try:
        refuse_pointer(path)
        if sha256 is not None:
            buffer = path.read_bytes()
            check_unaltered(path, buffer, sha256)
            source = io.BytesIO(buffer)
    except OSError as error:
        raise _unloadable(path, error) from error
    try:
        with torch.serialization.safe_globals(_numpy_number_classes()):
            # A file is mapped, so that the optimiser's state, twice the weights' size, stays there.
            content = torch.load(
                source, map_location="cpu", weights_only=True, mmap=isinstance(source, Path)
            )
    # A damaged or malicious pickle can make the unpickler fail in almost any way.
    except Exception as error:
        raise _unloadable(path, error) from error
    try:
        usable = bool(content["network_weights"]) and "configuration" in content["init_args"]
    except (KeyError, TypeError, IndexError):
        usable = False
    if not usable:
        raise ModelError(
            path,
            reason="it has no 'network_weights' or no 'init_args' with a configuration",
            remedy="Use a checkpoint that nnU-Net v2 wrote",
        )
    return {**content, "network_weights": _without_wrappers(content["network_weights"])}


def check_unaltered(path: Path, content: bytes, sha256: str | None) -> None:
    """Compare what was read of a model's file with the hash it is to have, if one is known.

    Raises
    ------
    ModelError
        It was altered.
    """
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ModelError(
            path,
            reason="the file was altered after it was checked",
            remedy="Start again when nothing writes to the model folder",
        )


def _unloadable(path: Path, error: Exception) -> ModelError:
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        path,
        reason=f"cannot be loaded as a checkpoint of tensors and plain values ({cause:.100})",
        remedy="Use a checkpoint that nnU-Net v2 wrote, copied completely",
    )


def _without_wrappers(weights: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            return _without_wrappers(
                {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
            )
    return weights


def freeze_checkpoint(source: Path, target: Path, *, half: bool = False) -> None:
    """Write what a prediction needs of a training checkpoint, and nothing else.

    The result loads with ``torch.load(weights_only=True)`` and in nnU-Net's own tools. It holds
    the weights, the configuration's name, the fold and the mirroring axes; optimiser state,
    training log and whatever names the training machine are left behind. The trainer is recorded
    as nnU-Net's default one, so the network must be the one that the plans describe. The same
    source gives the same bytes.

    Parameters
    ----------
    half
        Store the weights as float16, in half the space; they are loaded into float32 parameters.

    Raises
    ------
    ModelError
        ``source`` is not a usable checkpoint, or a weight is not finite as stored.
    OutputError
        ``target`` cannot be written.
    """
    import torch

    content = read_checkpoint(source)
    axes = content.get("inference_allowed_mirroring_axes")
    frozen = {
        "network_weights": _stored_weights(
            content["network_weights"],
            dtype=torch.float16 if half else torch.float32,
            source=source,
        ),
        "trainer_name": _TRAINER_NAME,
        "init_args": {
            key: content["init_args"][key] for key in _KEPT_INIT_ARGS if key in content["init_args"]
        },
        "inference_allowed_mirroring_axes": None if axes is None else [int(axis) for axis in axes],
    }
    # Through memory: torch writes the name of a file that it opens into that file.
    buffer = io.BytesIO()
    torch.save(frozen, buffer)
    write_bytes_atomic(target, buffer.getvalue())


def average_checkpoints(sources: Sequence[Path], target: Path) -> None:
    """Write a checkpoint with the mean of the sources' weights; all else is the first one's.

    Only of use for networks that were trained from one start: others have their features in
    different places (model soups, Wortsman et al. 2022, arXiv:2203.05482).

    Raises
    ------
    ModelError
        A source is not a usable checkpoint, or the sources are of different networks.
    OutputError
        ``target`` cannot be written.
    """
    import torch

    contents = [read_checkpoint(source) for source in sources]
    shapes = _shapes(contents[0])
    for source, content in zip(sources, contents, strict=True):
        if _shapes(content) != shapes:
            raise ModelError(
                source,
                reason=f"it is of another network than {sources[0]}",
                remedy="Average checkpoints of one training only",
            )
    means: dict[int, torch.Tensor] = {}
    averaged = {}
    for name in shapes:
        versions = [content["network_weights"][name] for content in contents]
        # nnU-Net lists most weights under several names; they must go on sharing one tensor.
        place = versions[0].data_ptr()
        if place not in means:
            means[place] = torch.stack([version.float() for version in versions]).mean(dim=0)
        averaged[name] = means[place]
    buffer = io.BytesIO()
    torch.save({**contents[0], "network_weights": averaged}, buffer)
    write_bytes_atomic(target, buffer.getvalue())


def _shapes(content: dict[str, Any]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in content["network_weights"].items()}


def _stored_weights(
    weights: dict[str, torch.Tensor], *, dtype: torch.dtype, source: Path
) -> dict[str, torch.Tensor]:
    """Convert the floating-point weights, keeping names that share one tensor sharing it.

    nnU-Net's networks list most weights under several names; unshared they would be stored as
    often.
    """
    import torch

    converted: dict[tuple[Any, ...], torch.Tensor] = {}
    stored = {}
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if place not in converted:
            kept_dtype = dtype if tensor.is_floating_point() else tensor.dtype
            # A copy: a view would bring the whole of the storage that it looks into.
            converted[place] = tensor.detach().to(kept_dtype, copy=True).contiguous()
            if not bool(torch.isfinite(converted[place]).all()):
                raise ModelError(
                    source,
                    reason=f"the weight {name!r} is not finite as {kept_dtype}",
                    remedy="Freeze a checkpoint of a training that converged",
                )
        stored[name] = converted[place]
    return stored


def _numpy_number_classes() -> list[Any]:
    """Return what a pickled numpy number names: its builder, ``dtype`` and the dtype classes."""
    import numpy as np

    builder = np.float64(0.0).__reduce__()[0]
    numbers = [np.dtype(code) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"]
    return [
        # Checkpoints written under numpy 1 name the builder by the module's old path.
        (builder, "numpy._core.multiarray.scalar"),
        (builder, "numpy.core.multiarray.scalar"),
        np.dtype,
        *{type(number) for number in numbers},
    ]
