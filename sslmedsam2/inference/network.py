"""Build nnU-Net's network from its plans, with the two output channels folded into one margin."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sslmedsam2.errors import ModelError
from sslmedsam2.inference.model_folder import Checkpoint, ModelSpec
from sslmedsam2.weights.checkpoint import as_tensors
from sslmedsam2.weights.model_files import PLANS_FILE


def build_margin_network(spec: ModelSpec, checkpoint: Checkpoint) -> nn.Module:
    """Return the network in evaluation mode, giving ``liver logit - background logit``.

    The last layer is a 1 x 1 x 1 convolution, so subtracting its two filters once is the same as
    subtracting its two outputs for each voxel.

    Raises ModelError: the architecture is unknown here, or the weights do not fit it.
    """
    network, weights = _skeleton(spec), as_tensors(checkpoint.weights)
    _check_fit(spec, network.state_dict(), weights)
    network.load_state_dict(weights, assign=True)
    heads = network.decoder.seg_layers
    heads[-1] = _folded(heads[-1])
    return network.eval().requires_grad_(False).float()


def _check_fit(
    spec: ModelSpec, wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
) -> None:
    """Refuse weights of another network; the line counts the differences, a few hundred often."""
    missing, unknown = wanted.keys() - given.keys(), given.keys() - wanted.keys()
    shaped = [key for key in wanted.keys() & given.keys() if wanted[key].shape != given[key].shape]
    infinite = [key for key in given if not bool(torch.isfinite(given[key]).all())]
    found = [
        f"{len(keys)} {what}, such as {min(keys)[:60]}"
        for keys, what in (
            (missing, "missing"),
            (unknown, "unknown"),
            (shaped, "of another shape"),
            (infinite, "not finite"),
        )
        if keys
    ]
    if found:
        raise ModelError(
            spec.path.name,
            reason=f"the weights do not fit the plans: {found[0]}",
            remedy="Take plans.json and checkpoint from the same training",
        )


def _skeleton(spec: ModelSpec) -> Any:
    """Build the network without memory for its weights, which ``assign`` brings along."""
    network_class = pydoc.locate(spec.architecture.class_name)
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise _unknown(spec)
    kwargs = dict(spec.architecture.kwargs)
    try:
        for name in spec.architecture.kwargs_to_import:
            if kwargs[name] is not None:
                kwargs[name] = pydoc.locate(kwargs[name])
        with torch.device("meta"):
            network = network_class(
                input_channels=1, num_classes=2, deep_supervision=False, **kwargs
            )
    except Exception as error:
        # Plans are data from outside, and the classes they name check their arguments little.
        raise ModelError(
            spec.path / PLANS_FILE,
            reason=f"the architecture cannot be built ({type(error).__name__}: {str(error)[:100]})",
            remedy="Use the plans.json that nnU-Net wrote for this training",
        ) from error
    if not hasattr(getattr(network, "decoder", None), "seg_layers"):
        raise _unknown(spec)
    return network


def _unknown(spec: ModelSpec) -> ModelError:
    return ModelError(
        spec.path / PLANS_FILE,
        reason=f"unknown architecture '{spec.architecture.class_name[:80]}'",
        remedy="Install the package that defines it, or use a standard nnU-Net U-Net",
    )


def _folded(head: nn.Conv3d) -> nn.Conv3d:
    margin = nn.Conv3d(head.in_channels, 1, 1, bias=head.bias is not None)
    margin.weight = nn.Parameter(head.weight[1:2].float() - head.weight[0:1].float())
    if head.bias is not None:
        margin.bias = nn.Parameter(head.bias[1:2].float() - head.bias[0:1].float())
    return margin
