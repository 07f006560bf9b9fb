"""What the engine says of its masks, and what it offers where it finds nothing."""

import numpy as np
import pytest
from tiny_models import bright_tissue_model
from tiny_scans import SPACING_ZYX_MM, abdomen

from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.inference import openvino_backend
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions


def canonical(array):
    return CanonicalVolume(
        array_zyx=array,
        spacing_zyx_mm=SPACING_ZYX_MM,
        reorientation=Reorientation((0, 1, 2), ()),
    )


@pytest.fixture
def make_segmenter(tmp_path):
    def make(*, threshold=1.0, mode="exact", transpose=(0, 1, 2)):
        folder = tmp_path / "model"
        if not folder.exists():
            bright_tissue_model(folder, threshold=threshold, transpose_forward=transpose)
        return CanonicalSegmenter(
            read_model_spec(folder), EngineOptions(device="cpu", mode=mode, mirror=False)
        )

    return make


class CountingNetwork:
    """Passes patches on to a network and counts them."""

    def __init__(self, network):
        self.network = network
        self.n_patches = 0

    def __call__(self, patches):
        self.n_patches += len(patches)
        return self.network(patches)

    def __getattr__(self, name):
        return getattr(self.network, name)


def dice(a, b):
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_the_liver_is_found_and_the_spot_dropped(make_segmenter, transpose):
    array, liver = abdomen()

    result = make_segmenter(transpose=transpose).segment(canonical(array))

    assert dice(result.mask_zyx, liver) > 0.85
    assert result.n_components >= 2
    assert 0.5 < result.mean_confidence < 1
    assert result.relaxed_mask_zyx is None
    assert result.warnings == ()
    assert set(result.seconds) == {"prepare", "network", "finish"}


def wide_abdomen():
    """Return an abdomen amid so much air that some windows hold no liver."""
    wide = np.pad(abdomen()[0], ((0, 0), (40, 60), (70, 30)), constant_values=18.0)
    return wide + np.random.default_rng(1).normal(0, 2, size=wide.shape).astype(np.float32)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_fast_skips_windows_without_liver_and_finds_the_same_one(make_segmenter, transpose):
    wide = wide_abdomen()
    results, n_patches = {}, {}
    for mode in ("exact", "fast"):
        segmenter = make_segmenter(transpose=transpose, mode=mode)
        [network] = segmenter._networks
        counted = segmenter._networks[0] = CountingNetwork(network)
        results[mode] = segmenter.segment(canonical(wide)).mask_zyx
        n_patches[mode] = counted.n_patches

    assert results["exact"].any()
    assert dice(results["fast"], results["exact"]) > 0.99
    assert n_patches["fast"] < 0.7 * n_patches["exact"]


@pytest.mark.parametrize(("sure_from", "skips"), [(0.01, True), (1.0, False)])
def test_fast_skips_no_window_where_the_network_is_unsure(tmp_path, monkeypatch, sure_from, skips):
    monkeypatch.setattr(openvino_backend, "bfloat16_is_native", lambda: False)
    spec = read_model_spec(bright_tissue_model(tmp_path / "model"))
    margins = []
    for mode in ("exact", "fast"):
        engine = EngineOptions("cpu", mode, mirror=False, sure_from=sure_from)
        segmenter = CanonicalSegmenter(spec, engine)
        margins.append(segmenter.infer(segmenter.prepare(canonical(wide_abdomen()))).margin)

    assert np.array_equal(*margins) != skips


def test_where_nothing_is_liver_the_likeliest_region_of_a_plausible_size_is_offered(
    make_segmenter,
):
    array, liver = abdomen()

    result = make_segmenter(threshold=50.0).segment(canonical(array))

    assert result.n_components == 0
    assert not result.mask_zyx.any()
    assert result.mean_confidence is None
    relaxed = result.relaxed_mask_zyx
    volume_ml = relaxed.sum() * np.prod(SPACING_ZYX_MM) / 1000
    # About the smallest plausible liver, and where the network is least unsure.
    assert 100 < volume_ml < 300
    assert (relaxed & liver).sum() > 0.9 * relaxed.sum()


def test_the_relaxed_region_of_a_tiny_volume_is_not_empty(make_segmenter):
    array = np.random.default_rng(0).normal(100, 20, size=(6, 10, 12)).astype(np.float32)

    result = make_segmenter(threshold=50.0).segment(canonical(array))

    assert result.n_components == 0
    assert result.relaxed_mask_zyx.any()


def test_the_same_volume_gives_the_same_result_twice(make_segmenter):
    array, _ = abdomen()
    before = array.copy()
    segmenter = make_segmenter()

    first = segmenter.segment(canonical(array))
    second = segmenter.segment(canonical(array))

    np.testing.assert_array_equal(first.mask_zyx, second.mask_zyx)
    np.testing.assert_array_equal(array, before)


def test_several_folds_are_loaded_and_averaged(tmp_path):
    folder = bright_tissue_model(tmp_path / "model", threshold=1.0, fold_1=50.0)
    array, _ = abdomen()

    both = CanonicalSegmenter(read_model_spec(folder), EngineOptions(device="cpu"))
    first = CanonicalSegmenter(read_model_spec(folder, folds=("0",)), EngineOptions(device="cpu"))

    assert first.segment(canonical(array)).n_components > 0
    assert both.segment(canonical(array)).n_components == 0


def test_a_slab_thinner_than_half_a_voxel_of_the_model_is_segmented(make_segmenter):
    array, _ = abdomen()
    thin = CanonicalVolume(array[12:14], (1.0, 4.0, 4.0), Reorientation((0, 1, 2), ()))

    assert make_segmenter().segment(thin).mask_zyx.shape == thin.array_zyx.shape
