"""``predict`` on a GPU: the CPU's masks, few copies, and the CPU where the card fails."""

import copy
import json

import numpy as np
import pytest
import torch
from predict_samples import Workplace
from tiny_models import PATCH, bright_tissue_model, make_network, make_plans, write_model
from torch import nn

import fakecuda
from sslmedsam2.cli.main import main
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.inference import on_gpu, openvino_backend
from sslmedsam2.inference.model_folder import Resampling, read_model_spec
from sslmedsam2.inference.resampling import (
    make_resampler,
    resample,
    resampled_shape,
)
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.inference.torch_backend import TorchMarginNetwork
from sslmedsam2.phantom.anatomy import make_anatomy
from sslmedsam2.phantom.rendering import axial_grid, render_sequence
from sslmedsam2.weights.locate import locate_models

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
PATCHES = np.random.default_rng(4).normal(size=(6, 1, *PATCH)).astype(np.float32)
PATCH_BYTES = PATCHES[0].nbytes


def dice(one, other):
    return 2 * int((one & other).sum()) / int(one.sum() + other.sum())


@pytest.fixture(scope="module", autouse=True)
def _cpu_in_float32():
    """Compare the GPU with float32, also on a CPU with units for bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_backend, "bfloat16_is_native", lambda: False)
        yield


@pytest.fixture(scope="module")
def phantom():
    grid = axial_grid(shape_zyx=(24, 64, 80), spacing_zyx_mm=(8.0, 4.0, 4.0))
    image, _ = render_sequence(make_anatomy(11), "T2", grid=grid, seed=11)
    return CanonicalVolume(image, grid.spacing_zyx_mm, Reorientation((0, 1, 2), ()))


@pytest.fixture(scope="module")
def shipped():
    model = locate_models(None)[0]
    return read_model_spec(model.path, folds=model.folds)


@pytest.fixture(scope="module")
def by_cpu(shipped, phantom):
    return CanonicalSegmenter(shipped, EngineOptions("cpu")).segment(phantom, with_probability=True)


def test_shipped_network_finds_the_same_liver_in_fp16_on_a_gpu(shipped, phantom, by_cpu):
    segmenter = CanonicalSegmenter(shipped, EngineOptions("cuda"))
    found = segmenter.segment(phantom, with_probability=True)

    assert (segmenter.device, segmenter.backend) == ("cuda", "torch fp16")
    assert dice(found.mask_zyx, by_cpu.mask_zyx) > 0.999
    assert np.abs(found.probability_zyx - by_cpu.probability_zyx).max() < 0.02
    assert found.mean_confidence == pytest.approx(by_cpu.mean_confidence, abs=1e-3)
    assert found.warnings == ()
    assert "Half,Half,Half" in str(fakecuda.native.ops()["aten::convolution"])


def test_an_unsure_scan_gets_the_second_view_and_the_correction_of_the_cpu(phantom, tmp_path):
    spec = read_model_spec(bright_tissue_model(tmp_path / "model"))
    cpu, gpu = (
        CanonicalSegmenter(spec, EngineOptions(device, sure_from=1.0)).segment(phantom)
        for device in ("cpu", "cuda")
    )
    assert [note.split(":")[0] for note in gpu.warnings] == ["second_view", "brightness"]
    assert gpu.warnings == cpu.warnings
    assert dice(gpu.mask_zyx, cpu.mask_zyx) > 0.99


def test_volume_goes_to_a_gpu_once_and_its_margin_alone_comes_back(shipped, phantom):
    segmenter = CanonicalSegmenter(shipped, EngineOptions("cuda"))
    margin = segmenter.infer(segmenter.prepare(phantom)).margin
    fakecuda.reset()
    segmenter.segment(phantom)
    assert fakecuda.transfers() == (2, 4 * phantom.array_zyx.size, 4 * margin.size)


def test_volume_waits_for_the_gpu_in_page_locked_memory(shipped, phantom, monkeypatch):
    locked = []

    def lock(tensor):
        locked.append(tensor.shape)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", lock)
    prepared = CanonicalSegmenter(shipped, EngineOptions("cuda")).prepare(phantom)
    assert locked == [prepared.patchable.shape]
    CanonicalSegmenter(shipped, EngineOptions("cpu")).prepare(phantom)
    assert len(locked) == 1


def test_copies_of_a_volume_are_waited_for(shipped, phantom, monkeypatch):
    """If a card fails with a copy from page-locked memory under way, freeing that ends the run."""
    waited = fakecuda.copies_waited_for(monkeypatch)
    CanonicalSegmenter(shipped, EngineOptions("cuda")).segment(phantom)
    assert set(waited) == {True}


def test_volume_that_cannot_be_locked_is_segmented_all_the_same(
    shipped, phantom, by_cpu, monkeypatch
):
    def refuse(_tensor):
        raise RuntimeError("CUDA error: OS call failed or operation not supported on this OS")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    found = CanonicalSegmenter(shipped, EngineOptions("cuda")).segment(phantom)
    assert dice(found.mask_zyx, by_cpu.mask_zyx) > 0.999
    assert found.warnings == ()


def test_mirrored_views_are_alike_on_gpu_and_cpu_and_fast_runs_all_windows_there(tmp_path):
    """As networks of random weights are, whose margins change sign everywhere."""
    plans = make_plans(strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), transpose_forward=(1, 0, 2))
    network = make_network(plans, seed=3)
    folder = write_model(tmp_path / "model", plans, {"0": network}, mirror_axes=(0, 1, 2))
    spec = read_model_spec(folder)
    array = np.random.default_rng(1).normal(5, 1, (20, 40, 11)).astype(np.float32)
    volume = CanonicalVolume(array, (9.0, 6.0, 8.0), Reorientation((0, 1, 2), ()))
    by_cpu, exact, fast = (
        CanonicalSegmenter(spec, EngineOptions(device, mode=mode))
        .segment(volume, with_probability=True)
        .probability_zyx
        for device, mode in (("cpu", "exact"), ("cuda", "exact"), ("cuda", "fast"))
    )
    assert np.abs(by_cpu - exact).max() < 0.02
    np.testing.assert_array_equal(fast, exact)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.2, 0.9), (6.0, 1.0, 1.1)])
def test_resampling_on_a_gpu_gives_the_cpus_numbers(order, spacing_mm):
    shape, new_spacing = (12, 20, 18), (2.5, 1.5, 1.1)
    rule = Resampling(order=order, order_z=min(order, 1), force_separate_z=None)
    new_shape = resampled_shape(shape, spacing_mm=spacing_mm, new_spacing_mm=new_spacing)
    resampler = make_resampler(
        shape, new_shape, spacing_mm=spacing_mm, new_spacing_mm=new_spacing, rule=rule
    )
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    there = on_gpu.resample(volume, resampler, device="cuda").cpu().numpy()
    np.testing.assert_allclose(there, resample(volume, resampler), atol=1e-5)


def test_empty_result_of_a_gpu_has_its_likeliest_region(tmp_path):
    plans = make_plans()
    network = make_network(plans, seed=3)
    with torch.no_grad():
        network.decoder.seg_layers[-1].bias[:] = torch.tensor([50.0, -50.0])
    spec = read_model_spec(write_model(tmp_path / "model", plans, {"0": network}))
    array = np.random.default_rng(1).normal(5, 1, (20, 40, 44)).astype(np.float32)
    volume = CanonicalVolume(array, (8.0, 8.0, 8.0), Reorientation((0, 1, 2), ()))
    found = CanonicalSegmenter(spec, EngineOptions("cuda")).segment(volume)
    assert not found.mask_zyx.any()
    assert found.relaxed_mask_zyx.any()
    assert found.mean_confidence is None


@pytest.mark.parametrize("free_mb", [150, 60, 25, 12, 4, 1])
def test_little_memory_gives_the_same_liver(shipped, phantom, by_cpu, free_mb):
    with fakecuda.memory_limit(free_mb * 2**20):
        found = CanonicalSegmenter(shipped, EngineOptions("cuda")).segment(phantom)
    assert dice(found.mask_zyx, by_cpu.mask_zyx) > 0.999


def test_second_gpu_can_be_named(shipped, phantom, by_cpu):
    segmenter = CanonicalSegmenter(shipped, EngineOptions("cuda:1"))
    assert segmenter.device == "cuda:1"
    assert dice(segmenter.segment(phantom).mask_zyx, by_cpu.mask_zyx) > 0.999


class _Tripling(nn.Module):
    """Triples patches, in a product of its own size that needs memory."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0), requires_grad=False)

    def forward(self, patches):
        return self.factor * patches


def test_batch_shrinks_until_it_fits_and_stays_small():
    network = TorchMarginNetwork(_Tripling(), device="cuda")
    network(PATCHES)
    # The patches, their product, and whether each voxel is finite.
    with fakecuda.memory_limit(int(2.6 * 2 * PATCH_BYTES)):
        first, second = network(PATCHES), network(PATCHES[:4])

    np.testing.assert_allclose(first, 3 * PATCHES)
    np.testing.assert_allclose(second, 3 * PATCHES[:4])
    assert network.degradations == [
        "gpu_memory: it is full; batches of 2 patches from here on",
        "gpu_memory: it is full; batches of 1 patches from here on",
    ]
    assert network.on_gpu


def test_weights_of_convolutions_are_kept_in_fp16_on_a_gpu_with_autocasts_results():
    network = make_network(make_plans(), seed=3).decoder.stages[0]
    patch = torch.randn(1, network.convs[0].conv.in_channels, 8, 8, 8)
    autocast = copy.deepcopy(network).cuda()
    with torch.autocast("cuda", torch.float16), torch.inference_mode():
        expected = autocast(patch.cuda()).float()
    del autocast
    before = fakecuda.native.used()

    there = TorchMarginNetwork(network, device="cuda")
    weights = [(weight.ndim > 1, weight.numel()) for weight in network.parameters()]
    of_kernels, others = (sum(n for large, n in weights if large is kind) for kind in (True, False))
    assert fakecuda.native.used() - before <= 2 * of_kernels + 4 * others
    np.testing.assert_array_equal(there(patch.numpy()), expected.cpu().numpy())
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_looks_for_its_quickest_algorithms_unless_results_must_repeat(
    monkeypatch, deterministic
):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    TorchMarginNetwork(_Tripling(), device="cuda")
    assert torch.backends.cudnn.benchmark is not deterministic


@pytest.mark.parametrize(
    ("free_patches", "sizes"), [(100, [4, 1, 16, 4]), (7, [4, 1, 4, 4, 4, 4, 4])]
)
def test_patches_go_in_batches_as_large_as_the_free_memory_lets_them(
    monkeypatch, free_patches, sizes
):
    taken = int(2.25 * PATCH_BYTES)  # the patch, its product, and whether each voxel is finite
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * free_patches * taken, 0))
    seen = []
    module = _Tripling()
    module.register_forward_hook(lambda _, arguments, __: seen.append(len(arguments[0])))
    network = TorchMarginNetwork(module, device="cuda")
    network(PATCHES)
    network(np.repeat(PATCHES, 4, axis=0)[:20])
    assert seen[:2] == [1, 1], "the first patch is computed again, to be measured"
    assert seen[2:] == sizes


def test_single_patch_too_large_for_the_gpu_goes_to_the_cpu_for_good():
    network = TorchMarginNetwork(_Tripling(), device="cuda")
    network(PATCHES)
    with fakecuda.memory_limit(PATCH_BYTES // 2):
        np.testing.assert_allclose(network(PATCHES), 3 * PATCHES)
    np.testing.assert_allclose(network(PATCHES), 3 * PATCHES)

    assert "continuing on the CPU" in network.degradations[-1]
    assert len(network.degradations) == 3
    assert not network.on_gpu


def test_card_that_is_full_when_the_network_is_loaded_leaves_the_cpu():
    with fakecuda.memory_limit(0):
        network = TorchMarginNetwork(nn.Conv3d(1, 1, 3, padding=1), device="cuda")
    assert network.degradations == [network.degradations[0]]
    assert "out of memory" in network.degradations[0]
    assert network(PATCHES).shape == PATCHES.shape


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_error_of_the_card_moves_the_network_to_the_cpu_and_repeats_the_patches(after):
    network = TorchMarginNetwork(_Tripling(), device="cuda")
    with fakecuda.broken(ILLEGAL, after=after):
        np.testing.assert_allclose(network(PATCHES), 3 * PATCHES)
        (step,) = network.degradations
        assert step.startswith("gpu_failed: CUDA error: an illegal memory access was encountered;")


def test_what_overflows_in_fp16_is_repeated_in_fp32():
    large = nn.Conv3d(1, 1, 1, bias=False).requires_grad_(False)
    large.weight.fill_(50_000.0)
    network = TorchMarginNetwork(large, device="cuda")

    margins = network(PATCHES)

    np.testing.assert_allclose(margins, 50_000 * PATCHES, rtol=1e-3)
    assert network.on_gpu


def test_memory_that_failed_is_free_again_before_the_next_try(monkeypatch):
    network = TorchMarginNetwork(_Tripling(), device="cuda")
    at_rest, seen = fakecuda.native.used(), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(fakecuda.native.used()))
    with fakecuda.memory_limit(int(1.5 * len(PATCHES) * PATCH_BYTES)):
        network(PATCHES)
    assert set(seen) == {at_rest}


def test_degradations_are_reported_once_with_the_series_that_met_them(shipped, phantom):
    segmenter = CanonicalSegmenter(shipped, EngineOptions("cuda"))
    with fakecuda.broken(ILLEGAL):
        first, second = segmenter.segment(phantom), segmenter.segment(phantom)
    assert len(first.warnings) == 1
    assert "continuing on the CPU" in first.warnings[0]
    assert second.warnings == ()


@pytest.fixture
def scans(tmp_path, bright_model):
    place = Workplace(tmp_path, bright_model)
    for case in ("P1", "P2"):
        for sequence in ("T1", "T2"):
            place.add(f"{case}/{sequence}.nii.gz")
    return place


def _predict(place, output, *options):
    command = ["predict", "--input", str(place.input), "--output", str(output)]
    return main([*command, "--model", str(place.model), "--no-previews", *options])


def _exit_code(call, *arguments):
    try:
        return call(*arguments) or 0
    except SystemExit as error:
        return error.code or 0


@pytest.mark.parametrize("after", [0, 8, 11, 15, 40, 200])
def test_no_guess_is_written_for_a_scan_because_the_card_broke(scans, tmp_path, capsys, after):
    assert _exit_code(_predict, scans, tmp_path / "cpu", "--device", "cpu") == 0
    capsys.readouterr()
    with fakecuda.broken(ILLEGAL, after=after):
        assert _exit_code(_predict, scans, tmp_path / "gpu") == 0

    masks = sorted(
        path.relative_to(tmp_path / "cpu") for path in (tmp_path / "cpu").rglob("*.nii*")
    )
    assert len(masks) == 4
    for mask in masks:
        found = read_mask(tmp_path / "gpu" / mask).array_zyx
        assert dice(found, read_mask(tmp_path / "cpu" / mask).array_zyx) > 0.999
    report = json.loads((tmp_path / "gpu/run_report.json").read_text())
    assert not any("fallback" in json.dumps(series) for series in report["series"])
    assert sum(" CPU" in line for line in capsys.readouterr().err.splitlines()) == 1


def test_network_of_several_folds_computes_alike_on_gpu_and_cpu(tmp_path):
    plans = make_plans(residual=True)
    folds = {"0": make_network(plans, seed=3), "1": make_network(plans, seed=4)}
    spec = read_model_spec(write_model(tmp_path / "model", plans, folds))
    volume = CanonicalVolume(
        np.random.default_rng(1).normal(5, 1, (20, 40, 44)).astype(np.float32),
        (8.0, 8.0, 8.0),
        Reorientation((0, 1, 2), ()),
    )
    masks = [
        CanonicalSegmenter(spec, EngineOptions(device)).segment(volume, with_probability=True)
        for device in ("cpu", "cuda")
    ]
    assert np.abs(masks[0].probability_zyx - masks[1].probability_zyx).max() < 0.02
