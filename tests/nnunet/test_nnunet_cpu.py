"""The network rearranged for a CPU is the same function, and its weights fit both forms."""

import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tiny_models import make_network, make_plans
from torch import nn

from sslmedsam2.nnunet import cpu
from sslmedsam2.nnunet.cpu import USUAL_ARITHMETIC, arithmetic_of_fold, arrange_for_cpu

PATCH = (1, 1, 16, 32, 32)


@pytest.fixture(params=["plain", "residual"])
def twins(request):
    """A small U-Net, and a rearranged copy of it."""
    network = make_network(make_plans(residual=request.param == "residual"), seed=3)
    return network, arrange_for_cpu(deepcopy(network))


def test_outputs_and_gradients_are_the_same(twins):
    network, arranged = twins
    torch.manual_seed(0)
    image, weighting = torch.randn(PATCH), torch.randn(1, 2, *PATCH[2:])

    outputs = network(image), arranged(image.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)
    for output in outputs:
        (output * weighting).mean().backward()
    for one, other in zip(network.parameters(), arranged.parameters(), strict=True):
        # A bias that a norm follows has no effect, and its gradient is rounding alone.
        scale = max(1e-6, one.grad.abs().max().item())
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3 * scale + 1e-7)


def test_weights_fit_both_forms(twins):
    network, arranged = twins
    before, after = network.state_dict(), arranged.state_dict()

    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    nn.init.zeros_(arranged.decoder.seg_layers[-1].weight)
    network.load_state_dict(arranged.state_dict())
    assert not network.decoder.seg_layers[-1].weight.any()


def test_no_instance_norm_is_left(twins):
    network, arranged = twins
    assert any(isinstance(module, nn.InstanceNorm3d) for module in network.modules())

    assert not any(isinstance(module, nn.InstanceNorm3d) for module in arranged.modules())
    kernels = [module.weight for module in arranged.modules() if isinstance(module, nn.Conv3d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)


def test_the_quickest_arithmetic_is_measured_and_noted_for_the_next_start(tmp_path, monkeypatch):
    # Compiling takes half a minute, and changes nothing that is looked at here.
    monkeypatch.setattr(cpu, "can_compile", lambda: False)
    monkeypatch.setattr(cpu, "_MEASURED", {})
    network = arrange_for_cpu(make_network(make_plans(), seed=3))
    patch = torch.randn(PATCH)

    first = arithmetic_of_fold(tmp_path, network, patch=patch)
    assert first.seconds
    assert min(first.seconds.values()) > 0
    assert arithmetic_of_fold(tmp_path, network, patch=patch) == first


def test_a_network_is_compiled_for_channels_last_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "can_compile", lambda: True)
    monkeypatch.setattr(cpu, "_MEASURED", {})
    monkeypatch.setattr(torch, "compile", lambda network: network)
    network = arrange_for_cpu(make_network(make_plans(), seed=3))

    found = arithmetic_of_fold(tmp_path, network, patch=torch.randn(PATCH))

    compiled = [name for name in found.seconds if "compiled" in name]
    assert compiled
    assert all(name.endswith("channels-last") for name in compiled)


def test_folds_of_one_process_share_a_measurement_and_each_notes_it(tmp_path, monkeypatch):
    measurements = []
    noted = replace(USUAL_ARITHMETIC, cpu=cpu._cpu_name())
    monkeypatch.setattr(cpu, "_MEASURED", {})
    monkeypatch.setattr(
        cpu, "_measure_arithmetic", lambda *_, **__: measurements.append(1) or noted
    )
    network = make_network(make_plans(), seed=3)
    folders = [tmp_path / "fold_0", tmp_path / "fold_1"]
    for folder in folders:
        folder.mkdir()
        assert arithmetic_of_fold(folder, network, patch=torch.randn(PATCH)) == noted

    assert len(measurements) == 1
    assert all((folder / "cpu_arithmetic.json").is_file() for folder in folders)
    arithmetic_of_fold(tmp_path, network, patch=torch.randn(1, 1, 8, 16, 16))
    assert len(measurements) == 2


@pytest.mark.slow
def test_network_that_cannot_be_compiled_is_run_as_it_is():
    script = """
import torch
from sslmedsam2.nnunet import cpu
assert cpu.can_compile()
assert torch.compile(lambda x: x + 1)(torch.zeros(2)).tolist() == [1, 1]
"""
    environment = {**os.environ, "CXX": "/bin/false"}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
