"""What replaces operations without a deterministic form gives the same numbers."""

from copy import deepcopy

import pytest
import torch
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from tiny_models import make_network, make_plans
from torch import nn

from sslmedsam2.nnunet.deterministic import (
    BlockMean,
    CrossEntropy,
    arrange_deterministically,
    deterministic_algorithms,
)


@pytest.mark.parametrize("ignored", [None, 2])
@pytest.mark.parametrize("with_axis", [True, False])
def test_cross_entropy_is_nnunets(ignored, with_axis):
    torch.manual_seed(0)
    target = torch.randint(0, 2 if ignored is None else 3, (2, 1, 4, 5, 6)).float()
    ours, theirs = (torch.randn(2, 2, 4, 5, 6).requires_grad_() for _ in range(2))
    with torch.no_grad():
        theirs.copy_(ours)
    reference = (
        RobustCrossEntropyLoss() if ignored is None else RobustCrossEntropyLoss(ignore_index=2)
    )

    losses = (
        CrossEntropy(ignored)(ours, target if with_axis else target[:, 0]),
        reference(theirs, target),
    )
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad.any()


@pytest.mark.parametrize("block", [(1, 2, 2), (2, 2, 2), (2, 1, 3)])
def test_block_mean_is_average_pooling(block):
    image = torch.randn(2, 3, 4, 6, 12)

    torch.testing.assert_close(BlockMean(block)(image), nn.AvgPool3d(block, block)(image))


def test_rearranged_network_is_the_same_function_without_poolings():
    network = make_network(make_plans(residual=True), seed=1)
    arranged = arrange_deterministically(deepcopy(network))
    image = torch.randn(1, 1, 16, 32, 32)

    assert any(isinstance(module, nn.AvgPool3d) for module in network.modules())
    assert not any(isinstance(module, nn.AvgPool3d) for module in arranged.modules())
    assert list(network.state_dict()) == list(arranged.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(arranged(image), network(image))


@pytest.mark.parametrize("pool", [nn.AvgPool3d(3, 2), nn.AvgPool3d(2, 2, padding=1)])
def test_pooling_of_another_kind_is_not_mistaken(pool):
    with pytest.raises(ValueError, match="no mean over blocks"):
        arrange_deterministically(nn.Sequential(pool))


def test_torch_is_held_to_it_within_the_block_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    try:
        with deterministic_algorithms():
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert not torch.backends.cudnn.benchmark
            assert torch.backends.cudnn.deterministic
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
