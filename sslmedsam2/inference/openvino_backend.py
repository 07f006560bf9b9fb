"""Run a U-Net on the CPU through OpenVINO, built layer by layer from the torch modules.

OpenVINO's own converter traces the network with random data and takes 10-50 s. The networks here
consist of a few layer types, so the graph is built directly, in well under a second; ``torch.fx``
gives the order of the layers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch
from openvino import opset13 as ops
from torch import fx, nn


class UnsupportedLayerError(Exception):
    """The network holds a layer that has no translation here."""


class OpenVinoMarginNetwork:
    """A compiled network for patches of one size; see ``sliding_window.MarginNetwork``."""

    def __init__(
        self, network: nn.Module, *, patch_size: tuple[int, int, int], half_precision: bool
    ) -> None:
        """Translate and compile ``network``; ``half_precision`` asks for bfloat16.

        Raises
        ------
        UnsupportedLayerError
            A layer has no translation.
        """
        model = _translate(network, patch_size)
        self._compiled = _compiled(model, "bf16" if half_precision else "f32")
        self._for_retries = model if half_precision else None
        self._precise: ov.CompiledModel | None = None
        self.backend = f"openvino {'bf16' if half_precision else 'fp32'}"

    def __call__(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Predict the patches one by one: on a CPU a larger batch is no faster.

        A patch that overflows in bfloat16 is computed again in float32.
        """
        return np.concatenate([self._one(patches[i : i + 1]) for i in range(len(patches))])

    def _one(self, patch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        patch = np.ascontiguousarray(patch)
        margin = self._compiled(patch)[0]
        if self._for_retries is None or np.isfinite(margin).all():
            return margin
        if self._precise is None:
            self._precise = _compiled(self._for_retries, "f32")
        return self._precise(patch)[0]


def _compiled(model: ov.Model, precision: str) -> ov.CompiledModel:
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    return _core().compile_model(model, "CPU", settings)


@functools.cache
def _core() -> ov.Core:
    """Return the process's one OpenVINO core, which is never given back.

    Each core puts a signal stack of its own in place and, at its end, the one from before. Two
    cores that overlap and end in the order in which they began leave the freed stack of the first
    in place, and the next signal, a Ctrl-C even, kills the process by a segmentation fault.
    """
    return ov.Core()


def bf16_is_native() -> bool:
    """Tell whether OpenVINO computes bfloat16 on this CPU instead of emulating it."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _translate(network: nn.Module, patch_size: tuple[int, int, int]) -> ov.Model:
    graph = fx.symbolic_trace(network).graph
    modules = dict(network.named_modules())
    values: dict[fx.Node, Any] = {}
    inputs = []

    def lookup(argument: Any) -> Any:
        return fx.node.map_arg(argument, values.__getitem__)

    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = ops.parameter([1, 1, *patch_size], np.float32)
            inputs.append(values[node])
        elif node.op == "call_module":
            layer = modules[str(node.target)]
            translate = _LAYERS.get(type(layer))
            if translate is None:
                raise UnsupportedLayerError(type(layer).__name__)
            values[node] = translate(layer, lookup(node.args[0]))
        elif node.op == "call_function":
            values[node] = _function(node, lookup)
        elif node.op == "output":
            return ov.Model([lookup(node.args[0])], inputs)
        else:
            raise UnsupportedLayerError(f"{node.op} {node.target}")
    raise UnsupportedLayerError("a graph without an output")


def _function(node: fx.Node, lookup: Callable[[Any], Any]) -> Any:
    if node.target is torch.cat:
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return ops.concat(list(lookup(node.args[0])), axis)
    if node.target in (operator.add, operator.iadd, torch.add):
        return ops.add(lookup(node.args[0]), lookup(node.args[1]))
    raise UnsupportedLayerError(str(node.target))


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy()


def _per_channel(vector: torch.Tensor) -> npt.NDArray[np.float32]:
    return _array(vector).reshape(1, -1, 1, 1, 1)


def _with_bias(node: Any, bias: torch.Tensor | None) -> Any:
    return node if bias is None else ops.add(node, _per_channel(bias))


def _convolution(layer: nn.Conv3d, x: Any) -> Any:
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UnsupportedLayerError(repr(layer))
    padding = list(layer.padding)
    node = ops.convolution(
        x, _array(layer.weight), list(layer.stride), padding, padding, list(layer.dilation)
    )
    return _with_bias(node, layer.bias)


def _transposed_convolution(layer: nn.ConvTranspose3d, x: Any) -> Any:
    if layer.groups != 1 or any(layer.padding) or any(layer.output_padding):
        raise UnsupportedLayerError(repr(layer))
    node = ops.convolution_backprop_data(
        x, _array(layer.weight), strides=list(layer.stride), dilations=list(layer.dilation)
    )
    return _with_bias(node, layer.bias)


def _instance_norm(layer: nn.InstanceNorm3d, x: Any) -> Any:
    if layer.track_running_stats:
        raise UnsupportedLayerError(repr(layer))
    axes = np.array([2, 3, 4], np.int64)
    node = ops.mvn(x, axes, True, layer.eps, "inside_sqrt")
    if layer.affine:
        node = ops.multiply(node, _per_channel(layer.weight))
        node = ops.add(node, _per_channel(layer.bias))
    return node


def _leaky_relu(layer: nn.LeakyReLU, x: Any) -> Any:
    return ops.prelu(x, np.array([layer.negative_slope], np.float32))


def _average_pool(layer: nn.AvgPool3d, x: Any) -> Any:
    kernel, stride, padding = (
        [value] * 3 if isinstance(value, int) else list(value)
        for value in (layer.kernel_size, layer.stride, layer.padding)
    )
    if any(padding) or layer.ceil_mode:
        raise UnsupportedLayerError(repr(layer))
    return ops.avg_pool(x, stride, padding, padding, kernel, exclude_pad=True)


def _pass_through(_layer: nn.Module, x: Any) -> Any:
    return x


_LAYERS: dict[type[nn.Module], Callable[[Any, Any], Any]] = {
    nn.Conv3d: _convolution,
    nn.ConvTranspose3d: _transposed_convolution,
    nn.InstanceNorm3d: _instance_norm,
    nn.LeakyReLU: _leaky_relu,
    nn.ReLU: lambda _layer, x: ops.relu(x),
    nn.AvgPool3d: _average_pool,
    nn.Identity: _pass_through,
    nn.Dropout3d: _pass_through,
}
