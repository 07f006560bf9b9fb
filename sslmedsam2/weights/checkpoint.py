"""Read and write nnU-Net checkpoints without running code that a pickle may hold.

Only writing needs torch, which is imported inside the functions: a prediction on a CPU does not.
"""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import ModelError, first_line
from sslmedsam2.imaging.atomic import write_bytes_atomic
from sslmedsam2.weights.model_files import refuse_pointer
from sslmedsam2.weights.torch_archive import load_archive

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, npt.NDArray[Any]]
"""Arrays by the names of the network's parameters; several names may share one array's memory."""

_Made = TypeVar("_Made")

_WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")
_TRAINER_NAME: Final = "nnUNetTrainer"
_KEPT_INIT_ARGS: Final = ("configuration", "fold")


def read_checkpoint(path: Path, *, sha256: str | None = None) -> dict[str, Any]:
    """Load an nnU-Net checkpoint, allowing only tensors, as numpy arrays, and plain values.

    nnU-Net's own checkpoints also hold numpy numbers (losses and scores), which are allowed.
    Prefixes that torch's wrappers put before every weight (``module.``, ``_orig_mod.``) are taken
    off.

    Parameters
    ----------
    sha256
        Expected hash of the file, which is then read into memory once, hashed and loaded.
        Without it the file is mapped: unused parts, such as the optimiser's state, stay on disk.

    Raises ModelError: the file cannot be read, hashes to something else, holds anything that would
    run code, or lacks what a prediction needs: ``network_weights`` and ``init_args`` with the
    configuration.
    """
    try:
        refuse_pointer(path)
        buffer = _buffer(path, mapped=sha256 is None)
        check_unaltered(path, buffer, sha256)
        content = load_archive(buffer)
    except ModelError:
        raise
    # A damaged or malicious pickle can make the unpickler fail in almost any way.
    except Exception as error:
        raise ModelError(
            path,
            reason="cannot be loaded as a checkpoint of tensors and plain values"
            f" ({first_line(error):.100})",
            remedy="Copy the file again completely, or use another checkpoint of nnU-Net v2",
        ) from error
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


def _buffer(path: Path, *, mapped: bool) -> mmap.mmap:
    with path.open("rb") as file:
        if mapped:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        buffer = mmap.mmap(-1, path.stat().st_size)
        file.readinto(buffer)
        return buffer


def check_unaltered(path: Path, content: bytes | mmap.mmap, sha256: str | None) -> None:
    """Compare the content of a model's file with its expected hash, if that is known.

    Raises ModelError: it was altered.
    """
    if sha256 is None:
        return
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelError(
            path,
            reason=f"its content was altered: SHA-256 {found[:12]}... where the manifest, or its"
            f" first reading, says {sha256[:12]}...",
            remedy="Restore the file, and start again when nothing writes to the model folder",
        )


def _without_wrappers(weights: Weights) -> Weights:
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            return _without_wrappers(
                {name.removeprefix(prefix): array for name, array in weights.items()}
            )
    return weights


def as_tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the weights for torch, in the same memory, so that shared ones stay shared."""
    import torch

    return _changed(weights, lambda _name, array: torch.from_numpy(array))


def _changed(
    weights: Weights, change: Callable[[str, npt.NDArray[Any]], _Made]
) -> dict[str, _Made]:
    """Change each array once: nnU-Net lists most weights under several names of one array.

    Unshared they would be stored as often.
    """
    made: dict[tuple[Any, ...], _Made] = {}
    for name, array in weights.items():
        if _place(array) not in made:
            made[_place(array)] = change(name, array)
    return {name: made[_place(array)] for name, array in weights.items()}


def _place(array: npt.NDArray[Any]) -> tuple[Any, ...]:
    """Return an identity of an array: equal for the same numbers in the same memory."""
    return array.__array_interface__["data"][0], array.dtype, array.shape, array.strides


def freeze_checkpoint(source: Path, target: Path, *, half: bool = False) -> None:
    """Write the parts of a training checkpoint that a prediction needs.

    The result loads with ``torch.load(weights_only=True)`` and in nnU-Net's own tools. It holds
    the weights, the configuration's name, the fold and the mirroring axes; optimiser state,
    training log and whatever names the training machine are left behind. The trainer is recorded
    as nnU-Net's default one, so the network must be the one that the plans describe. The same
    source gives the same bytes.

    Parameters
    ----------
    half
        Store the weights as float16, in half the space; they are loaded into float32 parameters.

    Raises ModelError: ``source`` is not a usable checkpoint, or a weight is not finite as stored;
    OutputError: ``target`` cannot be written.
    """
    content = read_checkpoint(source)
    weights = _stored_weights(content["network_weights"], half=half, source=source)
    init_args = {
        key: content["init_args"][key] for key in _KEPT_INIT_ARGS if key in content["init_args"]
    }
    _write({**content, "trainer_name": _TRAINER_NAME, "init_args": init_args}, weights, target)


def _write(content: Mapping[str, Any], weights: Weights, target: Path) -> None:
    """Write the parts of ``content`` that a prediction needs, with other weights."""
    import torch

    axes = content.get("inference_allowed_mirroring_axes")
    frozen = {
        "network_weights": as_tensors(weights),
        "trainer_name": content.get("trainer_name", _TRAINER_NAME),
        "init_args": content["init_args"],
        "inference_allowed_mirroring_axes": None if axes is None else [int(axis) for axis in axes],
    }
    # Through memory: torch writes the name of a file that it opens into that file.
    buffer = io.BytesIO()
    torch.save(frozen, buffer)
    write_bytes_atomic(target, buffer.getvalue())


def average_checkpoints(sources: Sequence[Path], target: Path) -> None:
    """Write a checkpoint with the mean of the sources' weights, for predictions only.

    Configuration and mirroring axes are the first one's. Only of use for networks that were trained
    from one start: others have their features in different places (model soups, Wortsman et al.
    2022, arXiv:2203.05482).

    Raises ModelError: a source is not a usable checkpoint, or the sources are of different
    networks; OutputError: ``target`` cannot be written.
    """
    contents = [read_checkpoint(source) for source in sources]
    all_weights: list[Weights] = [content["network_weights"] for content in contents]
    shapes = [{name: array.shape for name, array in weights.items()} for weights in all_weights]
    for source, found in zip(sources, shapes, strict=True):
        if found != shapes[0]:
            raise ModelError(
                source,
                reason=f"it is of another network than {sources[0]}",
                remedy="Average checkpoints of one training only",
            )

    def mean(name: str, _first: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        averaged: npt.NDArray[np.float32] = np.stack(
            [np.asarray(weights[name], np.float32) for weights in all_weights]
        ).mean(axis=0)
        return averaged

    _write(contents[0], _changed(all_weights[0], mean), target)


def _stored_weights(weights: Weights, *, half: bool, source: Path) -> Weights:
    """Convert the floating-point weights."""

    def stored(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        floats = np.float16 if half else np.float32
        kept = floats if np.issubdtype(array.dtype, np.floating) else array.dtype
        with np.errstate(over="ignore"):
            # A copy: a view would bring the whole of the storage that it looks into.
            converted = np.array(array, kept, order="C")
        if not np.isfinite(converted).all():
            raise ModelError(
                source,
                reason=f"the weight {name!r} is not finite as {converted.dtype}",
                remedy="Freeze a checkpoint of a training that converged",
            )
        return converted

    return _changed(weights, stored)
