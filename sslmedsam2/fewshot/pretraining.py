"""Pretraining of the compact SAM2 on episodes: resumable, deterministic, CPU or GPU."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as nnf
from torch.utils.data import DataLoader, Dataset

from sslmedsam2.fewshot.checkpoint import CompactArchitecture, build_compact
from sslmedsam2.fewshot.memory import (
    Decoded,
    Memory,
    encode_slices,
    remember_decoded,
    remember_prompts,
    segment,
)
from sslmedsam2.fewshot.organ_episodes import OrganVolume, draw_organ_episode
from sslmedsam2.fewshot.synthetic import Episode, SyntheticTask, draw_episode
from sslmedsam2.imaging.atomic import atomic_path

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

logger = logging.getLogger(__name__)

_SUPPORTS: Final = (1, 2, 3, 4, 4, 5, 6, 8)
"""Numbers of support slices, drawn per step."""
_QUERIES: Final = 3
_EMA: Final = 0.998
_WARM_UP: Final = 200
_SEEDS_PER_BATCH: Final = 64
_PARTS: Final = ("support_images", "support_masks", "query_images", "query_masks")
CHECKPOINT_NAME: Final = "pretraining.pt"
_MOST_WORKERS: Final = 8
_SHARED_MEMORY: Final = Path("/dev/shm")
_WORKERS_NEED_BYTES: Final = 256 * 2**20
"""Each worker has two batches of about 6 MB waiting there."""


@dataclass(frozen=True)
class PretrainSettings:
    """Settings of a pretraining.

    Attributes
    ----------
    steps
        Optimiser steps in all.
    learning_rate
        Its peak, after a short rise and before a cosine fall.
    slices_per_step
        About how many slices the image encoder sees in a step.
    seed
        Of the episodes and of the first weights.
    processes
        How many share a step's episodes, each on one thread; 1 lets torch use its threads.
    save_every_s
        Seconds between checkpoints.
    organ_share
        Share of the steps whose episodes come from labelled scans.
    start_sha256, scans_sha256
        Of the network that the training starts from, and of the labelled scans; None without.
    """

    architecture: CompactArchitecture = field(default_factory=CompactArchitecture)
    task: SyntheticTask = field(default_factory=SyntheticTask)
    steps: int = 3800
    learning_rate: float = 3e-4
    slices_per_step: int = 42
    seed: int = 0
    processes: int = 1
    save_every_s: float = 120.0
    organ_share: float = 0.0
    start_sha256: str | None = None
    scans_sha256: str | None = None


@dataclass(frozen=True)
class PretrainInputs:
    """Labelled scans that a pretraining uses besides synthetic volumes.

    Attributes
    ----------
    volumes
        Labelled scans for the share of steps that the settings name.
    start
        Weights to start from; None for random ones.
    """

    volumes: tuple[OrganVolume, ...] = ()
    start: dict[str, Tensor] | None = None


class _Steps(Dataset):
    """Item ``i`` is the batch of step ``first + i``, whoever makes it; each rank has its own."""

    def __init__(
        self,
        settings: PretrainSettings,
        volumes: tuple[OrganVolume, ...],
        *,
        first: int,
        rank: int,
    ) -> None:
        self._settings = settings
        self._volumes = volumes
        self._first = first
        self._rank = rank

    def __len__(self) -> int:
        return self._settings.steps - self._first

    def __getitem__(self, item: int) -> Episode:
        settings = self._settings
        step = self._first + item
        lot = (settings.seed * 1_000_003 + step) * settings.processes + self._rank
        seed = lot * _SEEDS_PER_BATCH
        generator = torch.Generator().manual_seed(seed)
        n_support = _SUPPORTS[int(torch.randint(len(_SUPPORTS), (), generator=generator))]
        of_organs = torch.rand((), generator=generator).item() < settings.organ_share
        slices = settings.slices_per_step // settings.processes
        episodes = [
            draw_organ_episode(self._volumes, seed=seed + k, n_support=n_support, n_query=_QUERIES)
            if of_organs
            else draw_episode(settings.task, seed=seed + k, n_support=n_support, n_query=_QUERIES)
            for k in range(max(1, slices // (n_support + _QUERIES)))
        ]
        return Episode(
            *(torch.stack([getattr(episode, name) for episode in episodes]) for name in _PARTS)
        )


def pretrain(
    settings: PretrainSettings,
    inputs: PretrainInputs = PretrainInputs(),
    *,
    work_dir: Path,
    device: torch.device,
) -> SAM2Base:
    """Train a compact SAM2 and return it with its averaged weights, in evaluation mode.

    A training that was stopped continues from its last checkpoint in ``work_dir``.
    """
    if settings.processes == 1:
        average = _train(0, settings, inputs, work_dir, device, None)
    else:
        # Small tensors leave threads of one process waiting for each other; processes with a
        # thread each do half as much again.
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(
                _train,
                args=(settings, inputs, work_dir, device, Path(folder) / "rendezvous"),
                nprocs=settings.processes,
            )
        written = torch.load(work_dir / CHECKPOINT_NAME, map_location="cpu", weights_only=True)
        average = written["average"]
    model = build_compact(settings.architecture)
    model.load_state_dict(average)
    return model.eval()


def _train(
    rank: int,
    settings: PretrainSettings,
    inputs: PretrainInputs,
    work_dir: Path,
    device: torch.device,
    rendezvous: Path | None,
) -> dict[str, Tensor]:
    """Train in one of ``settings.processes`` processes, and return the averaged weights.

    The first process writes the checkpoint, and it alone averages.
    """
    if rendezvous is not None:
        _join(rank, settings, rendezvous)
    state = _State.begin(settings, inputs, device=device)
    checkpoint = work_dir / CHECKPOINT_NAME
    if checkpoint.exists():
        state.load(checkpoint, device=device)
        logger.info("going on after step %d of %d", state.step, settings.steps)

    saved = time.monotonic()
    seen: list[float] = []
    batches = DataLoader(
        _Steps(settings, inputs.volumes, first=state.step, rank=rank),
        batch_size=None,
        num_workers=_n_workers(device),
        pin_memory=device.type == "cuda",
    )
    for step, batch in enumerate(batches, state.step):
        if _is_orphaned():
            raise SystemExit(1)
        for group in state.optimiser.param_groups:
            group["lr"] = _learning_rate(settings, step)
        seen.append(_train_step(state.model, state.optimiser, batch, device=device, step=step))
        if rank > 0:
            continue
        _update_average(state.average, state.model, step)
        state.step = step + 1
        if len(seen) == 50:
            logger.info("step %d: loss %.4f", state.step, sum(seen) / len(seen))
            seen = []
        if state.step == settings.steps or time.monotonic() - saved > settings.save_every_s:
            state.save(checkpoint, settings)
            saved = time.monotonic()
    if rendezvous is not None:
        dist.destroy_process_group()
    return state.average


def _join(rank: int, settings: PretrainSettings, rendezvous: Path) -> None:
    """Join the processes that share a training, with one thread each."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING)
    dist.init_process_group(
        "gloo", f"file://{rendezvous}", rank=rank, world_size=settings.processes
    )


@dataclass
class _State:
    """What a checkpoint holds; ``step`` counts the steps that are done."""

    model: SAM2Base
    average: dict[str, Tensor]
    optimiser: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def begin(
        cls, settings: PretrainSettings, inputs: PretrainInputs, *, device: torch.device
    ) -> _State:
        torch.manual_seed(settings.seed)
        model = build_compact(settings.architecture)
        if inputs.start is not None:
            model.load_state_dict(inputs.start)
        model = model.to(device)
        average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        return cls(model, average, optimiser)

    def load(self, path: Path, *, device: torch.device) -> None:
        found = torch.load(path, map_location=device, weights_only=True)
        self.model.load_state_dict(found["model"])
        self.optimiser.load_state_dict(found["optimiser"])
        self.average, self.step = found["average"], found["step"]

    def save(self, path: Path, settings: PretrainSettings) -> None:
        content = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "settings": asdict(settings),
        }
        with atomic_path(path) as partial:
            torch.save(content, partial)


def _n_workers(device: torch.device) -> int:
    """Return how many processes draw episodes for a GPU; none where shared memory is small."""
    if device.type == "cpu":
        return 0
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free < _WORKERS_NEED_BYTES:
        logger.warning(
            "%s is small: episodes are drawn one after the other; --shm-size 1g makes it quicker",
            _SHARED_MEMORY,
        )
        return 0
    return max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))


def _is_orphaned() -> bool:
    """Return whether the process that started this one was killed."""
    parent = torch.multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _learning_rate(settings: PretrainSettings, step: int) -> float:
    rise = min(1.0, (step + 1) / _WARM_UP)
    fall = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return settings.learning_rate * rise * max(fall, 0.01)


def _update_average(average: dict[str, Tensor], model: SAM2Base, step: int) -> None:
    keep = min(_EMA, (1 + step) / (10 + step))
    for name, value in model.state_dict().items():
        average[name].lerp_(value.detach(), 1 - keep)


def _train_step(
    model: SAM2Base,
    optimiser: torch.optim.Optimizer,
    batch: Episode,
    *,
    device: torch.device,
    step: int,
) -> float:
    batch = Episode(*(getattr(batch, name).to(device, non_blocking=True) for name in _PARTS))
    # On a CPU without AMX, bfloat16 makes attention's backward pass slower than float32.
    in_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
        # Every fourth step lets a query remember its own neighbours, as tracking does.
        loss = _episode_loss(model, batch, chained=step % 4 == 3)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    _share_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return loss.item()


def _share_gradients(model: SAM2Base) -> None:
    """Give every process the mean of all processes' gradients."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    pieces = flat.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


def _episode_loss(model: SAM2Base, batch: Episode, *, chained: bool) -> Tensor:
    n, n_support = batch.support_images.shape[:2]
    n_query = batch.query_images.shape[1]
    images = torch.cat([batch.support_images.flatten(0, 1), batch.query_images.flatten(0, 1)])
    features = encode_slices(model, images)
    n_prompts = n * n_support
    prompted = remember_prompts(model, features[:n_prompts], batch.support_masks.flatten(0, 1))
    if not chained:
        each = torch.arange(n_prompts, device=images.device).view(n, n_support)
        each = each.repeat_interleave(n_query, 0).flatten()
        decoded = segment(model, features[n_prompts:], prompted[each])
        return _loss(decoded, batch.query_masks.flatten(0, 1))
    of_query = torch.arange(n * n_query, device=images.device).view(n, n_query) + n_prompts
    recent: tuple[tuple[int, Memory], ...] = ()
    losses = []
    for k in range(n_query):
        here = features[of_query[:, k]]
        decoded = segment(model, here, prompted, recent=recent)
        losses.append(_loss(decoded, batch.query_masks[:, k]))
        older = tuple((steps + 1, memory) for steps, memory in recent)
        recent = ((1, remember_decoded(model, here, decoded)), *older)
    return torch.stack(losses).mean()


def _loss(decoded: Decoded, masks: Tensor) -> Tensor:
    """Return the loss of masks and of estimated IoU; ``masks`` are ``(n, 1, size, size)``."""
    logits = nnf.interpolate(decoded.logits.float(), size=masks.shape[-2:], mode="bilinear")
    present = masks.flatten(1).amax(1)
    bce = nnf.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    probability = logits.sigmoid()
    miss = torch.where(masks > 0.5, 1 - probability, probability)
    focal = (bce * miss.square()).mean((1, 2, 3))
    overlap = 2 * (probability * masks).sum((1, 2, 3))
    dice = 1 - (overlap + 1) / ((probability + masks).sum((1, 2, 3)) + 1)
    with torch.no_grad():
        hard = logits > 0
        both = (hard & (masks > 0.5)).sum((1, 2, 3))
        either = (hard | (masks > 0.5)).sum((1, 2, 3))
        true_iou = both / either.clamp_min(1)
    iou = (decoded.iou.float() - true_iou).abs() * present
    seen = nnf.binary_cross_entropy_with_logits(decoded.object_logit.float(), present)
    pixels = 5 * focal + bce.mean((1, 2, 3))
    return (pixels + present * dice).mean() + 0.1 * iou.mean() + 0.1 * seen
