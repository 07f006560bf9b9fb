"""Run a U-Net on the CPU through OpenVINO, built from plans and weights without torch.

OpenVINO's converter traces the network with random data and takes 10-50 s. The two networks that
nnU-Net plans consist of a few layer types, so the graph is built directly, in less than a second.
Its layers are those of :mod:`dynamic_network_architectures`, which defines the names of the
weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from sslmedsam2.inference.model_folder import Checkpoint, ModelSpec

_CLASSES: Final = "dynamic_network_architectures.architectures.unet."
_KNOWN_ARGUMENTS: Final = {
    *("n_stages", "features_per_stage", "kernel_sizes", "strides", "conv_op", "conv_bias"),
    *("n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder"),
    *("norm_op", "norm_op_kwargs", "nonlin", "nonlin_kwargs"),
    # Dropout has no effect in a prediction.
    *("dropout_op", "dropout_op_kwargs"),
}
_NEGATIVE_SLOPE: Final = 0.01
_EPSILON: Final = 1e-5
"""Defaults of torch's LeakyReLU and InstanceNorm3d."""


class UnsupportedNetworkError(Exception):
    """The network cannot be built here, or its weights do not match its plans."""


class OpenVinoMarginNetwork:
    """A compiled network for patches of one size; see ``sliding_window.MarginNetwork``.

    It is never on a GPU, so ``degradations`` stays empty.
    """

    on_gpu: Final = False

    def __init__(self, spec: ModelSpec, checkpoint: Checkpoint, *, in_bfloat16: bool) -> None:
        """Build and compile the network of one fold.

        Raises UnsupportedNetworkError: it is neither nnU-Net's plain nor its residual U-Net, or the
        weights do not fit it.
        """
        self.in_bfloat16 = in_bfloat16
        self._model = _UNet(spec, checkpoint.weights).model()
        self._compiled = _compiled(self._model, "bf16" if in_bfloat16 else "f32")
        self._precise = None if in_bfloat16 else self._compiled
        self.backend = f"openvino {'bf16' if in_bfloat16 else 'fp32'}"
        self.degradations: list[str] = []

    def __call__(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Predict the patches one by one, because a larger batch is not faster on a CPU.

        A patch that overflows in bfloat16 is computed again in float32.
        """
        return np.concatenate([self._one(patch[None]) for patch in patches])

    def in_float32(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Predict the patches in float32, even if the network computes in bfloat16."""
        if self._precise is None:
            self._precise = _compiled(self._model, "f32")
        precise = self._precise
        return np.concatenate([precise(np.ascontiguousarray(patch[None]))[0] for patch in patches])

    def _one(self, patch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        margin = self._compiled(np.ascontiguousarray(patch))[0]
        if not self.in_bfloat16 or np.isfinite(margin).all():
            return margin
        return self.in_float32(patch)


def _compiled(model: ov.Model, precision: str) -> ov.CompiledModel:
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    return _core().compile_model(model, "CPU", settings)


@functools.cache
def _core() -> ov.Core:
    """Return the only OpenVINO core of the process; it is never freed.

    Each core installs a signal stack and, at its end, restores the previous one. If two cores
    overlap and end in the order of their creation, the freed stack of the first is restored, and
    the next signal, even Ctrl-C, causes a segmentation fault.
    """
    return ov.Core()


def bfloat16_is_native() -> bool:
    """Return whether this CPU has units for bfloat16; otherwise OpenVINO emulates it."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class _UNet:
    """Builds the graph of a plain or residual U-Net from weights by their names and shapes."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        self._patch_size = spec.patch_size
        self._class = spec.architecture.class_name.removeprefix(_CLASSES)
        self._given = spec.architecture.kwargs
        self._weights = weights
        self._used: set[str] = set()

    def model(self) -> ov.Model:
        """Return the network that gives ``liver logit - background logit``."""
        try:
            self._refuse_unknown()
            image = ops.parameter([1, 1, *self._patch_size], np.float32)
            encode = {"PlainConvUNet": self._plain, "ResidualEncoderUNet": self._residual}
            model = ov.Model([self._decoded(encode[self._class](image))], [image])
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            # Plans and weights may be wrong; OpenVINO raises RuntimeError if they do not fit.
            raise UnsupportedNetworkError(f"{type(error).__name__}: {error!s:.80}") from error
        unused = {name for name in self._weights if not _is_alias(name)} - self._used
        if unused:
            raise UnsupportedNetworkError(f"{len(unused)} unknown weights, such as {min(unused)}")
        return model

    def _refuse_unknown(self) -> None:
        norm = self._given.get("norm_op_kwargs") or {}
        kinds = {
            "conv_op": ("Conv3d",),
            "norm_op": ("InstanceNorm3d", "None"),
            "nonlin": ("LeakyReLU", "ReLU", "None"),
        }
        named = {key: str(self._given.get(key)).rpartition(".")[2] for key in kinds}
        strange = [value for key, value in named.items() if value not in kinds[key]]
        strange += [key for key in self._given.keys() - _KNOWN_ARGUMENTS if self._given[key]]
        strange += [key for key in ("track_running_stats",) if norm.get(key)]
        if self._class not in ("PlainConvUNet", "ResidualEncoderUNet"):
            strange.append(self._class)
        if strange:
            raise UnsupportedNetworkError(strange[0])
        self._normalises = named["norm_op"] != "None"
        self._activation = named["nonlin"]
        slope = (self._given.get("nonlin_kwargs") or {}).get("negative_slope", _NEGATIVE_SLOPE)
        self._slope = np.array([slope], np.float32)
        self._affine, self._epsilon = bool(norm.get("affine")), norm.get("eps", _EPSILON)
        self._bias = bool(self._given.get("conv_bias"))
        self._features = self._each("features_per_stage")
        self._kernels = [_three(kernel) for kernel in self._each("kernel_sizes")]
        self._strides = [_three(stride) for stride in self._each("strides")]

    def _each(self, argument: str, *, n: int | None = None) -> list[Any]:
        """Return an argument's value for each stage; one value may stand for all."""
        value, n = self._given[argument], n or int(self._given["n_stages"])
        values = [value] * n if isinstance(value, int) else list(value)
        if len(values) != n:
            raise ValueError(f"{argument} has {len(values)} entries for {n} stages")
        return values

    def _plain(self, x: Any) -> list[Any]:
        skips = []
        for stage, n in enumerate(self._each("n_conv_per_stage")):
            for index in range(n):
                stride = self._strides[stage] if index == 0 else _three(1)
                name = f"encoder.stages.{stage}.0.convs.{index}"
                x = self._block(x, name, self._features[stage], self._kernels[stage], stride)
            skips.append(x)
        return skips

    def _residual(self, x: Any) -> list[Any]:
        skips = []
        stem = "encoder.stem.convs.0"
        x = self._block(x, stem, self._features[0], self._kernels[0], _three(1))
        for stage, n in enumerate(self._each("n_blocks_per_stage")):
            for index in range(n):
                stride = self._strides[stage] if index == 0 else _three(1)
                x = self._residual_block(x, f"encoder.stages.{stage}.blocks.{index}", stage, stride)
            skips.append(x)
        return skips

    def _residual_block(self, x: Any, name: str, stage: int, stride: list[int]) -> Any:
        features, kernel, one = self._features[stage], self._kernels[stage], _three(1)
        skip, strided = x, stride != one
        if strided:
            skip = ops.avg_pool(skip, stride, [0] * 3, [0] * 3, stride, exclude_pad=True)
        if x.shape[1] != features:
            skip = self._convolution(
                skip, f"{name}.skip.{int(strided)}.conv", features, one, one, bias=False
            )
            skip = self._normalised(skip, f"{name}.skip.{int(strided)}.norm")
        x = self._block(x, f"{name}.conv1", features, kernel, stride)
        x = self._convolution(x, f"{name}.conv2.conv", features, kernel, one, bias=self._bias)
        x = self._normalised(x, f"{name}.conv2.norm")
        return self._activated(ops.add(x, skip))

    def _decoded(self, skips: list[Any]) -> Any:
        x = skips.pop()
        for stage, n in enumerate(self._each("n_conv_per_stage_decoder", n=len(skips))):
            features, stride = self._features[-stage - 2], self._strides[-stage - 1]
            name = f"decoder.transpconvs.{stage}"
            weight = ops.constant(self._weight(f"{name}.weight", x.shape[1], features, *stride))
            x = ops.convolution_backprop_data(x, weight, strides=stride, dilations=_three(1))
            x = self._with_bias(x, name, features) if self._bias else x
            x = ops.concat([x, skips.pop()], 1)
            for index in range(n):
                block = f"decoder.stages.{stage}.convs.{index}"
                x = self._block(x, block, features, self._kernels[-stage - 2], _three(1))
            head = f"decoder.seg_layers.{stage}"
        # The head is a 1 x 1 x 1 convolution, so the difference of its two filters gives that of
        # its two outputs for each voxel.
        weight = self._weight(f"{head}.weight", 2, x.shape[1], 1, 1, 1)
        bias = self._weight(f"{head}.bias", 2)
        x = _convolved(x, weight[1:] - weight[:1], _three(1))
        return ops.add(x, _per_channel(bias[1:] - bias[:1]))

    def _block(self, x: Any, name: str, features: int, kernel: list[int], stride: list[int]) -> Any:
        x = self._convolution(x, f"{name}.conv", features, kernel, stride, bias=self._bias)
        return self._activated(self._normalised(x, f"{name}.norm"))

    def _convolution(
        self, x: Any, name: str, features: int, kernel: list[int], stride: list[int], *, bias: bool
    ) -> Any:
        x = _convolved(x, self._weight(f"{name}.weight", features, x.shape[1], *kernel), stride)
        return self._with_bias(x, name, features) if bias else x

    def _with_bias(self, x: Any, name: str, features: int) -> Any:
        return ops.add(x, _per_channel(self._weight(f"{name}.bias", features)))

    def _normalised(self, x: Any, name: str) -> Any:
        if not self._normalises:
            return x
        features = x.shape[1]
        x = ops.mvn(x, np.array([2, 3, 4], np.int64), True, self._epsilon, "inside_sqrt")
        if not self._affine:
            return x
        x = ops.multiply(x, _per_channel(self._weight(f"{name}.weight", features)))
        return self._with_bias(x, name, features)

    def _activated(self, x: Any) -> Any:
        if self._activation == "LeakyReLU":
            return ops.prelu(x, self._slope)
        return ops.relu(x) if self._activation == "ReLU" else x

    def _weight(self, name: str, *shape: int) -> npt.NDArray[np.float32]:
        array = self._weights[name].astype(np.float32)
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{name} is of another shape or not finite")
        self._used.add(name)
        return array


def _is_alias(name: str) -> bool:
    """Return whether a weight is unused or also stored under another name.

    Only the last segmentation head is used; the others are for training.
    """
    parts = name.split(".")
    return (
        "all_modules" in parts
        or name.startswith("decoder.encoder.")
        or (parts[:2] == ["decoder", "seg_layers"])
    )


def _convolved(x: Any, weight: npt.NDArray[np.float32], stride: list[int]) -> Any:
    padding = [(size - 1) // 2 for size in weight.shape[2:]]
    # As a constant: OpenVINO converts an array number by number, which is slow.
    return ops.convolution(x, ops.constant(weight), stride, padding, padding, _three(1))


def _per_channel(vector: npt.NDArray[np.float32]) -> Any:
    return ops.constant(vector.reshape(1, -1, 1, 1, 1))


def _three(value: Any) -> list[int]:
    return [value] * 3 if isinstance(value, int) else [int(n) for n in value]
