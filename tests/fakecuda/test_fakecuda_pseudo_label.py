"""SAM2 on a GPU: the CPU's pseudo labels, nothing on a card that was not asked for, few copies."""

import numpy as np
import pytest
import torch
from pseudo_label_samples import Workplace
from scipy import ndimage
from strategy_samples import build, supports_of
from tiny_sam2 import TINY, make_query, tiny_compact
from tiny_scans import centred_grid

import fakecuda
from sslmedsam2.errors import SslMedSam2Error, UsageError
from sslmedsam2.fewshot import pretraining, retrieval
from sslmedsam2.fewshot.checkpoint import build_compact, build_hiera_tiny, load_sam2, save_compact
from sslmedsam2.fewshot.harmonise import refine_by_intensity
from sslmedsam2.fewshot.pretraining import CHECKPOINT_NAME, PretrainSettings, pretrain
from sslmedsam2.fewshot.store import Encoder, MemoryLimits, SupportStore, memory_for_supports
from sslmedsam2.fewshot.synthetic import SyntheticTask
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.pseudo_label.supports import COMPACT_PATH
from sslmedsam2.train.pretrain_sam2 import PretrainOptions, pretrain_sam2

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ILLEGAL = "CUDA error: an illegal memory access was encountered\nmore lines"
GRID = centred_grid()
STRATEGIES = ("retrieval", "random-insertion")
# The published procedure tracks slice by slice, five times: one short support does.
SHORT_GRID = centred_grid((5, 40, 50), spacing_zyx_mm=(30, 7, 7))


@pytest.fixture(scope="module")
def sam2_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sam2") / "tiny.safetensors"
    save_compact(tiny_compact().model, path, architecture=TINY, notes={})
    return path


def segmented(sam2_path, folder, *, device, strategy="retrieval", grid=None, **settings):
    grid = grid or (GRID if strategy == "retrieval" else SHORT_GRID)
    names = ("s1/GED4", "s2/GED4") if strategy == "retrieval" else ("s1/GED4",)
    supports = supports_of(grid, names=names)
    sam2 = load_sam2(sam2_path, device=device)
    built = build(sam2, supports, folder, strategy=strategy, **settings)
    return built.segment(make_query("q/GED4", seed=9, geometry=grid))


@pytest.fixture(scope="module")
def by_cpu(sam2_path, tmp_path_factory):
    return {
        strategy: segmented(
            sam2_path, tmp_path_factory.mktemp("cpu"), device=CPU, strategy=strategy
        )
        for strategy in STRATEGIES
    }


def assert_alike(found, expected):
    """Compare probabilities: those of random weights lie near a half, and masks say little."""
    difference = np.abs(found.probability_zyx - expected.probability_zyx)
    assert difference.mean() < 0.01
    assert np.quantile(difference, 0.99) < 0.1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy_computes_in_bfloat16_on_a_gpu_what_the_cpu_does(
    sam2_path, tmp_path, by_cpu, strategy
):
    found = segmented(sam2_path, tmp_path, device=CUDA, strategy=strategy)
    assert_alike(found, by_cpu[strategy])
    assert found.warnings == by_cpu[strategy].warnings
    assert "BFloat16" in str(fakecuda.native.ops()["aten::convolution"])


def test_shipped_network_finds_the_same_liver_on_a_gpu(tmp_path):
    masks = [
        segmented(COMPACT_PATH, tmp_path, device=device, harmonise=False).mask_zyx
        for device in (CPU, CUDA)
    ]
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.99


def test_supports_from_host_and_disk_give_the_same_and_are_read_once_an_attempt(
    sam2_path, tmp_path, monkeypatch
):
    monkeypatch.setattr(retrieval, "_SOUND_AGREEMENT", 0.0)
    limits, seen, read = {}, {}, []
    monkeypatch.setattr(retrieval, "memory_for_supports", lambda *_: limits[place])
    monkeypatch.setattr(
        SupportStore,
        "memory",
        lambda self, key, read_memory=SupportStore.memory: (
            read.append(key) or read_memory(self, key)
        ),
    )
    everything = 10**9
    limits = {
        "device": MemoryLimits(everything),
        "host": MemoryLimits(0, everything),
        "disk": MemoryLimits(0),
    }
    for place in limits:
        supports = supports_of(GRID, names=[f"s{n}/GED4" for n in range(1, 11)])
        # The correction segments the supports as well, once.
        strategy = build(
            load_sam2(sam2_path, device=CUDA), supports, tmp_path / place, correct=False
        )
        read.clear()
        fakecuda.reset()
        with pytest.MonkeyPatch.context() as patch:
            waited = fakecuda.copies_waited_for(patch)
            found = strategy.segment(make_query("q/GED4", seed=9, geometry=GRID))
        assert set(waited) == {True}
        seen[place] = found, fakecuda.transfers()
        assert sorted(read) == sorted(set(read)), "more often than the one attempt needs"
        assert len(read) == len(supports)
        assert any((tmp_path / place).glob("*")) == (place == "disk")
    for place in ("host", "disk"):
        np.testing.assert_array_equal(
            seen[place][0].probability_zyx, seen["device"][0].probability_zyx
        )
        assert seen[place][1].bytes_in > 2 * seen["device"][1].bytes_in


def test_supports_may_fill_half_of_the_free_memory_of_a_gpu():
    used = fakecuda.native.used()
    assert memory_for_supports(CUDA, None) == MemoryLimits((80 * 10**9 - used) // 2, 2 * 2**30)
    assert memory_for_supports(CPU, None) == MemoryLimits(2 * 2**30, 0)
    assert memory_for_supports(CUDA, 100) == MemoryLimits(100 * 2**20, 0)


def test_supports_of_a_query_share_the_batches_of_a_gpu(sam2_path, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "_SOUND_AGREEMENT", 0.0)
    sizes = []

    def noting(model, features, prompted):
        sizes.append((len(features.coarse), len(prompted.pointer)))
        return segment(model, features, prompted)

    segment = retrieval.segment
    monkeypatch.setattr(retrieval, "segment", noting)
    grid = centred_grid((5, 40, 50), spacing_zyx_mm=(30, 7, 7))
    plain = {"grid": grid, "reverse": False, "harmonise": False, "correct": False}
    segmented(sam2_path, tmp_path, device=CUDA, **plain)
    assert sizes == [(10, 10), (5, 10)], "two supports alone, then both together"
    sizes.clear()
    segmented(sam2_path, tmp_path, device=CPU, **plain)
    assert sizes == [(5, 5), (5, 5), (5, 10)]


@pytest.mark.parametrize("shape", [(18, 64, 64), (3, 32, 32)])
def test_refining_on_a_gpu_gives_the_cpus_probabilities(shape):
    generator = np.random.default_rng(2)
    organ = np.zeros(shape, np.float32)
    organ[1:-1, 8:-12, 10:-8] = 1
    slices = (0.3 + 0.3 * organ + generator.normal(0, 0.05, shape)).clip(0, 1).astype(np.float32)
    probability = ndimage.gaussian_filter(np.roll(organ, 4, axis=2), (0.5, 3, 3)).clip(0, 1)
    here = torch.from_numpy(probability), torch.from_numpy(slices)
    expected = refine_by_intensity(*here)
    assert (expected - here[0]).abs().max() > 0.3, "something was corrected"
    found = refine_by_intensity(*(tensor.cuda() for tensor in here)).cpu()
    assert (found - expected).abs().mean() < 1e-4
    assert np.quantile((found - expected).abs(), 0.999) < 0.01
    assert torch.equal(found, refine_by_intensity(*(tensor.cuda() for tensor in here)).cpu())
    nothing = torch.zeros(shape).cuda()
    assert refine_by_intensity(nothing, here[1].cuda()) is nothing


def test_query_too_large_to_be_refined_on_the_gpu_is_refined_on_the_cpu(
    sam2_path, tmp_path, by_cpu, monkeypatch, caplog
):
    def refuse(probability, slices):
        if slices.is_cuda:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return refine_by_intensity(probability, slices)

    monkeypatch.setattr(retrieval, "refine_by_intensity", refuse)
    found = segmented(sam2_path, tmp_path, device=CUDA)
    assert_alike(found, by_cpu["retrieval"])
    assert "refined on the CPU" in caplog.text
    assert found.warnings == by_cpu["retrieval"].warnings


@pytest.mark.parametrize(
    ("strategy", "free_kb"),
    [*(("retrieval", kb) for kb in (6000, 3000, 1500, 700, 300, 20)), ("random-insertion", 300)],
)
def test_little_memory_gives_the_same_pseudo_label(sam2_path, tmp_path, by_cpu, strategy, free_kb):
    with fakecuda.memory_limit(free_kb * 1000):
        found = segmented(sam2_path, tmp_path, device=CUDA, strategy=strategy)
    assert_alike(found, by_cpu[strategy])


def test_batch_of_slices_is_halved_until_it_fits(sam2_path):
    encoder = Encoder(load_sam2(sam2_path, device=CUDA))
    slice_bytes, sizes = 64 * 64 * 4, []

    def compute(part):
        sizes.append(part.stop - part.start)
        return torch.empty((sizes[-1], 64, 64), device="cuda").shape[0]

    with fakecuda.memory_limit(5 * slice_bytes):
        assert sum(encoder.in_batches(18, compute)) == 18
    assert sizes == [18, 16, 8, *[4] * 4, 2]


@pytest.mark.parametrize("after", [0, 500, 4000])
def test_card_that_breaks_leaves_the_query_to_the_cpu(sam2_path, tmp_path, by_cpu, after):
    with fakecuda.broken(ILLEGAL, after=after):
        found = segmented(sam2_path, tmp_path, device=CUDA)
    np.testing.assert_array_equal(
        found.probability_zyx, by_cpu["retrieval"].probability_zyx, strict=True
    )
    if after:
        assert found.warnings[-1] == (
            "gpu_failed: CUDA error: an illegal memory access was encountered; segmented on the CPU"
        )


@pytest.mark.parametrize("after", [100, 20_000])
def test_pseudo_labels_of_a_run_survive_a_card_that_breaks(tmp_path, small_sam2, after):
    place = Workplace(tmp_path, small_sam2)
    for case in ("s1", "s2"):
        place.add_support(case)
    place.add_query("q1/T2.nii.gz")
    place.add_query("q2/T2.nii.gz", seed=11)
    with fakecuda.broken(ILLEGAL, after=after):
        summary = place.run(device="auto")
    assert [record.error for record in summary.records] == [None, None]
    for case in ("q1", "q2"):
        assert read_mask(place.paths(case).mask).array_zyx.shape


@pytest.mark.parametrize("make", [lambda: build_compact(TINY), lambda: build_hiera_tiny(512)])
def test_sam2_is_built_without_a_touch_of_the_gpu(make):
    before = fakecuda.native.used()
    fakecuda.native.reset_peak()
    model = make()
    assert fakecuda.native.peak() == before
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert torch.cuda.is_available()


def test_run_on_the_cpu_copies_nothing_from_or_to_a_gpu(sam2_path, tmp_path):
    fakecuda.reset()
    segmented(sam2_path, tmp_path, device=CPU)
    assert fakecuda.transfers() == (0, 0, 0)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_bfloat16_is_used_only_where_the_card_has_it(sam2_path, capability, expected):
    fakecuda.install(devices=2, capability=capability)
    sam2 = load_sam2(sam2_path, device=CUDA)
    with sam2.computing():
        product = torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")
    assert str(product.dtype) == f"torch.{expected}"


def test_copies_of_a_query_do_not_grow_with_its_attempts(sam2_path, tmp_path, monkeypatch):
    """Each batch of slices goes in once, and out come descriptors, probabilities and scores."""
    monkeypatch.setattr(retrieval, "_SOUND_AGREEMENT", 0.0)
    sam2 = load_sam2(sam2_path, device=CUDA)
    strategy = build(sam2, supports_of(GRID), tmp_path, harmonise=False)
    query = make_query("q/GED4", seed=9, geometry=GRID)
    strategy.segment(query)
    fakecuda.reset()
    strategy.segment(query)
    slices_bytes = GRID.shape_zyx[0] * sam2.image_size**2 * 4
    seen = fakecuda.transfers()
    assert seen.copies <= 36
    # The slices, the result once as a mask of bytes, its coarse probabilities; a few indices.
    assert seen.bytes_in <= 1.4 * slices_bytes + 5000


SMALL_TRAINING = PretrainSettings(
    architecture=TINY, task=SyntheticTask(image_size=64), steps=3, slices_per_step=8
)


def test_pretraining_on_a_gpu_stays_near_the_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "_n_workers", lambda _: 0)
    states = []
    for device in (CPU, CUDA):
        folder = tmp_path / device.type
        folder.mkdir()
        states.append(pretrain(SMALL_TRAINING, work_dir=folder, device=device).state_dict())
    for name, value in states[0].items():
        assert torch.isfinite(states[1][name]).all(), name
        assert (states[1][name] - value).abs().max() < 0.01, name


def test_pretraining_on_a_gpu_goes_on_after_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "_n_workers", lambda _: 1)
    from dataclasses import replace

    pretrain(replace(SMALL_TRAINING, steps=1), work_dir=tmp_path, device=CUDA)
    pretrain(SMALL_TRAINING, work_dir=tmp_path, device=CUDA)
    state = torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True, map_location="cpu")
    assert state["step"] == 3


def test_episodes_are_drawn_in_this_process_where_shared_memory_is_small(monkeypatch):
    assert pretraining._n_workers(CPU) == 0
    monkeypatch.setattr(pretraining, "_WORKERS_NEED_BYTES", 2**60)
    assert pretraining._n_workers(CUDA) == 0
    monkeypatch.setattr(pretraining, "_WORKERS_NEED_BYTES", 0)
    monkeypatch.setattr(pretraining.os, "sched_getaffinity", lambda _: set(range(5)))
    assert pretraining._n_workers(CUDA) == 4


def test_several_processes_of_pretraining_are_refused_on_a_gpu(tmp_path):
    options = PretrainOptions(tmp_path, tmp_path / "x.safetensors", processes=2, device="cuda")
    with pytest.raises(UsageError, match="same card"):
        pretrain_sam2(options)


def test_card_too_small_for_pretraining_is_one_clear_line(tmp_path):
    options = PretrainOptions(tmp_path, tmp_path / "x.safetensors", steps=1, device="cuda")
    with fakecuda.memory_limit(200_000), pytest.raises(SslMedSam2Error) as refused:
        pretrain_sam2(options)
    assert "memory of the GPU" in str(refused.value)
    assert "--device cpu" in str(refused.value)
