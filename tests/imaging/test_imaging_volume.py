import numpy as np

from sslmedsam2.imaging.volume import block_means, mask_dice


def test_dice():
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert mask_dice(a, b) == 0.5
    assert mask_dice(a, ~a) == 0
    assert mask_dice(a, a) == 1
    assert mask_dice(a & ~a, a & ~a) == 1


def test_block_means_average_and_repeat_the_last_voxels():
    line = np.array([[[0.0, 2.0, 10.0]]])
    assert block_means(line, (1, 1, 2)).tolist() == [[[1.0, 10.0]]]
