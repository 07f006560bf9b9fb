"""`CanonicalSegmenter`: a frozen model, loaded once, that segments canonical volumes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import ModelError, first_line
from sslmedsam2.imaging.records import check_words
from sslmedsam2.imaging.volume import LEAST_LIVER_ML, ArrayZYX, CanonicalVolume, MaskZYX
from sslmedsam2.inference.brightness_correction import corrected
from sslmedsam2.inference.confidence import (
    DiceEstimate,
    Evidence,
    certainty_of,
    expected_dice,
    read_calibration,
)
from sslmedsam2.inference.device import Device, choose_device
from sslmedsam2.inference.model_folder import Checkpoint, ModelSpec, load_checkpoint
from sslmedsam2.inference.postprocessing import TYPICAL_CENTRE, keep_liver, relaxed_margin
from sslmedsam2.inference.preprocessing import (
    Prepared,
    canonical_place,
    mask_from_margin,
    mask_on_model_grid,
    on_model_grid,
    prepare,
    probability_from_margin,
)
from sslmedsam2.inference.second_view import average, inverted
from sslmedsam2.inference.sliding_window import (
    Array,
    MarginNetwork,
    WindowPlan,
    slide,
    slide_from,
    to_numpy,
)

if TYPE_CHECKING:
    from sslmedsam2.inference.openvino_backend import OpenVinoMarginNetwork
    from sslmedsam2.inference.torch_backend import TorchMarginNetwork

    _Network = OpenVinoMarginNetwork | TorchMarginNetwork

logger = logging.getLogger(__name__)

Mode = Literal["exact", "fast"]

_STEP = 0.5
"""nnU-Net's default: windows overlap by half."""

_GPU_BATCH = 16
"""Patches that are extracted together; the network takes as many at once as fit into memory."""

_ROUNDING: Final = 0.001
"""More than bfloat16 changes the expected Dice by; see benchmarks/modes.py."""

_SECOND_VIEW_NOTE = (
    "second_view: the network was unsure, so it saw the scan with inverted contrast as well"
)
_BRIGHTNESS_NOTE = (
    "brightness: the network was unsure, so the mask was corrected by the scan's own brightness"
)


@dataclass(frozen=True)
class EngineOptions:
    """Options of the inference.

    Attributes
    ----------
    mode
        ``exact`` gives nnU-Net's own result for each view; ``fast`` runs only windows that contain
        liver. Both compute in bfloat16 on a CPU with units for it. For scans of which the network
        is unsure by its calibration, ``exact`` computes again in float32, and ``fast`` runs all
        windows. Without a calibration ``exact`` computes in float32. On a GPU, which computes all
        windows in the time of a few, both are the same.
    mirror
        Average over mirrored patches along the axes that were mirrored in training.
    sure_from
        A scan with a smaller expected Dice is also segmented with inverted contrast, and averaged;
        0 for never, None for the value of the model's calibration.
    """

    device: Device = "auto"
    mode: Mode = "exact"
    mirror: bool = True
    sure_from: float | None = None

    def __post_init__(self) -> None:
        """Check the words; raises UsageError."""
        check_words(self)


@dataclass(frozen=True)
class CanonicalSegmentation:
    """A liver mask on the canonical grid, with figures of its computation.

    Attributes
    ----------
    mask_zyx
        After clean-up: one component without holes, or empty.
    n_components
        Number of components before clean-up.
    removed_share
        Size of the largest component that clean-up removed, as a share of the mask.
    mean_confidence
        Mean foreground probability over the foreground before clean-up; None without a mask.
    estimate
        Estimated Dice of the mask; None without a mask, or if the model has no calibration.
    evidence
        Input of the estimate; None without a mask.
    doubtful_zyx
        The voxel of the canonical grid where the network is least sure; None without a mask.
    relaxed_mask_zyx
        The likeliest region of a plausible size; None unless ``mask_zyx`` is empty.
    probability_zyx
        Before clean-up: the logistic function of the margin, averaged over folds and mirrored
        views as logits; None if not requested.
    seconds
        By stage: ``prepare``, ``network``, ``finish``.
    """

    mask_zyx: MaskZYX
    n_components: int
    removed_share: float
    mean_confidence: float | None
    estimate: DiceEstimate | None
    evidence: Evidence | None
    doubtful_zyx: tuple[float, float, float] | None
    relaxed_mask_zyx: MaskZYX | None
    probability_zyx: ArrayZYX | None
    warnings: tuple[str, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Inferred:
    """Output of the network for a volume, before post-processing; nothing of it is on a GPU.

    Attributes
    ----------
    prepared
        Without its voxels.
    margin
        On the model's grid.
    """

    prepared: Prepared
    margin: npt.NDArray[np.float32]
    warnings: tuple[str, ...]
    seconds: dict[str, float]


class CanonicalSegmenter:
    """One loaded model.

    ``segment`` is ``prepare``, ``infer`` and ``finish``. These may run in three threads, each on
    another volume: only ``infer`` uses the networks and the GPU.
    """

    def __init__(self, spec: ModelSpec, options: EngineOptions) -> None:
        """Load every fold of the model onto the device.

        Raises ModelError: see :mod:`sslmedsam2.inference.model_folder` and
        :mod:`sslmedsam2.inference.network`; UsageError: the requested GPU does not exist.
        """
        self._spec = spec
        self.device = choose_device(options.device)
        self._fast = options.mode == "fast"
        checkpoints = [load_checkpoint(spec, fold) for fold in spec.folds]
        self._mirror_axes = checkpoints[0].mirror_axes if options.mirror else ()
        self._notes: list[str] = []
        self._calibration = read_calibration(spec)
        self._sure_from = self._resolve_sure_from(options.sure_from)
        try:
            self._networks = _make_networks(
                spec,
                checkpoints,
                device=self.device,
                # Not on a CPU that stands in for a GPU, in the middle of a scan.
                half=self._fast or (self.device == "cpu" and self._sure_from > 0),
            )
        # Errors that wrong plans can cause; a RuntimeError may come from the GPU.
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ModelError(
                spec.path,
                reason=f"no network can be made from its plans ({type(error).__name__}: "
                f"{first_line(error):.80})",
                remedy="Copy plans.json that nnU-Net wrote beside the folds",
            ) from error

        self._in_bfloat16 = any(network.in_bfloat16 for network in self._networks)

    @property
    def backend(self) -> str:
        """The library that runs the networks, and its number format."""
        return self._networks[0].backend

    def segment(
        self, volume: CanonicalVolume, *, with_probability: bool = False
    ) -> CanonicalSegmentation:
        """Segment one volume.

        Raises ModelError: the network gives values that are not finite.
        """
        start = time.perf_counter()
        prepared = self.prepare(volume)
        seconds = {"prepare": round(time.perf_counter() - start, 4)}
        found = self.finish(self.infer(prepared), with_probability=with_probability)
        return replace(found, seconds={**seconds, **found.seconds})

    def prepare(self, volume: CanonicalVolume) -> Prepared:
        """Normalise a volume and, unless the GPU does so later, resample it."""
        on_gpu = self._computes_on_gpu()
        prepared = prepare(
            volume.array_zyx,
            spacing_zyx_mm=volume.spacing_zyx_mm,
            spec=self._spec,
            resampled=not on_gpu,
        )
        if not on_gpu:
            return prepared
        from sslmedsam2.inference.on_gpu import pinned

        return replace(prepared, patchable=pinned(prepared.patchable))

    def infer(self, prepared: Prepared) -> Inferred:
        """Run the networks; on a GPU the volume stays there until its margin is computed.

        Raises ModelError: the network gives values that are not finite.
        """
        if self._computes_on_gpu():
            try:
                return self._infer(prepared, device=self.device)
            except RuntimeError as error:
                self._give_up_gpu(error)
        return self._infer(prepared, device="cpu")

    def finish(
        self, inferred: Inferred, *, with_probability: bool = False
    ) -> CanonicalSegmentation:
        """Resample the margin to the grid of the volume, and clean the mask."""
        seconds = dict(inferred.seconds)
        prepared, margin = inferred.prepared, inferred.margin
        relaxed = probability = None
        with _timed(seconds, "finish"):
            liver = keep_liver(mask_from_margin(margin, prepared))
            if liver.n_components == 0:
                likeliest = relaxed_margin(margin, voxel_mm=self._spec.spacing_mm)
                relaxed = keep_liver(mask_from_margin(likeliest, prepared)).mask_zyx
            sure = certainty_of(
                margin,
                liver.mask_zyx,
                mask=mask_on_model_grid(liver.mask_zyx, prepared, shape=margin.shape),
                spacing_mm=self._spec.spacing_mm,
            )
            if with_probability:
                probability = probability_from_margin(margin, prepared)
        return CanonicalSegmentation(
            mask_zyx=liver.mask_zyx,
            n_components=liver.n_components,
            removed_share=liver.removed_share,
            mean_confidence=sure.mean_confidence if sure else None,
            estimate=self._calibration.estimate(sure.evidence)
            if self._calibration and sure
            else None,
            evidence=sure.evidence if sure else None,
            doubtful_zyx=canonical_place(sure.doubtful, prepared) if sure else None,
            relaxed_mask_zyx=relaxed,
            probability_zyx=probability,
            warnings=inferred.warnings,
            seconds=seconds,
        )

    def _resolve_sure_from(self, asked: float | None) -> float:
        """Return the expected Dice below which scans get a second view."""
        spec = self._spec
        if spec.normalization != "ZScoreNormalization" or spec.use_mask_for_norm:
            # With another normalisation air may not be darkest, and cannot be kept dark.
            return 0.0
        if asked is not None:
            return asked
        return self._calibration.sure_from if self._calibration else 0.0

    def _computes_on_gpu(self) -> bool:
        return all(network.on_gpu for network in self._networks)

    def _give_up_gpu(self, error: RuntimeError) -> None:
        """Continue on the CPU or, if the GPU only lacks memory, run only patches on the GPU."""
        import torch

        if isinstance(error, torch.cuda.OutOfMemoryError):
            self._notes.append(
                "gpu_memory: it is full; only patches of this volume went to the GPU"
            )
            logger.warning(self._notes[-1])
            return
        for network in cast("list[TorchMarginNetwork]", self._networks):
            network.leave_gpu(first_line(error))

    def _infer(self, prepared: Prepared, *, device: str) -> Inferred:
        """Run the networks with the volume on ``device``."""
        seconds: dict[str, float] = {}
        with _timed(seconds, "network"):
            margin = self._best_margin(on_model_grid(prepared, device=device))
        without_voxels = replace(prepared, patchable=np.empty((0, 0, 0), np.float32))
        return Inferred(without_voxels, margin, self._drain_degradations(), seconds)

    def _best_margin(self, patchable: Array) -> npt.NDArray[np.float32]:
        """Compute the margin, with more effort for a scan of which the network is unsure.

        1. The first pass: in bfloat16 if the CPU has units for it; in ``fast`` mode on a CPU only
           the windows that contain liver.
        2. If the network is unsure after such a pass, all windows; in ``exact`` mode in float32.
        3. If it still is, all windows of the inverted scan, the average of both, and a correction
           by the brightness of the scan.
        """
        on_cpu = isinstance(patchable, np.ndarray)
        skips_windows, rounds = self._fast and on_cpu, self._in_bfloat16 and on_cpu
        margin = self._margin(patchable, self._networks, everywhere=not skips_windows)
        if self._sure_from == 0:
            return margin
        thorough: list[MarginNetwork] = list(self._networks)
        if rounds and not self._fast:
            thorough = [network.in_float32 for network in self._networks]
        expected = expected_dice(margin)
        if (skips_windows or rounds) and expected < self._sure_from + _ROUNDING:
            margin = self._margin(patchable, thorough)
            expected = expected_dice(margin)
        if expected < self._sure_from:
            other = self._margin(inverted(patchable), thorough)
            margin = average(margin, other)
            self._notes.append(_SECOND_VIEW_NOTE)
            moved = corrected(margin, to_numpy(patchable))
            if moved is not margin:
                margin = moved
                self._notes.append(_BRIGHTNESS_NOTE)
        return margin

    def _margin(
        self, patchable: Array, networks: Sequence[MarginNetwork], *, everywhere: bool = True
    ) -> npt.NDArray[np.float32]:
        margin = self._slide(patchable, networks, everywhere=everywhere)
        return to_numpy(margin)

    def _slide(
        self, patchable: Array, networks: Sequence[MarginNetwork], *, everywhere: bool
    ) -> Array:
        plan = WindowPlan(
            patch_size=self._spec.patch_size,
            step=_STEP,
            mirror_axes=self._mirror_axes,
            batch_size=1 if self.device == "cpu" else _GPU_BATCH,
        )
        if everywhere:
            return slide(patchable, networks, plan)
        a, b, c = (TYPICAL_CENTRE[axis] for axis in self._spec.transpose_forward)
        # The search goes on until it has found this much.
        enough = LEAST_LIVER_ML * 1000 / float(np.prod(self._spec.spacing_mm))
        return slide_from(patchable, networks, plan, start=(a, b, c), enough_voxels=enough)

    def _drain_degradations(self) -> tuple[str, ...]:
        found, self._notes = self._notes, []
        for network in self._networks:
            found.extend(network.degradations)
            network.degradations.clear()
        return tuple(dict.fromkeys(found))


def _make_networks(
    spec: ModelSpec, checkpoints: list[Checkpoint], *, device: str, half: bool
) -> list[_Network]:
    """Return one ready network a fold; ``half`` allows bfloat16 on a CPU."""
    on_cpu = [partial(_cpu_network, spec, checkpoint, half=half) for checkpoint in checkpoints]
    if device == "cpu":
        return [make() for make in on_cpu]
    from sslmedsam2.inference.network import build_margin_network
    from sslmedsam2.inference.torch_backend import TorchMarginNetwork

    return [
        TorchMarginNetwork(
            build_margin_network(spec, checkpoint), device=device, make_cpu_network=make
        )
        for checkpoint, make in zip(checkpoints, on_cpu, strict=True)
    ]


def _cpu_network(spec: ModelSpec, checkpoint: Checkpoint, *, half: bool) -> _Network:
    """Return a network that OpenVINO runs on the CPU, or torch where OpenVINO cannot."""
    try:
        from sslmedsam2.inference import openvino_backend as openvino
    except ImportError as error:
        return _torch_on_cpu(spec, checkpoint, f"OpenVINO cannot be loaded ({first_line(error)})")
    try:
        return openvino.OpenVinoMarginNetwork(
            spec, checkpoint, in_bfloat16=half and openvino.bfloat16_is_native()
        )
    except openvino.UnsupportedNetworkError as error:
        return _torch_on_cpu(spec, checkpoint, f"OpenVINO cannot run this network ({error})")


def _torch_on_cpu(spec: ModelSpec, checkpoint: Checkpoint, why: str) -> TorchMarginNetwork:
    """Return a network that torch runs; raises ModelError where plans and weights make none."""
    from sslmedsam2.inference.network import build_margin_network
    from sslmedsam2.inference.torch_backend import TorchMarginNetwork

    network = TorchMarginNetwork(build_margin_network(spec, checkpoint), device="cpu")
    logger.warning("%s; using torch", why)
    return network


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 4)
