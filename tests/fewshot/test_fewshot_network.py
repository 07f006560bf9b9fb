import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from tiny_sam2 import TINY

from sslmedsam2.fewshot.checkpoint import CompactArchitecture, build_compact, build_hiera_tiny
from sslmedsam2.fewshot.memory import encode_slices


def _n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_compact_network_is_small_enough_to_ship():
    n = _n_parameters(build_compact(CompactArchitecture()))
    assert 2e6 < n < 8e6
    assert 2 * n < 15e6  # bytes in half precision


@pytest.mark.parametrize("image_size", [64, 96, 128, 192])
def test_features_have_strides_4_8_and_16(image_size):
    architecture = CompactArchitecture(
        image_size=image_size, embed_dim=8, stages=(1, 1, 2, 1), d_model=32, mem_dim=16
    )
    model = build_compact(architecture).eval()
    assert model.image_size == image_size
    with torch.no_grad():
        features = encode_slices(model, torch.zeros(2, 1, image_size, image_size))
    assert features.fine.shape[-2:] == (image_size // 4, image_size // 4)
    assert features.middle.shape[-2:] == (image_size // 8, image_size // 8)
    assert features.coarse.shape == (2, 32, image_size // 16, image_size // 16)


def test_the_seed_decides_the_first_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return build_compact(TINY).state_dict()["maskmem_tpos_enc"]

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_building_neither_needs_nor_leaves_a_state_of_hydra():
    GlobalHydra.instance().clear()
    first, second = build_compact(TINY), build_compact(TINY)
    assert not GlobalHydra.instance().is_initialized()
    assert _n_parameters(first) == _n_parameters(second)


def test_a_new_network_is_ready_to_train():
    model = build_compact(TINY)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_hiera_tiny_is_the_official_network_at_512_pixels():
    model = build_hiera_tiny(512)
    assert model.image_size == 512
    # Of the published checkpoint sam2.1_hiera_tiny.pt.
    assert _n_parameters(model) == pytest.approx(38.9e6, rel=0.01)
    with torch.no_grad():
        features = encode_slices(model.eval(), torch.zeros(1, 1, 512, 512))
    assert features.coarse.shape == (1, 256, 32, 32)
