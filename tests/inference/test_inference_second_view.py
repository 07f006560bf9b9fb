"""Scans of which a network is unsure are segmented with inverted contrast, and corrected."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import bright_tissue_model
from tiny_scans import SPACING_ZYX_MM, abdomen

from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.inference import openvino_backend
from sslmedsam2.inference.brightness_correction import corrected
from sslmedsam2.inference.confidence import expected_dice
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.second_view import average, inverted
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return read_model_spec(bright_tissue_model(tmp_path_factory.mktemp("second") / "model"))


def prepared_by(segmenter):
    return segmenter.prepare(
        CanonicalVolume(abdomen()[0], SPACING_ZYX_MM, Reorientation((0, 1, 2), ()))
    )


def engine(spec, *, sure_from):
    return CanonicalSegmenter(spec, EngineOptions("cpu", mirror=False, sure_from=sure_from))


def test_bright_tissue_becomes_dark_and_air_stays_dark():
    volume = np.full((8, 20, 20), -1.0, np.float32)
    volume[2:6, 2:18, 2:18] = 0.5
    volume[3:5, 6:12, 6:12] = 2.0
    turned = inverted(volume)
    assert turned[4, 8, 8] < turned[2, 4, 4]
    assert turned[0, 0, 0] < turned[2, 4, 4]
    assert abs(float(turned.mean())) < 1e-4
    assert float(turned.std()) == pytest.approx(1, abs=1e-3)
    assert turned.dtype == np.float32


def test_a_volume_of_one_value_stays_finite():
    assert np.isfinite(inverted(np.zeros((4, 8, 8), np.float32))).all()


def test_weak_margins_and_margins_without_liver_have_a_low_expected_dice():
    margin = np.full((8, 8, 8), -8.0, np.float32)
    assert expected_dice(margin) == 0
    margin[2:6, 2:6, 2:6] = 8
    assert expected_dice(margin) > 0.99
    margin[2:6, 2:6, 2:6] = 0.5
    assert expected_dice(margin) < 0.8


def test_an_unsure_scan_is_seen_in_both_views(spec):
    one_view, two_views = engine(spec, sure_from=0.0), engine(spec, sure_from=1.0)
    prepared = prepared_by(one_view)
    turned = replace(prepared, patchable=inverted(prepared.patchable))
    single, other = one_view.infer(prepared), one_view.infer(turned)
    both = two_views.infer(prepared)
    expected = corrected(average(single.margin, other.margin), prepared.patchable)
    np.testing.assert_allclose(both.margin, expected, atol=1e-5)
    assert not single.warnings
    assert [note.split(":")[0] for note in both.warnings] == ["second_view", "brightness"]


@pytest.mark.parametrize("sure_from", [0.01, 1.0])
def test_exact_computes_a_scan_again_in_float32_only_where_the_network_is_unsure(
    spec, monkeypatch, sure_from
):
    reference = engine(spec, sure_from=0.0)
    prepared = prepared_by(reference)
    single = reference.infer(prepared)
    monkeypatch.setattr(openvino_backend, "bfloat16_is_native", lambda: True)
    rounding = engine(spec, sure_from=sure_from)
    [network], in_float32 = rounding._networks, []

    def watched(patches):
        in_float32.append(len(patches))
        return openvino_backend.OpenVinoMarginNetwork.in_float32(network, patches)

    monkeypatch.setattr(network, "in_float32", watched)
    found = rounding.infer(prepared)

    if sure_from < 1:
        assert not in_float32
        np.testing.assert_allclose(found.margin, single.margin, atol=0.3)
        return
    turned = replace(prepared, patchable=inverted(prepared.patchable))
    both = average(single.margin, reference.infer(turned).margin)
    expected = corrected(both, prepared.patchable)
    np.testing.assert_array_equal(found.margin, expected)


def test_a_second_view_of_much_lower_expected_dice_does_not_count():
    sure, unsure, blind = (np.full((8, 8, 8), -8.0, np.float32) for _ in range(3))
    sure[2:6, 2:6, 2:6], unsure[2:6, 2:6, 2:6] = 8, 0.5
    assert average(sure, unsure) is sure
    assert average(sure, blind) is sure
    np.testing.assert_allclose(average(unsure, sure), (unsure + sure) / 2)
    np.testing.assert_allclose(average(sure, sure), sure)


def test_a_model_without_a_calibration_looks_once(spec):
    segmenter = engine(spec, sure_from=None)
    assert not segmenter.infer(prepared_by(segmenter)).warnings


@pytest.mark.parametrize(
    "scheme", [{"normalization": "CTNormalization"}, {"use_mask_for_norm": True}]
)
def test_models_of_hounsfield_units_or_of_masked_air_look_once(spec, scheme):
    intensity = {"percentile_00_5": 0.0, "percentile_99_5": 1.0, "mean": 0.5, "std": 0.2}
    segmenter = engine(replace(spec, intensity=intensity, **scheme), sure_from=1.0)
    assert not segmenter.infer(prepared_by(segmenter)).warnings
