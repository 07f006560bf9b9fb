"""OpenVINO and torch give what the plain torch module gives. On a GPU: ``tests/fakecuda``."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_models import PATCH, make_network, make_plans, write_model
from torch import nn

from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.inference import openvino_backend
from sslmedsam2.inference import segmenter as segmenter_module
from sslmedsam2.inference.model_folder import load_checkpoint, read_model_spec
from sslmedsam2.inference.network import build_margin_network
from sslmedsam2.inference.openvino_backend import OpenVinoMarginNetwork, UnsupportedLayerError
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions

PATCHES = np.random.default_rng(4).normal(size=(3, 1, *PATCH)).astype(np.float32)
STAGES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))


def built(tmp_path, plans):
    """Return nnU-Net's network and the engine's, with the same weights."""
    original = make_network(plans, seed=3)
    spec = read_model_spec(write_model(tmp_path / "model", plans, {"0": original}))
    return original, build_margin_network(spec, load_checkpoint(spec, "0"))


def by_torch(network, patches=PATCHES):
    with torch.no_grad():
        return network(torch.from_numpy(patches)).numpy()


@pytest.mark.parametrize("residual", [False, True])
def test_one_folded_head_gives_the_difference_of_two(tmp_path, residual):
    original, margin_network = built(tmp_path, make_plans(residual=residual, strides=STAGES))

    logits = by_torch(original)

    margin = by_torch(margin_network)
    assert margin.shape == PATCHES.shape
    assert np.ptp(margin) > 1
    np.testing.assert_allclose(margin, logits[:, 1:] - logits[:, :1], atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_openvino_gives_torchs_margins(tmp_path, residual):
    _, network = built(tmp_path, make_plans(residual=residual, strides=STAGES))
    kinds = {type(module) for module in network.modules()}
    # A residual encoder's strided skips shrink by average pooling.
    assert (nn.AvgPool3d in kinds) is residual

    compiled = OpenVinoMarginNetwork(network, patch_size=PATCH, half_precision=False)

    np.testing.assert_allclose(compiled(PATCHES), by_torch(network), atol=2e-4)


def test_openvino_keeps_nothing_between_calls(tmp_path):
    _, network = built(tmp_path, make_plans())
    compiled = OpenVinoMarginNetwork(network, patch_size=PATCH, half_precision=False)

    first = compiled(PATCHES[:1])
    kept = first.copy()
    compiled(PATCHES[1:2])

    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(1, 1, 3, padding=1, padding_mode="circular"),
        nn.Conv3d(1, 1, 3, padding="same"),
        nn.ConvTranspose3d(1, 1, 2, stride=2, output_padding=1),
        nn.InstanceNorm3d(1, track_running_stats=True),
        nn.AvgPool3d(3, padding=1),
        nn.GELU(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_without_translation_is_refused_by_name(layer):
    with pytest.raises(UnsupportedLayerError, match=type(layer).__name__):
        OpenVinoMarginNetwork(nn.Sequential(layer).eval(), patch_size=PATCH, half_precision=False)


def with_gelu(plans):
    """Change the activation to one that nnU-Net allows and the translation does not know."""
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs.update(nonlin="torch.nn.GELU", nonlin_kwargs={})
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


def test_a_signal_after_two_networks_are_gone_is_handled():
    """In a process of its own, for what went wrong here ended the process."""
    script = """
import signal
from torch import nn
from sslmedsam2.inference.openvino_backend import OpenVinoMarginNetwork

def make():
    network = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1))
    return OpenVinoMarginNetwork(network, patch_size=(8, 8, 8), half_precision=False)

signal.signal(signal.SIGTERM, lambda *_: print("handled"))
first, second = make(), make()
del first
del second
signal.raise_signal(signal.SIGTERM)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


@pytest.mark.parametrize(
    ("mode", "matrix_units", "half"),
    [("fast", True, True), ("fast", False, False), ("exact", True, False)],
)
def test_fast_computes_in_bfloat16_where_the_cpu_has_units_for_it(
    tmp_path, monkeypatch, mode, matrix_units, half
):
    asked = []

    def compiled(_network, **options):
        asked.append(options["half_precision"])

    monkeypatch.setattr(openvino_backend, "OpenVinoMarginNetwork", compiled)
    monkeypatch.setattr(segmenter_module, "has_matrix_units", lambda: matrix_units)
    plans = make_plans()
    spec = read_model_spec(
        write_model(tmp_path / "model", plans, {"0": make_network(plans, seed=3)})
    )

    CanonicalSegmenter(spec, EngineOptions(device="cpu", mode=mode))
    assert asked == [half]


def test_what_overflows_in_bfloat16_is_computed_again_in_float32(tmp_path, monkeypatch):
    plans = make_plans()
    _, network = built(tmp_path, plans)
    quick = OpenVinoMarginNetwork(network, patch_size=PATCH, half_precision=True)
    precise, asked = quick._compiled, []

    def overflowing(patch):
        asked.append(patch)
        return [np.full_like(precise(patch)[0], np.inf)]

    monkeypatch.setattr(quick, "_compiled", overflowing)

    np.testing.assert_allclose(quick(PATCHES), by_torch(network), atol=1e-4)
    assert len(asked) == len(PATCHES)
