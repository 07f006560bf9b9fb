"""The whole engine, ``exact`` mode, against ``nnUNetPredictor`` with the same weights.

nnU-Net adds up its windows in half precision. Random weights leave many voxels undecided, and that
rounding then flips them. So here nnU-Net is made to add up in single precision, as its own error
message about overflows suggests; then margins and masks have to agree closely. nnU-Net as it is, is
compared by its margins within what its rounding allows and, with the shipped weights, which decide
clearly, by its masks.
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_models import make_network, make_plans, write_model

from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.orientation import to_canonical
from sslmedsam2.imaging.reading import read_volume
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.preprocessing import mask_from_margin, prepare
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.weights.locate import SHIPPED_DIR, locate_models

SPACING_ZYX_MM = (6.5, 2.6, 2.2)
TARGET_MM = (6.0, 4.0, 4.0)
TOLERANCE = 1e-3
"""For margins of up to about 10: rounding in single precision, through a dozen layers."""

HALF_TOLERANCE = 0.05
"""The same where nnU-Net's half precision adds up some windows: a few steps of float16."""

TEST_INPUTS = Path(__file__).parents[2] / "test_inputs" / "images"


def scan():
    shape = (13, 44, 56)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = z**2 * 0.2 + y**2 / 0.8 + x**2 / 0.9 < 0.9
    waves = 60 * np.sin(5 * x + 2 * z) * np.cos(7 * y) + 120
    noise = np.random.default_rng(2).normal(0, 10, size=shape)
    return np.where(body, waves + noise, 0).astype(np.float32)


@pytest.fixture
def single_precision(monkeypatch):
    """Let nnU-Net's predictor, which asks for ``torch.half``, add up in float32 within a block."""

    @contextmanager
    def block():
        with monkeypatch.context() as patch:
            patch.setattr(torch, "half", torch.float32)
            yield

    return block


def nnunet(folder, *, mirrored):
    """Return nnU-Net's own predictor for a model folder."""
    predictor = nnUNetPredictor(
        use_mirroring=mirrored, device=torch.device("cpu"), allow_tqdm=False, verbose=False
    )
    folds = [path.name.removeprefix("fold_") for path in sorted(folder.glob("fold_*"))]
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    return predictor


def nnunet_result(predictor, array_zyx, *, spacing_zyx_mm=SPACING_ZYX_MM):
    """Return nnU-Net's margin on the model's grid and its mask on the volume's."""
    manager, settings = predictor.plans_manager, predictor.configuration_manager
    properties = {"spacing": list(spacing_zyx_mm)}
    data, _, properties = settings.preprocessor_class(verbose=False).run_case_npy(
        array_zyx[None], None, properties, manager, settings, predictor.dataset_json
    )
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
    mask = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, manager, settings, predictor.label_manager, properties
    )
    return (logits[1].float() - logits[0].float()).numpy(), mask


def engine_result(folder, array_zyx, *, mirror, spacing_zyx_mm=SPACING_ZYX_MM):
    """Return the margin and the mask before clean-up, and the backend's name."""
    spec = read_model_spec(folder)
    segmenter = CanonicalSegmenter(spec, EngineOptions(device="cpu", mirror=mirror))
    prepared = prepare(array_zyx, spacing_zyx_mm=spacing_zyx_mm, spec=spec)
    margin = segmenter._margin(prepared.patchable, segmenter._networks)
    return margin, mask_from_margin(margin, prepared), segmenter.backend


CASES = {
    "plain": {},
    "plain, two folds": {"folds": 2},
    "plain, mirrored": {"mirror_axes": (0, 1, 2)},
    "plain, mirrored in plane, two folds": {"folds": 2, "mirror_axes": (1, 2)},
    "plain, axes permuted, mirrored": {"transpose_forward": (2, 0, 1), "mirror_axes": (0, 2)},
    "residual": {"residual": True},
    "residual, mirrored, axes permuted, two folds": {
        "residual": True,
        "folds": 2,
        "mirror_axes": (0,),
        "transpose_forward": (1, 2, 0),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_margins_and_masks_are_nnunets(tmp_path, single_precision, case):
    traits = dict(CASES[case])
    folds = traits.pop("folds", 1)
    mirror_axes = traits.pop("mirror_axes", None)
    transpose = traits.get("transpose_forward", (0, 1, 2))
    plans = make_plans(spacing_mm=tuple(TARGET_MM[axis] for axis in transpose), **traits)
    networks = {str(fold): make_network(plans, seed=fold) for fold in range(folds)}
    folder = write_model(tmp_path / "model", plans, networks, mirror_axes=mirror_axes)
    array = scan()

    margin, mask, backend = engine_result(folder, array, mirror=True)

    predictor = nnunet(folder, mirrored=mirror_axes is not None)
    with single_precision():
        reference, reference_mask = nnunet_result(predictor, array)
    assert backend == "openvino fp32"
    assert np.ptp(reference) > 20 * TOLERANCE
    np.testing.assert_allclose(margin, reference, atol=TOLERANCE)
    assert (mask == reference_mask).mean() >= 0.9999
    assert 0.02 < reference_mask.mean() < 0.98


def test_margins_are_those_of_nnunet_as_it_is_within_its_rounding(tmp_path):
    plans = make_plans(spacing_mm=TARGET_MM)
    folder = write_model(tmp_path / "model", plans, {"0": make_network(plans, seed=1)})
    array = scan()

    margin, _, _ = engine_result(folder, array, mirror=False)

    # At the volume's corners a single window counts, with the least of its weights; float16 has
    # no digits left for those, so nnU-Net's margins there are coarse.
    inner = tuple(slice(n // 8, -n // 8) for n in margin.shape)
    reference, _ = nnunet_result(nnunet(folder, mirrored=False), array)
    np.testing.assert_allclose(margin[inner], reference[inner], atol=HALF_TOLERANCE)


def test_mirroring_can_be_left_out(tmp_path, single_precision):
    plans = make_plans(spacing_mm=TARGET_MM)
    networks = {"0": make_network(plans, seed=1)}
    folder = write_model(tmp_path / "model", plans, networks, mirror_axes=(0, 1, 2))
    array = scan()

    plain, _, _ = engine_result(folder, array, mirror=False)
    mirrored, _, _ = engine_result(folder, array, mirror=True)

    with single_precision():
        reference, _ = nnunet_result(nnunet(folder, mirrored=False), array)
    np.testing.assert_allclose(plain, reference, atol=TOLERANCE)
    assert np.abs(plain - mirrored).max() > 10 * TOLERANCE


def shipped_model():
    try:
        return locate_models(SHIPPED_DIR)[0].path
    except ModelError:
        return None


@pytest.mark.slow
@pytest.mark.skipif(shipped_model() is None, reason="no weights ship in weights/ yet")
def test_shipped_weights_give_nnunets_mask():
    volume = to_canonical(read_volume(TEST_INPUTS / "Vendor-C" / "0004-C" / "T2.nii.gz"))

    _, mask, _ = engine_result(
        shipped_model(), volume.array_zyx, mirror=False, spacing_zyx_mm=volume.spacing_zyx_mm
    )

    predictor = nnunet(shipped_model(), mirrored=False)
    _, reference = nnunet_result(predictor, volume.array_zyx, spacing_zyx_mm=volume.spacing_zyx_mm)
    assert reference.any()
    assert (mask == reference).mean() >= 0.9999
