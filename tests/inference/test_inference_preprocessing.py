"""The engine's preparation of a volume against nnU-Net's preprocessor."""

import json

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_models import make_network, make_plans, write_model

from sslmedsam2.errors import ModelError
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.preprocessing import mask_from_margin, prepare

SPACING_ZYX_MM = (6.5, 2.5, 2.1)
TARGET_MM = (4.0, 3.0, 2.5)
SCHEMES = (
    "ZScoreNormalization",
    "CTNormalization",
    "RescaleTo01Normalization",
    "NoNormalization",
)


def scan(shape=(12, 34, 38)):
    """Return a bright ellipsoid with a hole in a border of zeros that is uneven on all sides."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = (z + 0.1) ** 2 + (y - 0.15) ** 2 / 0.5 + (x + 0.2) ** 2 / 0.4 < 0.8
    values = np.random.default_rng(8).normal(90, 35, size=shape).clip(1, 250)
    array = np.where(body, values, 0).astype(np.float32)
    array[5:7, 18:22, 14:18] = 0
    return array


@pytest.fixture
def compare(tmp_path):
    """Prepare a volume by the engine and by nnU-Net, for a variation of the plans."""

    def run(array, *, scheme="ZScoreNormalization", use_mask=False, transpose=(0, 1, 2)):
        plans = make_plans(spacing_mm=TARGET_MM, transpose_forward=transpose)
        configuration = plans["configurations"]["3d_fullres"]
        configuration["normalization_schemes"] = [scheme]
        configuration["use_mask_for_norm"] = [use_mask]
        folder = write_model(tmp_path / "model", plans, {"0": make_network(plans, seed=0)})
        prepared = prepare(array, spacing_zyx_mm=SPACING_ZYX_MM, spec=read_model_spec(folder))
        manager = PlansManager(plans)
        settings = manager.get_configuration("3d_fullres")
        reference, _, properties = settings.preprocessor_class(verbose=False).run_case_npy(
            array[None],
            None,
            {"spacing": list(SPACING_ZYX_MM)},
            manager,
            settings,
            json.loads((folder / "dataset.json").read_text()),
        )
        return prepared, reference[0], properties

    return run


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_prepared_volume_is_nnunets(compare, scheme, use_mask, transpose):
    array = scan()
    before = array.copy()

    prepared, reference, properties = compare(
        array, scheme=scheme, use_mask=use_mask, transpose=transpose
    )

    tolerance = 1e-5 * max(1.0, float(np.abs(reference).max()))
    np.testing.assert_allclose(prepared.patchable, reference, atol=tolerance)
    box = [[side.start, side.stop] for side in prepared.crop]
    assert box == [list(map(int, side)) for side in properties["bbox_used_for_cropping"]]
    assert box != [[0, n] for n in prepared.permuted_shape]
    np.testing.assert_array_equal(array, before)


def test_a_volume_without_zeros_is_not_cropped_and_not_changed(compare):
    array = scan() + 10
    before = array.copy()

    prepared, reference, _ = compare(array)

    assert prepared.patchable.shape == reference.shape
    np.testing.assert_allclose(prepared.patchable, reference, atol=1e-5)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_the_way_back_undoes_resampling_cropping_and_transposing(compare, transpose):
    array = scan()
    prepared, _, _ = compare(array, scheme="NoNormalization", transpose=transpose)

    mask = mask_from_margin(prepared.patchable - 20, prepared)

    assert mask.shape == array.shape
    # There and back blurs the border by a voxel at most.
    assert (mask.astype(bool) == (array > 20)).mean() > 0.93
    inside = np.zeros(prepared.permuted_shape, bool)
    inside[prepared.crop] = True
    assert not mask.transpose(transpose)[~inside].any()


def test_an_unknown_normalisation_is_named(compare):
    # Known to nnU-Net, but for colour pictures.
    with pytest.raises(ModelError, match="RGBTo01Normalization"):
        compare(scan(), scheme="RGBTo01Normalization")
