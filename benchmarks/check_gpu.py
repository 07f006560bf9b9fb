"""Does a GPU compute what the CPU does, how fast is it, and how much memory does it take?

    python benchmarks/check_gpu.py --out DIR [--seconds 420]    on a GPU
    python benchmarks/check_gpu.py --out DIR --fake             on the fake CUDA device of the tests

Each part runs by itself: one that fails is noted, and the next goes on. After each part
``check_gpu.json`` is written anew, so a run that is cut off leaves what it has found, and
``check_gpu.md``, a section for ``RESULTS.md``. Phantoms and shipped weights are all it needs. The
fake device computes on the CPU: it shows that this script works, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "tests/fewshot")]
CUDA = "cuda"
SMALL_GRID = ((24, 64, 80), (8.0, 4.0, 4.0))
LARGE_GRID = ((72, 320, 320), (3.0, 1.2, 1.2))
"""Voxels and mm, z y x."""
LEAST_SECONDS = 20
PART = "seconds of part"
NNUNET_VARIABLES = ("nnUNet_compile", "nnUNet_n_proc_DA")
"""Where the trainer notes whether it compiles, and how many processes prepare patches."""


class Results:
    """Verdicts and figures, on the terminal as they come and in a folder after each part."""

    def __init__(self, folder: Path, *, seconds: float, fake: bool) -> None:
        self.fake = fake
        self.environment: dict[str, Any] = {}
        self._folder = folder
        self._end = time.monotonic() + seconds
        self._checks: list[dict[str, str]] = []
        self._figures: dict[str, Any] = {}
        self._tracebacks: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    @property
    def failed(self) -> list[str]:
        return [check["name"] for check in self._checks if check["verdict"] == "FAIL"]

    def check(self, name: str, passed: bool, detail: str) -> None:
        self._note(name, "PASS" if passed else "FAIL", detail)

    def figure(self, name: str, value: Any) -> None:
        self._figures[name] = value
        print(f"     {name}: {value}", flush=True)

    def run(self, name: str, part: Callable[[Results], None]) -> None:
        """Run a part if there is time; whatever it raises is its verdict."""
        if self.seconds_left < LEAST_SECONDS:
            self._note(name, "SKIPPED", "no time was left")
            return
        start = time.monotonic()
        try:
            part(self)
        except Exception as error:
            self._tracebacks[name] = traceback.format_exc()
            lines = str(error).splitlines() or [""]
            self.check(name, False, f"{type(error).__name__}: {lines[0]}")
        self.figure(f"{PART} {name}", round(time.monotonic() - start, 1))
        self.write()

    def write(self) -> None:
        table = {
            "environment": self.environment,
            "checks": self._checks,
            "figures": self._figures,
            "failed": self.failed,
            "tracebacks": self._tracebacks,
        }
        text = json.dumps(table, indent=1, default=str) + "\n"
        (self._folder / "check_gpu.json").write_text(text, encoding="utf-8")
        (self._folder / "check_gpu.md").write_text(self._section(), encoding="utf-8")

    def _section(self) -> str:
        """Return a section that goes below ``On a GPU``; the parts' times are in the JSON alone."""
        known = {name: _text(value) for name, value in self.environment.items() if value}
        card = known.pop("gpu", "Unknown card")
        day = datetime.now(timezone.utc).date().isoformat()
        command = f"bash scripts/check_gpu.sh{' --fake' if self.fake else ''}"
        about = ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in known.items())
        rows = [f"| {c['verdict']} | {c['name']} | {c['detail']} |" for c in self._checks]
        figures = [
            f"| {name} | {_text(value)} |"
            for name, value in self._figures.items()
            if not name.startswith(PART)
        ]
        lines = [f"### {card}", "", f"`{command}`, {day}: {about}. Times are in seconds.", ""]
        lines += ["| verdict | check | detail |", "|---|---|---|", *rows, ""]
        return "\n".join([*lines, "| figure | value |", "|---|---|", *figures, ""])

    def _note(self, name: str, verdict: str, detail: str) -> None:
        self._checks.append({"name": name, "verdict": verdict, "detail": detail})
        print(f"{verdict:7} {name}: {detail}", flush=True)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seconds", type=float, help="[default: 420; as long as it takes]")
    options.add_argument("--fake", action="store_true")
    arguments = options.parse_args()
    if arguments.fake:
        import fakecuda

        fakecuda.install()
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        print("check_gpu: torch sees no GPU (--fake runs the check on a CPU)", file=sys.stderr)
        return 2
    seconds = arguments.seconds or (3600 if arguments.fake else 420)
    results = Results(arguments.out, seconds=seconds, fake=arguments.fake)
    for name, part in PARTS.items():
        results.run(name, part)
    results.write()
    print(f"failed: {', '.join(results.failed) or 'none'}; see {arguments.out}/check_gpu.json")
    return int(bool(results.failed))


def check_environment(results: Results) -> None:
    """Card, driver and libraries, and what the program itself says of the card."""
    from sslmedsam2.inference.device import driver_version, gpu_fault

    card = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    results.environment |= {
        "gpu": card.name,
        "compute_capability": f"{card.major}.{card.minor}",
        "driver": driver_version(),
        "free_gb": round(free / 1e9, 1),
        "total_gb": round(total / 1e9, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None if results.fake else torch.backends.cudnn.version(),
        "architectures": torch.cuda.get_arch_list(),
        "processors": len(os.sched_getaffinity(0)),
        "shared_memory_mb": shutil.disk_usage("/dev/shm").total >> 20,
    }
    start = time.perf_counter()
    fault = gpu_fault(CUDA)
    results.figure("seconds of the first convolution", round(time.perf_counter() - start, 2))
    detail = "a convolution in fp16 is the CPU's" if fault is None else fault.reason
    results.check("the card is used", fault is None, detail)


def check_predict(results: Results) -> None:
    """Compare the shipped network in fp16 with torch's fp32 on the CPU, on phantoms."""
    from sslmedsam2.inference.model_folder import read_model_spec
    from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
    from sslmedsam2.weights.locate import locate_models

    model = locate_models(None)[0]
    spec = read_model_spec(model.path, folds=model.folds)
    start = time.perf_counter()
    # One view each: whether a phantom gets a second one may hang on the last digit.
    on_gpu = CanonicalSegmenter(spec, EngineOptions(CUDA, sure_from=0.0))
    results.figure("seconds to load the shipped network", round(time.perf_counter() - start, 2))
    on_cpu = CanonicalSegmenter(spec, EngineOptions("cpu", sure_from=0.0))
    grids = [((40, 160, 200), (5.0, 2.0, 2.0)), LARGE_GRID]
    for shape, spacing in [SMALL_GRID] if results.fake else grids:
        volume, truth = phantom(shape, spacing)
        first = seconds_once(on_gpu.segment, volume)
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        found = on_gpu.segment(volume, with_probability=True)
        later = round(time.perf_counter() - start, 3)
        expected = on_cpu.segment(volume, with_probability=True)
        agreement = dice(found.mask_zyx, expected.mask_zyx)
        largest = float(np.abs(found.probability_zyx - expected.probability_zyx).max())
        name = "x".join(map(str, shape))
        results.check(
            f"predict {name} in fp16 is the CPU's in fp32",
            agreement > 0.999 and largest < 0.05,
            f"Dice {agreement:.5f}, largest difference of probability {largest:.4f},"
            f" Dice to the truth {dice(found.mask_zyx, truth):.3f}",
        )
        results.figure(
            f"predict {name}",
            {
                "first": first,
                "later": later,
                **found.seconds,
                "cpu_seconds": sum(expected.seconds.values()),
                "peak_mb": peak_mb(),
            },
        )
    if results.fake:
        count_copies(results, on_gpu)
    else:
        without_search = CanonicalSegmenter(spec, EngineOptions(CUDA, sure_from=0.0))
        torch.backends.cudnn.benchmark = False
        first, _, later = (seconds_once(without_search.segment, volume) for _ in range(3))
        torch.backends.cudnn.benchmark = True
        figures = {"first": first, "later": later}
        results.figure(f"predict {name} without cuDNN's search", figures)
    again = on_gpu.segment(volume)
    results.check("predict repeats", dice(again.mask_zyx, found.mask_zyx) == 1.0, "one mask, twice")


def count_copies(results: Results, segmenter: Any) -> None:
    """Count what a scan of 72x320x320 sends to the GPU and back; whichever network runs."""
    import fakecuda

    from sslmedsam2.inference.torch_backend import TorchMarginNetwork

    usual = segmenter._networks
    segmenter._networks = [TorchMarginNetwork(nn.Identity(), device=CUDA)]
    volume, _ = phantom(*LARGE_GRID)
    for _ in range(2):  # The second finds the matrices there.
        fakecuda.reset()
        margin = segmenter.infer(segmenter.prepare(volume)).margin
    copies, bytes_in, bytes_out = fakecuda.transfers()
    seen = {"copies": copies, "mb_in": bytes_in / 1e6, "mb_out": bytes_out / 1e6}
    results.figure("copies of a scan of 72x320x320", seen)
    segmenter._networks = usual
    once = (copies, bytes_in, bytes_out) == (2, 4 * volume.array_zyx.size, 4 * margin.size)
    results.check("the image goes in once and one margin comes out", once, f"{copies} copies")


def check_many_scans(results: Results) -> None:
    """Run the whole of ``predict``, reports and previews too: how long does a scan take?"""
    from sslmedsam2.predict.pipeline import PredictOptions, predict

    n_scans, grid = (2, SMALL_GRID) if results.fake else (16, LARGE_GRID)
    volume, _ = phantom(*grid)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in range(n_scans):
            write_canonical(folder / "in" / f"case{n}" / "T2.nii.gz", volume.array_zyx, grid[1])
        start = time.perf_counter()
        report = predict(PredictOptions(folder / "in", folder / "out", device=CUDA))
        seconds = time.perf_counter() - start
    later = report.series[1:]
    stages = {
        stage: round(statistics.mean(series.seconds[stage] for series in later), 3)
        for stage in later[0].seconds
    }
    figures = {"all": round(seconds, 2), "a scan": round(seconds / n_scans, 3), **stages}
    results.figure(f"seconds of predict on {n_scans} scans", figures)
    left = [warning for series in report.series for warning in series.warnings if "gpu" in warning]
    done = len(report.series) == n_scans and report.exit_code == 0 and not left
    results.check(f"predict on {n_scans} scans stays on the GPU", done, report.device)


def check_pseudo_label(results: Results) -> None:
    """Compare the shipped SAM2 in bf16 with the CPU's fp32; time Hiera-T at 512 pixels."""
    from strategy_samples import build, supports_of
    from tiny_sam2 import centred_grid, make_query

    from sslmedsam2.fewshot.checkpoint import load_sam2
    from sslmedsam2.pseudo_label.supports import COMPACT_PATH

    size = ((6, 56, 70), (30.0, 5.0, 5.0)) if results.fake else ((18, 56, 70), (10.0, 5.0, 5.0))
    grid = centred_grid(size[0], spacing_zyx_mm=size[1])
    query = make_query("q/GED4", seed=9, geometry=grid)
    supports = supports_of(grid, names=("s1/GED4", "s2/GED4"))
    found = {}
    for device, limit in (("cpu", None), (CUDA, None), (CUDA, 0)):
        with tempfile.TemporaryDirectory() as folder:
            sam2 = load_sam2(COMPACT_PATH, device=torch.device(device))
            strategy = build(sam2, supports, Path(folder), memory_limit_mb=limit, harmonise=False)
            start = time.perf_counter()
            found[device, limit] = strategy.segment(query)
        where = "" if limit is None else ", supports on disk"
        name = f"seconds of a phantom's pseudo label on {device}{where}"
        results.figure(name, round(time.perf_counter() - start, 2))
    by_cpu, by_gpu, from_disk = found["cpu", None], found[CUDA, None], found[CUDA, 0]
    agreement = dice(by_cpu.mask_zyx, by_gpu.mask_zyx)
    largest = float(np.abs(by_cpu.probability_zyx - by_gpu.probability_zyx).max())
    results.check(
        "pseudo-label in bf16 is the CPU's in fp32",
        agreement > 0.99 and largest < 0.1 and not by_gpu.warnings,
        f"Dice {agreement:.4f}, largest difference of probability {largest:.3f}",
    )
    same = dice(by_gpu.mask_zyx, from_disk.mask_zyx)
    results.check("supports on disk give the same", same > 0.9999, f"Dice {same:.5f}")
    if not results.fake and results.seconds_left > 60:
        time_hiera(results)


def time_hiera(results: Results) -> None:
    """Time SAM2.1 Hiera-T with random weights; speed and memory do not depend on them."""
    from sslmedsam2.fewshot.checkpoint import LoadedSam2, build_hiera_tiny
    from sslmedsam2.fewshot.memory import encode_slices, remember_prompts, segment

    model = build_hiera_tiny(512).to(CUDA).eval().requires_grad_(False)
    torch.cuda.reset_peak_memory_stats()
    with LoadedSam2(model, "0").computing():
        for n in (16, 72):
            slices = torch.rand(n, 1, 512, 512, device=CUDA)
            taken = seconds_of(lambda slices=slices: encode_slices(model, slices))
            results.figure(f"seconds of Hiera-T at 512, {n} slices encoded", taken)
        features = encode_slices(model, slices[:16])
        memory = remember_prompts(model, features, (slices[:16] > 0.5).float())
        for k in (1, 8):
            each = memory[torch.arange(16, device=CUDA).repeat_interleave(k)]
            taken = seconds_of(lambda each=each: segment(model, features, each))
            results.figure(f"seconds of Hiera-T, 16 slices segmented by {k} memories", taken)
    results.figure("peak MB of Hiera-T at 512", peak_mb())


def check_training(results: Results) -> None:
    """Train a small network by the project's trainer on CPU and GPU, in each of its ways."""
    from tiny_training import PRESET, write_labelled_cases

    from sslmedsam2.nnunet import training
    from sslmedsam2.nnunet.dataset import alternating_splits, build_dataset, write_splits
    from sslmedsam2.nnunet.trainer import TrainingSettings

    ways = {
        "cpu": ("cpu", False, "0"),
        "gpu": (CUDA, False, "0"),
        "deterministic": (CUDA, True, "0"),
        "deterministic again": (CUDA, True, "0"),
        "loader processes": (CUDA, False, "2"),
    }
    weights = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base"
        images = write_labelled_cases(base / "data", count=2)
        dataset = build_dataset(
            images, preprocessed_dir=training.preprocessed_dir(base), preset=PRESET
        )
        write_splits(dataset, alternating_splits(images, n_folds=2))
        for way, (device, deterministic, workers) in ways.items():
            os.environ |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": workers}
            settings = TrainingSettings(
                epochs=1,
                iterations_per_epoch=2 if results.fake else 20,
                validation_iterations=1,
                deterministic=deterministic,
            )
            work_dir = shutil.copytree(base, folder / way)
            start = time.perf_counter()
            final = training.train_fold(work_dir, fold=0, settings=settings, device=device)
            taken = round(time.perf_counter() - start, 1)
            results.figure(f"seconds of a small training, {way}", taken)
            content = torch.load(final, map_location="cpu", weights_only=False)
            weights[way] = content["network_weights"]
    finite = all(
        bool(torch.isfinite(value).all()) for w in weights.values() for value in w.values()
    )
    results.check("weights are finite", finite, ", ".join(weights))
    apart = furthest(weights["deterministic"], weights["deterministic again"])
    results.check("--deterministic repeats to the bit", apart == 0, f"differences to {apart:.1e}")
    apart = furthest(weights["cpu"], weights["gpu"])
    results.check("training stays near the CPU's", apart < 0.1, f"weights differ by {apart:.4f}")


def check_epochs(results: Results) -> None:
    """Time epochs of each preset as ``train`` runs them: compiled, patches from other processes."""
    from tiny_training import PRESET

    from sslmedsam2.nnunet.plans import PRESETS

    for variable in NNUNET_VARIABLES:
        os.environ.pop(variable, None)
    names = ("compact", "wide", "resenc-m")
    wanted = {"a tiny network": PRESET} if results.fake else {name: PRESETS[name] for name in names}
    for name, preset in wanted.items():
        if results.seconds_left > 90:
            time_epochs(results, name, preset)


def time_epochs(results: Results, name: str, preset: Any) -> None:
    from sslmedsam2.imaging.image_file import ImageFile
    from sslmedsam2.nnunet import training
    from sslmedsam2.nnunet.dataset import build_dataset
    from sslmedsam2.nnunet.trainer import TrainingSettings

    grid = SMALL_GRID if results.fake else LARGE_GRID
    volume, liver = phantom(*grid)
    with tempfile.TemporaryDirectory() as folder:
        images = []
        for case in ("a", "b"):
            image, mask = (Path(folder, "data", case, f"{kind}T2.nii.gz") for kind in ("", "mask_"))
            write_canonical(image, volume.array_zyx, grid[1])
            write_canonical(mask, liver, grid[1])
            images.append(ImageFile(case=case, sequence="T2", path=image, mask=mask))
        work_dir = Path(folder, "work")
        build_dataset(images, preprocessed_dir=training.preprocessed_dir(work_dir), preset=preset)
        settings = TrainingSettings(epochs=3, iterations_per_epoch=2 if results.fake else 30)
        torch.cuda.reset_peak_memory_stats()
        final = training.train_fold(work_dir, fold="all", settings=settings, device=CUDA)
        log = torch.load(final, map_location="cpu", weights_only=False)["logging"]
    ends, starts = log["epoch_end_timestamps"], log["epoch_start_timestamps"]
    results.figure(
        f"an epoch of {name}",
        {
            "iterations": settings.iterations_per_epoch,
            "first": round(ends[0] - starts[0], 1),
            "last": round(ends[-1] - starts[-1], 2),
            **{variable: os.environ.get(variable, "unset") for variable in NNUNET_VARIABLES},
            "peak_mb": peak_mb(),
        },
    )
    losses = log["train_losses"]
    text = ", ".join(f"{loss:.3f}" for loss in losses)
    results.check(f"the loss of {name} is finite", bool(np.isfinite(losses).all()), text)


def check_large_network(results: Results) -> None:
    """Time a step of training and the sliding window with resenc-m, the preset for a GPU."""
    network, configuration = large_network(fake=results.fake)
    patch = tuple(configuration["patch_size"])
    data = torch.randn(configuration["batch_size"], 1, *patch, device=CUDA)
    ways = ("eager",) if results.fake else ("eager", "benchmark", "compiled")
    for way in ways:
        if way != "eager" and results.seconds_left < 90:
            break
        torch.backends.cudnn.benchmark = way != "eager"
        results.figure(f"a step of resenc-m, {way}", step_figures(network, data, way == "compiled"))
    torch.backends.cudnn.benchmark = False
    slide_figures(results, network, patch)


def step_figures(network: nn.Module, data: Tensor, compiled: bool) -> dict[str, float]:
    """Return the seconds of the first step and of a later one, and the peak memory in MB."""
    from sslmedsam2.nnunet.muon import Muon

    learner = network.to(CUDA)
    optimiser = Muon(learner, lr=1e-3, weight_decay=1e-2)
    scaler = torch.amp.GradScaler(CUDA)
    call = torch.compile(learner) if compiled else learner
    torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(CUDA):
            loss = sum(output.float().square().mean() for output in call(data))
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 12)
        scaler.step(optimiser)
        scaler.update()

    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first = round(time.perf_counter() - start, 2)
    return {"first": first, "later": seconds_of(step), "peak_mb": peak_mb()}


def slide_figures(results: Results, network: nn.Module, patch: tuple[int, ...]) -> None:
    from sslmedsam2.inference.sliding_window import WindowPlan, slide
    from sslmedsam2.inference.torch_backend import TorchMarginNetwork

    class Margin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, patches: Tensor) -> Tensor:
            logits = self.network(patches)[0]
            return logits[:, 1:2] - logits[:, :1]

    margin = Margin().eval().requires_grad_(False).cpu()
    shape = patch if results.fake else LARGE_GRID[0]
    runner = TorchMarginNetwork(margin, device=CUDA)
    volume = torch.randn(shape, device=CUDA)
    plan = WindowPlan(patch, 0.5, (), 4)  # type: ignore[arg-type]
    torch.cuda.reset_peak_memory_stats()
    taken = seconds_of(lambda: slide(volume, [runner], plan))
    name = f"resenc-m over {'x'.join(map(str, shape))}"
    results.figure(name, {"seconds": taken, "peak_mb": peak_mb()})
    results.check(
        f"{name} stays on the GPU", runner.on_gpu, ", ".join(runner.degradations) or "yes"
    )


def large_network(*, fake: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Build resenc-m for scans of 72x320x320; for the fake device three stages of it."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from sslmedsam2.nnunet.plans import CONFIGURATION, PRESETS, Grid, plan_network

    statistics_names = ("mean", "std", "percentile_00_5", "percentile_99_5", "median", "min", "max")
    grids = [Grid(*LARGE_GRID)] * 3
    plans = plan_network(PRESETS["resenc-m"], grids, intensity=dict.fromkeys(statistics_names, 1.0))
    configuration = plans["configurations"][CONFIGURATION]
    architecture = configuration["architecture"]
    if fake:
        configuration["patch_size"] = [16, 32, 32]
        sizes = architecture["arch_kwargs"]
        sizes["n_stages"] = 3
        for key in ("features_per_stage", "kernel_sizes", "strides", "n_blocks_per_stage"):
            sizes[key] = sizes[key][:3]
        sizes["n_conv_per_stage_decoder"] = sizes["n_conv_per_stage_decoder"][:2]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        2,
        deep_supervision=True,
    )
    return network, configuration


def phantom(
    shape_zyx: tuple[int, int, int], spacing_zyx_mm: tuple[float, float, float]
) -> tuple[Any, np.ndarray]:
    """Return a canonical T2 phantom and its liver."""
    from sslmedsam2.imaging.volume import CanonicalVolume
    from sslmedsam2.phantom.anatomy import make_anatomy
    from sslmedsam2.phantom.rendering import axial_grid, render_sequence

    grid = axial_grid(shape_zyx=shape_zyx, spacing_zyx_mm=spacing_zyx_mm)
    image, liver = render_sequence(make_anatomy(11), "T2", grid=grid, seed=11)
    return CanonicalVolume(image, grid.spacing_zyx_mm), liver


def write_canonical(
    path: Path, array_zyx: np.ndarray, spacing_zyx_mm: tuple[float, float, float]
) -> None:
    """Write an array of the canonical orientation as NIfTI."""
    from tiny_scans import write_scan

    dz, dy, dx = spacing_zyx_mm
    write_scan(path, array_zyx, affine_ras=np.diag([-dx, -dy, dz, 1.0]))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def seconds_once(call: Callable[..., Any], *arguments: Any) -> float:
    """Return the time of one call that ends on the CPU."""
    start = time.perf_counter()
    call(*arguments)
    return round(time.perf_counter() - start, 3)


def seconds_of(call: Callable[[], Any], *, times: int = 3) -> float:
    """Return the median time of a call, after one that does not count."""
    taken = []
    for _ in range(1 + times):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken[1:]), 4)


def peak_mb() -> int:
    return round(torch.cuda.max_memory_allocated() / 2**20)


PARTS: dict[str, Callable[[Results], None]] = {
    "environment": check_environment,
    "predict": check_predict,
    "many scans": check_many_scans,
    "pseudo-label": check_pseudo_label,
    "training": check_training,
    "epochs": check_epochs,
    "large network": check_large_network,
}


if __name__ == "__main__":
    sys.exit(main())
