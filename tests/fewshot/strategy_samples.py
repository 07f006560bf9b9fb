"""What tests of both few-shot strategies ask of them."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
from tiny_sam2 import make_query, make_support
from tiny_scans import centred_grid

from sslmedsam2.fewshot.outcome import entropy_bits, largest_piece
from sslmedsam2.fewshot.strategy import FewShotSettings, build_strategy


def supports_of(geometry, *, names=("s1/GED4", "s2/GED4", "s3/GED4")):
    """Return a labelled phantom for each name, each of another patient."""
    return [make_support(name, seed=k, geometry=geometry) for k, name in enumerate(names, 1)]


def build(sam2, supports, folder, **settings):
    """Build a strategy; ``folder`` takes what does not fit into memory."""
    return build_strategy(FewShotSettings(**settings), sam2, supports, scratch_dir=folder)


def assert_same_result(one, other):
    """Compare to the bit; supports by name, since their order says nothing."""
    np.testing.assert_array_equal(one.probability_zyx, other.probability_zyx)
    np.testing.assert_array_equal(one.mask_zyx, other.mask_zyx)
    np.testing.assert_array_equal(one.uncertainty_zyx, other.uncertainty_zyx)
    assert one.evidence == other.evidence
    assert sorted(one.supports, key=lambda s: s.name) == sorted(
        other.supports, key=lambda s: s.name
    )
    assert one.warnings == other.warnings


def assert_sound(result, query):
    """Check what holds for any result."""
    shape = query.image.array_zyx.shape
    assert result.probability_zyx.shape == result.mask_zyx.shape == shape
    assert result.probability_zyx.dtype == np.float32
    assert result.probability_zyx.min() >= 0
    assert result.probability_zyx.max() <= 1
    assert np.ptp(result.probability_zyx) > 0.01, "nothing was decided"
    np.testing.assert_allclose(result.uncertainty_zyx, entropy_bits(result.probability_zyx))
    np.testing.assert_array_equal(result.mask_zyx, largest_piece(result.probability_zyx > 0.5)[0])
    assert abs(sum(support.weight for support in result.supports) - 1) < 1e-6


@contextmanager
def counted_slices(sam2):
    """Count the slices that the image encoder itself sees; yields a list with one number."""
    seen = [0]

    def note(module, arguments, output):  # noqa: ARG001
        seen[0] += len(arguments[0])

    hook = sam2.model.image_encoder.register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


def empty_query(geometry):
    """Return a query of zeros."""
    query = make_query("zero/T2", seed=1, geometry=geometry)
    query.image.array_zyx[:] = 0
    return query


def short_grid(n_slices):
    """Return a grid of few thick slices."""
    return centred_grid((n_slices, 40, 50), spacing_zyx_mm=(130.0 / n_slices, 7.0, 7.0))
