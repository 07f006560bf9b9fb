"""Networks by name: the compact one, and those that nnU-Net's own planner sizes for a GPU."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from sslmedsam2.cli import shared_options
from sslmedsam2.imaging.orientation import reorientation_of
from sslmedsam2.imaging.reading import read_grid
from sslmedsam2.nnunet.plans import (
    CONFIGURATION,
    PRESETS,
    CompactPreset,
    Grid,
    Preset,
    ResidualPreset,
    default_preset,
    plan_network,
    planned_network,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "chaos_mr_t2"
T2_LIKE = [Grid((30 + n, 256, 256), (7.7, 1.25, 1.25)) for n in range(9)]
INTENSITY = {"mean": 90.0, "std": 40.0, "percentile_00_5": 5.0, "percentile_99_5": 210.0}


def _plans(name, grids=T2_LIKE):
    return plan_network(PRESETS[name], grids, intensity=INTENSITY)


@pytest.fixture(scope="module")
def plans():
    """Plans of each preset for images like T2 ones."""
    return {name: _plans(name) for name in PRESETS}


def _network(plans):
    configuration = PlansManager(plans).get_configuration(CONFIGURATION)
    with torch.device("meta"):
        return get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            1,
            2,
            allow_init=False,
            deep_supervision=False,
        )


def assert_takes_its_own_patches(plans):
    patch = planned_network(plans).patch_zyx
    out = _network(plans)(torch.empty(1, 1, *patch, device="meta"))
    assert out.shape == (1, 2, *patch)


def test_command_line_offers_the_presets():
    @shared_options.preset_option
    def command():
        """Do nothing."""

    (option,) = command.__click_params__
    assert list(option.type.choices) == list(PRESETS)


def test_preset_fits_the_device():
    assert PRESETS[default_preset("cpu")] == CompactPreset()
    assert PRESETS[default_preset("cuda")] == ResidualPreset("M")


def test_wide_network_takes_the_patches_of_the_compact_one(plans):
    compact, wide = (planned_network(plans[name]) for name in ("compact", "wide"))

    assert wide == compact
    assert_takes_its_own_patches(plans["wide"])
    weights = [sum(w.numel() for w in _network(plans[n]).parameters()) for n in ("compact", "wide")]
    assert weights[1] > 1.5 * weights[0]


def test_gpu_trains_longer():
    small, large = (PRESETS[name].schedule for name in ("compact", "resenc-m"))

    assert large.round_epochs * large.iterations_per_epoch > (
        10 * small.round_epochs * small.iterations_per_epoch
    )


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_json(name):
    record = json.loads(json.dumps(asdict(PRESETS[name])))

    assert Preset.from_plain(record) == PRESETS[name]


def test_plans_are_the_same_each_time_and_hold_plain_values(plans):
    assert _plans("resenc-m") == json.loads(json.dumps(plans["resenc-m"]))


def test_planner_plans_at_the_resolution_of_the_data(plans):
    network = planned_network(plans["resenc-m"])

    assert network.spacing_zyx_mm == pytest.approx((7.7, 1.25, 1.25))
    assert network.batch_size >= 2
    assert all(n >= 16 for n in network.patch_zyx)


@pytest.mark.parametrize(
    ("thin_mm", "thick_mm", "planned_mm"), [(1.3, 8.5, 3.0), (4.0, 8.5, 4.0), (1.3, 1.3, 1.3)]
)
def test_few_scans_with_thin_slices_do_not_make_all_slices_thin(thin_mm, thick_mm, planned_mm):
    thin = [Grid((160, 320, 260), (thin_mm, 1.2, 1.2))] * 3
    thick = [Grid((24, 256, 256), (thick_mm, 1.2, 1.2))] * 9

    plans = _plans("resenc-m", [*thin, *thick])
    assert planned_network(plans).spacing_zyx_mm == pytest.approx((planned_mm, 1.2, 1.2))
    assert_takes_its_own_patches(plans)


def test_more_memory_gives_a_larger_patch_or_batch(plans):
    voxels = []
    for name in ("resenc-m", "resenc-l"):
        network = planned_network(plans[name])
        voxels.append(network.batch_size * torch.Size(network.patch_zyx).numel())
    assert voxels[1] > 1.5 * voxels[0]


def test_plans_name_one_configuration_in_the_place_of_the_compact_ones(plans):
    residual, compact = plans["resenc-m"], plans["compact"]

    assert list(residual["configurations"]) == [CONFIGURATION]
    for key in ("dataset_name", "plans_name", "transpose_forward", "image_reader_writer"):
        assert residual[key] == compact[key]
    ours, theirs = (one["configurations"][CONFIGURATION] for one in (residual, compact))
    for key in ("data_identifier", "normalization_schemes", "use_mask_for_norm"):
        assert ours[key] == theirs[key]
    assert residual["experiment_planner_used"] == "nnUNetPlannerResEncM"
    assert residual["foreground_intensity_properties_per_channel"]["0"] == INTENSITY


def test_thick_slices_across_another_axis_do_not_turn_the_patches():
    coronal = [Grid((256, 30, 256), (1.25, 7.7, 1.25))] * 3

    assert _plans("resenc-m", coronal)["transpose_forward"] == [0, 1, 2]


def test_planning_leaves_no_trace_in_environment_threads_or_on_the_screen(capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", "elsewhere")
    before, threads = dict(os.environ), torch.get_num_threads()

    _plans("resenc-m")
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", PRESETS)
def test_network_takes_its_own_patches(plans, name):
    assert_takes_its_own_patches(plans[name])


@pytest.mark.parametrize(
    "grid", [Grid((9, 35, 40), (21.0, 8.0, 8.0)), Grid((32, 640, 640), (6.5, 0.55, 0.55))]
)
def test_coarse_and_fine_resolutions_can_be_planned(grid):
    assert_takes_its_own_patches(_plans("resenc-m", [grid, grid]))


@pytest.mark.real_data
def test_real_resolution_is_planned_from_headers():
    if not REAL.is_dir():
        pytest.skip(f"needs the volumes of {REAL}")
    grids = []
    for path in sorted(REAL.glob("*/T2.nii.gz")):
        geometry = read_grid(path).geometry
        axes = reorientation_of(geometry).axes
        grids.append(
            Grid(
                tuple(geometry.shape_zyx[axis] for axis in axes),
                tuple(geometry.spacing_zyx_mm[axis] for axis in axes),
            )
        )
    network = planned_network(_plans("resenc-m", grids))

    assert network.spacing_zyx_mm == pytest.approx((7.7, 1.25, 1.25), abs=0.5)
    assert network.patch_zyx[1] == network.patch_zyx[2] >= 160
