from itertools import pairwise

import numpy as np
import pytest
import torch

from sslmedsam2.fewshot.synthetic import SyntheticTask, draw_episode

TASK = SyntheticTask(image_size=64)
SEEDS = range(12)


def _draw(seed, task=TASK, *, n_support=3, n_query=2):
    return draw_episode(task, seed=seed, n_support=n_support, n_query=n_query)


@pytest.fixture(scope="module")
def episodes():
    return [_draw(seed) for seed in SEEDS]


def _same(one, other):
    return [torch.equal(a, b) for a, b in zip(_parts(one), _parts(other), strict=True)]


def _parts(episode):
    return (
        episode.support_images,
        episode.support_masks,
        episode.query_images,
        episode.query_masks,
    )


def test_the_seed_decides_the_episode(episodes):
    assert all(_same(_draw(3), episodes[3]))
    assert not any(_same(_draw(3), episodes[4]))


def test_global_random_numbers_are_neither_used_nor_moved(episodes):
    torch.manual_seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert all(_same(_draw(5), episodes[5]))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize(("n_support", "n_query", "size"), [(1, 1, 64), (8, 3, 64), (2, 2, 96)])
def test_shapes_are_as_asked_for(n_support, n_query, size):
    task = SyntheticTask(image_size=size)
    episode = _draw(0, task, n_support=n_support, n_query=n_query)
    assert episode.support_images.shape == (n_support, 1, size, size)
    assert episode.support_masks.shape == (n_support, 1, size, size)
    assert episode.query_images.shape == (n_query, 1, size, size)
    assert episode.query_masks.shape == (n_query, 1, size, size)
    assert all(part.dtype == torch.float32 for part in _parts(episode))


def test_images_are_pictures(episodes):
    for episode in episodes:
        for images in (episode.support_images, episode.query_images):
            assert images.isfinite().all()
            assert images.min() >= 0
            assert images.max() <= 1
            assert (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).min() > 0.2, "flat"


def test_masks_are_0_or_1(episodes):
    for episode in episodes:
        for masks in (episode.support_masks, episode.query_masks):
            assert set(masks.unique().tolist()) <= {0.0, 1.0}


def test_the_target_is_in_a_support_and_never_everywhere(episodes):
    for episode in episodes:
        share = episode.support_masks.mean((1, 2, 3))
        assert share.max() > 0
        assert share.max() < 0.8


def test_the_target_is_in_most_queries_and_absent_from_some():
    present = torch.stack(
        [_draw(seed, n_support=1, n_query=2).query_masks.amax((1, 2, 3)) for seed in range(24)]
    )
    assert 0.5 < present.mean() < 1


def test_neighbouring_query_slices_resemble_each_other(episodes):
    """Unlike slices of other episodes."""

    def overlap(a, b):
        return 2 * (a * b).sum() / (a + b).sum().clamp_min(1)

    both = [e.query_masks for e in episodes if e.query_masks.amax((1, 2, 3)).min() > 0]
    assert len(both) > 3
    near = np.mean([overlap(masks[0], masks[1]).item() for masks in both])
    far = np.mean([overlap(one[0], other[0]).item() for one, other in pairwise(both)])
    assert near > far + 0.2


def test_the_target_can_be_told_from_its_surroundings_in_some_episode(episodes):
    """Its mean brightness differs from the rest of the slice_image's by more than noise."""
    gaps = []
    for episode in episodes:
        inside = episode.support_masks > 0
        gaps.append(
            (episode.support_images[inside].mean() - episode.support_images[~inside].mean()).abs()
        )
    assert max(gaps) > 0.15
