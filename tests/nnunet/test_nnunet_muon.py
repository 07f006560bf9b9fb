"""The optimiser of nnU-Net's trainings: Muon for convolutions, AdamW for all other weights."""

import copy

import pytest
import torch
from torch import nn

from sslmedsam2.nnunet.muon import Muon, orthogonal


class Network(nn.Module):
    """The parts of a network of nnU-Net that the optimiser tells apart."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 6, 3, padding=1)
        self.up = nn.ConvTranspose3d(6, 4, 1)
        self.decoder = nn.Module()
        self.decoder.seg_layers = nn.ModuleList([nn.Conv3d(4, 2, 1)])

    def forward(self, data):
        return self.decoder.seg_layers[0](self.up(torch.tanh(self.conv(data))))


@pytest.fixture
def network():
    torch.manual_seed(3)
    return Network()


def _backward(network, seed):
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(1, 2, 5, 6, 7, generator=generator)
    network.zero_grad()
    network(data).square().mean().backward()


@pytest.mark.parametrize("shape", [(6, 54), (54, 6), (16, 16)])
def test_singular_values_of_an_update_are_near_one(shape):
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spread = torch.logspace(0, -1.5, min(shape))
    found = torch.linalg.svdvals(orthogonal(left @ torch.diag(spread) @ right))
    assert found.min() > 0.6
    assert found.max() < 1.3


def test_matrix_of_zeros_stays_zero():
    assert torch.equal(orthogonal(torch.zeros(4, 9)), torch.zeros(4, 9))


def test_convolutions_move_as_with_the_muon_of_torch(network):
    ours = Muon(network, lr=1e-2, weight_decay=0.1)
    kernel = network.conv.weight
    matrix = nn.Parameter(kernel.detach().reshape(6, -1).clone())
    reference = torch.optim.Muon(
        [matrix], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    start = matrix.detach().clone()
    for seed in range(3):
        _backward(network, seed)
        matrix.grad = kernel.grad.reshape(6, -1).clone()
        ours.step()
        reference.step()
    moved, expected = kernel.detach().reshape(6, -1) - start, matrix.detach() - start
    # That of torch computes in bfloat16.
    assert (moved - expected).norm() < 0.03 * expected.norm()


def test_norms_biases_and_output_layers_move_as_with_adamw(network):
    twin = copy.deepcopy(network)
    ours = Muon(network, lr=1e-2, weight_decay=0.1)
    output = twin.decoder.seg_layers[0].weight
    others = [twin.conv.bias, twin.up.bias, output, twin.decoder.seg_layers[0].bias]
    reference = torch.optim.AdamW(others, lr=1e-2, weight_decay=0.1)
    _backward(network, 0)
    for weight, same in zip(network.parameters(), twin.parameters(), strict=True):
        same.grad = weight.grad.clone()
    ours.step()
    reference.step()
    torch.testing.assert_close(network.decoder.seg_layers[0].weight, output)
    torch.testing.assert_close(network.conv.bias, twin.conv.bias)


def test_a_restored_optimiser_takes_the_same_next_step(network):
    ours = Muon(network, lr=1e-2, weight_decay=0.1)
    _backward(network, 0)
    ours.step()
    twin = copy.deepcopy(network)
    restored = Muon(twin, lr=1e-2, weight_decay=0.1)
    restored.load_state_dict(copy.deepcopy(ours.state_dict()))
    for learner, optimiser in ((network, ours), (twin, restored)):
        _backward(learner, 1)
        optimiser.step()
    for weight, same in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, same, rtol=0, atol=0)


def test_a_gradient_that_overflowed_in_half_precision_moves_nothing(network):
    before = copy.deepcopy(network.state_dict())
    ours = Muon(network, lr=1e-2, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu")
    _backward(network, 0)
    scaler.scale(torch.ones(()))
    network.conv.weight.grad[0, 0, 0, 0, 0] = torch.inf
    scaler.unscale_(ours)
    scaler.step(ours)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, before[name]), name
