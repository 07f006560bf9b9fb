import numpy as np
import pytest
import torch

from sslmedsam2.fewshot.organ_episodes import cut_organs, draw_organ_episode
from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation

LIVER, SPLEEN, KIDNEY = 1, 4, 2


def _volume(seed):
    generator = np.random.default_rng(seed)
    array = 0.3 + 0.02 * generator.standard_normal((12, 60, 60)).astype(np.float32)
    array[:, :6], array[:, -6:], array[:, :, :6], array[:, :, -6:] = 0, 0, 0, 0
    organs = np.zeros(array.shape, np.uint8)
    organs[2:9, 15:45, 10:28] = LIVER
    organs[4:11, 30:44, 36:48] = SPLEEN
    organs[1:7, 12:24, 36:46] = KIDNEY
    array[organs == SPLEEN] += 0.3
    array[organs == KIDNEY] += 0.5
    volume = CanonicalVolume(
        array_zyx=array.astype(np.float32),
        spacing_zyx_mm=(6.0, 5.0, 5.0),
        reorientation=Reorientation(axes=(0, 1, 2), flipped_axes=()),
    )
    return volume, organs


@pytest.fixture(scope="module")
def volumes():
    return [cut_organs(*_volume(seed), size=64) for seed in range(3)]


@pytest.fixture(scope="module")
def episodes(volumes):
    return [
        draw_organ_episode(volumes, seed=seed, n_support=3, n_query=2) for seed in range(0, 640, 16)
    ]


def test_organs_are_cut_as_their_image_is(volumes):
    volume = volumes[0]
    assert volume.images.shape == volume.organs.shape == (12, 1, 64, 64)
    assert set(volume.organs.unique().tolist()) == {0, LIVER, KIDNEY, SPLEEN}
    assert volume.step_mm == 6.0
    assert volume.extents == {KIDNEY: (1, 6), SPLEEN: (4, 10)}
    spleen = volume.images[volume.organs == SPLEEN].float().mean()
    assert spleen > volume.images[volume.organs == LIVER].float().mean()


def test_the_liver_is_never_a_target(volumes):
    assert all(volume.pixels[LIVER] == 0 for volume in volumes)
    assert all(LIVER not in volume.extents for volume in volumes)
    image, organs = _volume(0)
    only_liver = cut_organs(image, np.where(organs == LIVER, organs, 0), size=64)
    assert not only_liver.extents
    assert not only_liver.pixels.any()


def test_the_seed_decides_the_episode(volumes):
    one, again, other = (
        draw_organ_episode(volumes, seed=seed, n_support=2, n_query=3) for seed in (5, 5, 6)
    )
    assert torch.equal(one.query_images, again.query_images)
    assert torch.equal(one.support_masks, again.support_masks)
    assert not torch.equal(one.query_images, other.query_images)


def test_images_are_in_range_and_masks_are_0_or_1(episodes):
    for episode in episodes:
        assert episode.support_images.shape == (3, 1, 64, 64)
        assert episode.query_masks.shape == (2, 1, 64, 64)
        for images in (episode.support_images, episode.query_images):
            assert images.min() >= 0
            assert images.max() <= 1
        assert set(episode.query_masks.unique().tolist()) <= {0.0, 1.0}


def test_targets_are_shown_by_supports_and_by_most_queries(episodes):
    assert all(episode.support_masks.any() for episode in episodes)
    shown = [bool(episode.query_masks.any()) for episode in episodes]
    assert sum(shown) > 0.8 * len(shown)


def test_queries_have_other_contrasts_from_episode_to_episode(episodes):
    levels = torch.stack([episode.query_images.mean() for episode in episodes])
    assert levels.std() > 0.03
