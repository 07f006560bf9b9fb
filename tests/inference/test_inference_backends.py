"""OpenVINO and torch give what the plain torch module gives. On a GPU: ``tests/fakecuda``."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import PATCH, make_network, make_plans, write_model
from torch import nn

from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.inference import openvino_backend
from sslmedsam2.inference.model_folder import load_checkpoint, read_model_spec
from sslmedsam2.inference.network import build_margin_network
from sslmedsam2.inference.openvino_backend import OpenVinoMarginNetwork, UnsupportedNetworkError
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions

PATCHES = np.random.default_rng(4).normal(size=(3, 1, *PATCH)).astype(np.float32)
STAGES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))


def model_of(tmp_path, plans):
    """Return nnU-Net's network, and the description and weights of its model folder."""
    original = make_network(plans, seed=3)
    spec = read_model_spec(write_model(tmp_path / "model", plans, {"0": original}))
    return original, spec, load_checkpoint(spec, "0")


def built(tmp_path, plans, *, in_bfloat16=False):
    """Return the engine's network by torch and by OpenVINO, with the same weights."""
    _, spec, checkpoint = model_of(tmp_path, plans)
    compiled = OpenVinoMarginNetwork(spec, checkpoint, in_bfloat16=in_bfloat16)
    return build_margin_network(spec, checkpoint), compiled


def arguments_of(plans):
    return plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]


def by_torch(network, patches=PATCHES):
    with torch.no_grad():
        return network(torch.from_numpy(patches)).numpy()


@pytest.mark.parametrize("residual", [False, True])
def test_one_folded_head_gives_the_difference_of_two(tmp_path, residual):
    original, spec, checkpoint = model_of(tmp_path, make_plans(residual=residual, strides=STAGES))

    logits = by_torch(original)

    margin = by_torch(build_margin_network(spec, checkpoint))
    assert margin.shape == PATCHES.shape
    assert np.ptp(margin) > 1
    np.testing.assert_allclose(margin, logits[:, 1:] - logits[:, :1], atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_openvino_gives_torchs_margins(tmp_path, residual):
    network, compiled = built(tmp_path, make_plans(residual=residual, strides=STAGES))
    kinds = {type(module) for module in network.modules()}
    # A residual encoder's strided skips shrink by average pooling.
    assert (nn.AvgPool3d in kinds) is residual

    np.testing.assert_allclose(compiled(PATCHES), by_torch(network), atol=2e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"conv_bias": False},
        {"norm_op_kwargs": {"eps": 0.1, "affine": True}},
        {"nonlin_kwargs": {"negative_slope": 0.3}},
        {"nonlin": "torch.nn.ReLU", "nonlin_kwargs": None},
        {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.5}},
        {"features_per_stage": 5, "kernel_sizes": 3, "n_conv_per_stage_decoder": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("residual", [False, True])
def test_openvino_follows_the_arguments_of_the_plans(tmp_path, residual, arguments):
    plans = make_plans(residual=residual)
    arguments_of(plans).update(arguments)
    if "dropout_op" in arguments:
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        architecture["_kw_requires_import"] = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    network, compiled = built(tmp_path, plans)

    np.testing.assert_allclose(compiled(PATCHES), by_torch(network), atol=2e-4)


@pytest.mark.parametrize(
    "arguments", [{"norm_op_kwargs": {}}, {"norm_op": None, "norm_op_kwargs": None}], ids=str
)
def test_openvino_follows_plans_of_norms_without_weights(tmp_path, arguments):
    """For a plain network only: nnU-Net builds no residual one without them."""
    plans = make_plans()
    arguments_of(plans).update(arguments)
    network, compiled = built(tmp_path, plans)

    np.testing.assert_allclose(compiled(PATCHES), by_torch(network), atol=2e-4)


def test_openvino_keeps_nothing_between_calls(tmp_path):
    _, compiled = built(tmp_path, make_plans())

    first = compiled(PATCHES[:1])
    kept = first.copy()
    compiled(PATCHES[1:2])

    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"nonlin": "torch.nn.GELU", "nonlin_kwargs": {}}, "GELU"),
        ({"norm_op": "torch.nn.BatchNorm3d"}, "BatchNorm3d"),
        ({"norm_op_kwargs": {"track_running_stats": True}}, "track_running_stats"),
        ({"nonlin_first": True}, "nonlin_first"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_by_name(tmp_path, arguments, named):
    plans = make_plans()
    arguments_of(plans).update(arguments)
    _, spec, checkpoint = model_of(tmp_path, plans)

    with pytest.raises(UnsupportedNetworkError, match=named):
        OpenVinoMarginNetwork(spec, checkpoint, in_bfloat16=False)


def without_one(weights):
    del weights["encoder.stages.0.0.convs.0.conv.weight"]


def with_another(weights):
    weights["encoder.stages.9.0.convs.0.conv.weight"] = np.zeros(1, np.float32)


def of_another_shape(weights):
    name = "decoder.transpconvs.0.weight"
    weights[name] = weights[name][:1]


@pytest.mark.parametrize("change", [without_one, with_another, of_another_shape])
def test_weights_that_do_not_fit_the_plans_are_not_run(tmp_path, change):
    _, spec, checkpoint = model_of(tmp_path, make_plans())
    weights = dict(checkpoint.weights)
    change(weights)

    with pytest.raises(UnsupportedNetworkError):
        OpenVinoMarginNetwork(spec, replace(checkpoint, weights=weights), in_bfloat16=False)


def with_gelu(plans):
    """Change the activation to one that nnU-Net allows and OpenVINO's builder does not know."""
    arguments_of(plans).update(nonlin="torch.nn.GELU", nonlin_kwargs={})
    return plans


def canonical(array):
    return CanonicalVolume(
        array_zyx=array, spacing_zyx_mm=(8.0, 8.0, 8.0), reorientation=Reorientation((0, 1, 2), ())
    )


def test_the_segmenter_falls_back_to_torch_where_openvino_cannot(tmp_path, caplog):
    plans = with_gelu(make_plans())
    spec = read_model_spec(
        write_model(tmp_path / "model", plans, {"0": make_network(plans, seed=3)})
    )

    segmenter = CanonicalSegmenter(spec, EngineOptions(device="cpu"))

    assert segmenter.backend == "torch fp32"
    assert "GELU" in caplog.text
    result = segmenter.segment(canonical(PATCHES[0, 0] + 5))
    assert result.mask_zyx.shape == PATCH


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_usage_error(tmp_path):
    plans = make_plans()
    spec = read_model_spec(
        write_model(tmp_path / "model", plans, {"0": make_network(plans, seed=3)})
    )

    with pytest.raises(UsageError, match="no usable CUDA device"):
        CanonicalSegmenter(spec, EngineOptions(device="cuda"))


def test_a_signal_after_two_networks_are_gone_is_handled(tmp_path):
    """In a process of its own, for what went wrong here ended the process."""
    plans = make_plans()
    folder = write_model(tmp_path / "model", plans, {"0": make_network(plans, seed=3)})
    script = f"""
import signal
from pathlib import Path
from sslmedsam2.inference.model_folder import load_checkpoint, read_model_spec
from sslmedsam2.inference.openvino_backend import OpenVinoMarginNetwork

spec = read_model_spec(Path({str(folder)!r}))

def make():
    return OpenVinoMarginNetwork(spec, load_checkpoint(spec, "0"), in_bfloat16=False)

signal.signal(signal.SIGTERM, lambda *_: print("handled"))
first, second = make(), make()
del first
del second
signal.raise_signal(signal.SIGTERM)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


@pytest.mark.parametrize(
    ("mode", "native", "sure_from", "half"),
    [
        ("fast", True, 0.0, True),
        ("fast", False, 0.0, False),
        ("exact", True, 0.5, True),
        ("exact", False, 0.5, False),
        # Nothing tells of which scans the network is unsure.
        ("exact", True, 0.0, False),
    ],
)
def test_a_cpu_with_units_for_bfloat16_computes_in_it(
    tmp_path, monkeypatch, mode, native, sure_from, half
):
    monkeypatch.setattr(openvino_backend, "bfloat16_is_native", lambda: native)
    plans = make_plans()
    spec = read_model_spec(
        write_model(tmp_path / "model", plans, {"0": make_network(plans, seed=3)})
    )

    segmenter = CanonicalSegmenter(spec, EngineOptions("cpu", mode, sure_from=sure_from))

    assert segmenter.backend == f"openvino {'bf16' if half else 'fp32'}"


def test_what_overflows_in_bfloat16_is_computed_again_in_float32(tmp_path, monkeypatch):
    network, quick = built(tmp_path, make_plans(), in_bfloat16=True)
    precise, asked = quick._compiled, []

    def overflowing(patch):
        asked.append(patch)
        return [np.full_like(precise(patch)[0], np.inf)]

    monkeypatch.setattr(quick, "_compiled", overflowing)

    np.testing.assert_allclose(quick(PATCHES), by_torch(network), atol=1e-4)
    assert len(asked) == len(PATCHES)


def test_a_network_in_bfloat16_computes_in_float32_where_asked_to(tmp_path):
    network, quick = built(tmp_path, make_plans(), in_bfloat16=True)

    np.testing.assert_allclose(quick.in_float32(PATCHES), by_torch(network), atol=1e-4)
