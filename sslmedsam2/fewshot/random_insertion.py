"""The published procedure, as a baseline: supports inserted into the query at random positions.

Each support volume is inserted, whole, between two slices of the query; its slices with liver are
mask prompts, and SAM2 tracks from the first of them to the last slice, and again back to the first
(Gong & Chen 2025, arXiv:2512.11548, as their scripts run it). The mean over all supports and
positions is the result. Differences from those scripts: a slice is encoded once in each run rather
than up to twice, positions are drawn from a seed and the name of the query rather than from a
shared generator, and short queries get fewer positions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sslmedsam2.fewshot.checkpoint import LoadedSam2
from sslmedsam2.fewshot.memory import normalise
from sslmedsam2.fewshot.outcome import SupportPrediction, conclude, name_seed
from sslmedsam2.fewshot.slices import (
    check_image,
    check_masks,
    cut_masks,
    cut_slices,
    whole_slice,
)
from sslmedsam2.fewshot.strategy import FewShotResult, FewShotSettings, Query, Support

N_PLACES: Final = 5


@dataclass(frozen=True)
class _CutSupport:
    """A support's slices and masks, both ``(n, size, size)``."""

    name: str
    case: str
    slices: npt.NDArray[np.float32]
    masks: npt.NDArray[np.float32]


class RandomInsertion:
    """Tracks through every support, inserted at several places of the query."""

    def __init__(
        self,
        settings: FewShotSettings,
        sam2: LoadedSam2,
        supports: Sequence[Support],
        *,
        scratch_dir: Path,  # noqa: ARG002 - nothing is kept between queries
    ) -> None:
        """Cut the supports' slices; they are encoded anew for each query, as published."""
        self._settings = settings
        self._sam2 = sam2
        self._supports = sorted(
            (_cut_support(support, sam2.image_size) for support in supports),
            key=lambda support: support.name,
        )

    def segment(self, query: Query, *, leave_out_case: str | None = None) -> FewShotResult:
        """See :class:`~sslmedsam2.fewshot.strategy.Strategy`."""
        start = time.perf_counter()
        size = self._sam2.image_size
        stack = cut_slices(query.image, size=size, crop=whole_slice(query.image.array_zyx.shape))
        check_image(stack, name=query.name)
        calls = 0
        predictions = []
        for support in self._supports:
            if support.case == leave_out_case:
                continue
            runs = []
            for place in self._places(query.name, support.name, len(stack.slices)):
                frames = np.concatenate(
                    [stack.slices[:place], support.slices, stack.slices[place:]]
                )
                with self._sam2.computing():
                    runs.append(_track(self._sam2, frames, support.masks, place=place))
                calls += len(frames)
            predictions.append(
                SupportPrediction(
                    name=support.name,
                    probability=np.mean(runs, axis=0),
                )
            )
        seconds = {"segment": round(time.perf_counter() - start, 3)}
        return conclude(
            stack,
            predictions,
            probability=np.mean([prediction.probability for prediction in predictions], axis=0),
            encoder_calls=calls,
            seconds=seconds,
        )

    def _places(self, query: str, support: str, n_slices: int) -> list[int]:
        seed = name_seed(self._settings.seed, query, support)
        generator = np.random.default_rng(seed)
        n_places = min(N_PLACES, n_slices + 1)
        return sorted(generator.choice(n_slices + 1, n_places, replace=False).tolist())


def _cut_support(support: Support, size: int) -> _CutSupport:
    crop = whole_slice(support.image.array_zyx.shape)
    stack = cut_slices(support.image, size=size, crop=crop)
    masks = cut_masks(support.mask_zyx, crop, size=size)
    check_masks(masks, name=support.name)
    return _CutSupport(support.name, support.case, stack.slices, masks)


def _track(
    sam2: LoadedSam2, frames: npt.NDArray[np.float32], masks: npt.NDArray[np.float32], *, place: int
) -> npt.NDArray[np.float32]:
    """Return the query slices' probabilities ``(n, size, size)``."""
    model = sam2.model
    encoded = [_encode(sam2, frame) for frame in frames]
    prompted = {place + k: masks[k] for k in range(len(masks)) if masks[k].any()}
    output: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    def step(index: int, *, mask: npt.NDArray | None = None, reverse: bool = False) -> Any:
        features, positions, sizes = encoded[index]
        return model.track_step(
            frame_idx=index,
            is_init_cond_frame=mask is not None,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs=None,
            mask_inputs=None
            if mask is None
            else torch.from_numpy(mask)[None, None].to(sam2.device),
            output_dict=output,
            num_frames=len(frames),
            track_in_reverse=reverse,
        )

    for index, mask in prompted.items():
        output["cond_frame_outputs"][index] = step(index, mask=mask)
    n_query = len(frames) - len(masks)
    probability = np.zeros((n_query, sam2.image_size, sam2.image_size), np.float32)
    first = min(prompted)
    for order, reverse in ((range(first, len(frames)), False), (range(first, -1, -1), True)):
        output["non_cond_frame_outputs"] = {}
        for index in order:
            if index in prompted:
                continue
            found = step(index, reverse=reverse)
            output["non_cond_frame_outputs"][index] = found
            if place <= index < place + len(masks):
                continue
            at = index if index < place else index - len(masks)
            probability[at] = found["pred_masks_high_res"][0, 0].float().sigmoid().cpu().numpy()
    return probability


def _encode(
    sam2: LoadedSam2, slice_image: npt.NDArray[np.float32]
) -> tuple[list[Tensor], list[Tensor], list[tuple[int, int]]]:
    image = torch.from_numpy(slice_image)[None, None].to(sam2.device)
    backbone = sam2.model.forward_image(normalise(image))
    _, features, positions, sizes = sam2.model._prepare_backbone_features(backbone)
    return features, positions, sizes
