"""Few-shot segmentation by retrieval: a query slice attends to support slices at its height.

Each slice of a data set is encoded once. A query slice attends to one aligned slice of each
support, with all slices of the query in one batch. It attends to each support alone, which shows
how far they agree, and to all together, where SAM2 weights them. The probabilities are averaged,
then corrected by the query's intensities and by what the supports, segmented by one another, show
of the errors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as nnf

from sslmedsam2.fewshot.alignment import Partners, Place, align, find_place, on_query_grid
from sslmedsam2.fewshot.checkpoint import LoadedSam2
from sslmedsam2.fewshot.correction import Corrector, Example, Prediction, example_of
from sslmedsam2.fewshot.harmonise import (
    AS_IS,
    SAME_CONTRAST,
    Quantiles,
    appearances,
    body_quantiles,
    contrast_distance,
    refine_by_intensity,
)
from sslmedsam2.fewshot.memory import Memory, segment
from sslmedsam2.fewshot.outcome import SupportPrediction, agreements, conclude, shrink
from sslmedsam2.fewshot.slices import (
    SliceStack,
    check_image,
    check_masks,
    cut,
    cut_masks,
    cut_slices,
    unit_intensities,
)
from sslmedsam2.fewshot.store import (
    DescribedVolume,
    EncodedSupport,
    EncodedVolume,
    Encoder,
    SupportStore,
    content_key,
    memory_for_supports,
)
from sslmedsam2.fewshot.strategy import FewShotResult, FewShotSettings, Query, Support
from sslmedsam2.imaging.volume import mask_dice

logger = logging.getLogger(__name__)

_TOGETHER_AT_MOST: Final = 8
"""Conditioning frames of the joint pass; the network is trained with up to eight."""
_SOUND_AGREEMENT: Final = 0.7
"""Below this, other heights are tried: in 126 queries between CT and T2 it was 0.61 to 0.65 in the
three whose height was wrong, and 0.73 and more in the others."""
_N_PLACES: Final = 3
_LEAST_COVERED: Final = 0.5
"""Share of the slices of the query that another sequence of the patient must cover."""
_MOST_EXAMPLES: Final = 8
"""Supports that are segmented by the others to learn the correction from."""
_LOST_ELSEWHERE: Final = 0.5
"""Weight that the correction loses for a query of another contrast than the supports."""


@dataclass(frozen=True)
class _StoredSupport:
    """The part of a support that is always in memory.

    The encoded slices are in the store under ``key``; the support itself is ``supports[index]``.
    """

    name: str
    case: str
    index: int
    key: str
    described: DescribedVolume
    place: Place
    contrast: Quantiles


@dataclass(frozen=True)
class _AlignedSupport:
    """A support, aligned to one query.

    ``partners[i]`` is the support slice for query slice ``i``. ``share`` is the weight of the
    support relative to the others.
    """

    name: str
    support: Callable[[], EncodedSupport]
    memories: Callable[[], Memory]
    partners: npt.NDArray[np.int64]
    similarity: float
    share: float = 1.0

    def partner_memories(self) -> Memory:
        """Return one memory for each query slice; it may be read from disk."""
        return self.memories()[torch.from_numpy(self.partners)]


@dataclass(frozen=True)
class _ShownQuery:
    """An encoded query in one contrast; ``slices`` are those of the stack, on SAM2's device."""

    query: Query
    appearance: str
    stack: SliceStack
    slices: Tensor
    volume: EncodedVolume


@dataclass(frozen=True)
class _Attempt:
    """The predictions for a query in one contrast and at one height.

    ``fused`` is the average over the supports, at the resolution of the predictions;
    ``probability`` the same at the size of the slices, corrected.
    """

    shown: _ShownQuery
    views: list[_AlignedSupport]
    predictions: list[SupportPrediction]
    fused: npt.NDArray[np.float32]
    probability: npt.NDArray[np.float32]

    @property
    def agreement(self) -> float:
        """Mean Dice of the supports' masks with the result; 0 if the result is empty.

        It is low for a wrong contrast or height.
        """
        if not (self.probability > 0.5).any():
            return 0.0
        return float(np.mean(agreements(self.predictions, self.probability)))


class Retrieval:
    """Few-shot segmentation with aligned support slices as memories; see the module."""

    def __init__(
        self,
        settings: FewShotSettings,
        sam2: LoadedSam2,
        supports: Sequence[Support],
        *,
        scratch_dir: Path,
    ) -> None:
        """Encode every support slice and make its memory."""
        self._settings = settings
        self._encoder = Encoder(sam2)
        self._store = SupportStore(
            scratch_dir,
            limits=memory_for_supports(sam2.device, settings.memory_limit_mb),
            device=sam2.device,
        )
        # Kept as a sequence: supports may be read from disk, one at a time.
        self._supports = supports
        known = [self._know(index, support) for index, support in enumerate(supports)]
        self._known = sorted(known, key=lambda known: known.name)
        self._examples: list[Example] | None = None
        self._correctors: dict[str | None, Corrector | None] = {}

    def segment(self, query: Query, *, leave_out_case: str | None = None) -> FewShotResult:
        """See :class:`~sslmedsam2.fewshot.strategy.Strategy`."""
        corrector = self._corrector(leave_out_case) if self._settings.correct else None
        start = time.perf_counter()
        calls_before = self._encoder.calls
        stack = cut_slices(query.image, size=self._size)
        check_image(stack, name=query.name)
        supports = self._all_but(leave_out_case)
        reference = np.mean([known.contrast for known in supports], axis=0)
        distance = contrast_distance(body_quantiles(stack.slices), reference)
        best = self._best_attempt(query, stack, supports, reference=reference)
        if corrector is not None:
            share = 1 - _LOST_ELSEWHERE * min(1.0, distance / SAME_CONTRAST)
            corrected = corrector.correct(self._prediction(best), share=share)
            best = replace(best, probability=corrected)
        result = conclude(
            stack,
            self._reverse_check(best) if self._settings.reverse else best.predictions,
            probability=best.probability,
            encoder_calls=self._encoder.calls - calls_before,
            seconds={"segment": round(time.perf_counter() - start, 3)},
        )
        evidence = replace(
            result.evidence,
            contrast_distance=round(distance, 4),
            similarity=round(float(np.mean([view.similarity for view in best.views])), 4),
        )
        shown_as = best.shown.appearance
        note = f"harmonised: the query's contrast was matched to the supports ({shown_as})"
        notes = () if shown_as == AS_IS else (note,)
        return replace(result, evidence=evidence, warnings=(*result.warnings, *notes))

    def _all_but(self, case: str | None) -> list[_StoredSupport]:
        return [known for known in self._known if known.case != case]

    def _best_attempt(
        self,
        query: Query,
        stack: SliceStack,
        supports: Sequence[_StoredSupport],
        *,
        reference: Quantiles,
        encoded: EncodedVolume | None = None,
    ) -> _Attempt:
        """Segment the query in the contrast and at the height on which the supports agree best.

        ``encoded`` is the query as it is, if it is known already.
        """
        contrasts: Mapping[str, npt.NDArray[np.float32]] = {AS_IS: stack.slices}
        if self._settings.harmonise:
            contrasts = appearances(stack.slices, reference)
        tried = []
        for name, slices in contrasts.items():
            volume = encoded if name == AS_IS else None
            shown = self._show(query, replace(stack, slices=slices), name, encoded=volume)
            at_heights = self._attempts(shown, supports)
            tried.append((next(at_heights), at_heights))
        best, at_others = max(tried, key=lambda one: one[0].agreement)
        if best.agreement < _SOUND_AGREEMENT:
            best = max((best, *at_others), key=lambda attempt: attempt.agreement)
        return best

    def _corrector(self, leave_out_case: str | None) -> Corrector | None:
        """Fit the correction to the supports of all other patients; None with too few."""
        if self._examples is None:
            step = max(1, -(-len(self._known) // _MOST_EXAMPLES))
            found = (self._example(known) for known in self._known[::step])
            self._examples = [example for example in found if example is not None]
        if leave_out_case not in self._correctors:
            examples = [one for one in self._examples if one.case != leave_out_case]
            kinds = {bool(value) for one in examples for value in np.unique(one.inside)}
            self._correctors[leave_out_case] = Corrector(examples) if len(kinds) == 2 else None
        return self._correctors[leave_out_case]

    def _example(self, known: _StoredSupport) -> Example | None:
        """Segment a support with those of the other patients; None if there are none."""
        others = self._all_but(known.case)
        if not others:
            return None
        support = self._supports[known.index]
        stack = cut_slices(support.image, size=self._size)
        reference = np.mean([other.contrast for other in others], axis=0)
        own = self._store.get(known.key)
        attempt = self._best_attempt(
            support, stack, others, reference=reference, encoded=own.volume
        )
        return example_of(self._prediction(attempt), own.masks, case=known.case)

    def _prediction(self, attempt: _Attempt) -> Prediction:
        """Return what the correction looks at."""
        stack, size = attempt.shown.stack, self._size
        each = np.stack([one.probability for one in attempt.predictions])
        statistics = (attempt.fused, each.min(0), each.max(0), each.std(0))
        fused, lowest, highest, spread = (
            _enlarge(torch.from_numpy(maps), size).numpy() for maps in statistics
        )
        z_mm, y_mm, x_mm = stack.spacing_zyx_mm
        y_pixels, x_pixels = (extent / size for extent in stack.crop.size_yx)
        return Prediction(
            fused=fused,
            refined=attempt.probability,
            lowest=lowest,
            highest=highest,
            spread=spread,
            slices=attempt.shown.slices[:, 0].cpu().numpy(),
            spacing_zyx_mm=(z_mm, y_mm * y_pixels, x_mm * x_pixels),
        )

    def _show(
        self,
        query: Query,
        stack: SliceStack,
        appearance: str,
        *,
        encoded: EncodedVolume | None = None,
    ) -> _ShownQuery:
        slices = self._encoder.on_device(stack.slices)
        volume = encoded or self._encoder.volume(stack, slices=slices)
        return _ShownQuery(query, appearance, stack, slices, volume)

    def _attempts(
        self, shown: _ShownQuery, supports: Sequence[_StoredSupport]
    ) -> Iterator[_Attempt]:
        """Segment the query at the likeliest height of its organ, then at other heights."""
        pairs = [(known.described, known.place) for known in supports]
        for aligned in align(shown.volume, pairs, n_places=_N_PLACES):
            yield self._attempt(shown, supports, aligned)

    def _attempt(
        self,
        shown: _ShownQuery,
        supports: Sequence[_StoredSupport],
        aligned: Sequence[Partners],
    ) -> _Attempt:
        others = len(supports) - 1
        views = [
            self._same_patient(shown.query, shown.stack, known, others=others)
            or _AlignedSupport(
                known.name,
                partial(self._store.get, known.key),
                partial(self._store.memory, known.key),
                partners.indices,
                partners.similarity,
            )
            for known, partners in zip(supports, aligned, strict=True)
        ]
        predictions, together = self._segment_by_each_and_all(shown.volume, views)
        fused = np.stack([_mean(predictions), together]).mean(axis=0, dtype=np.float32)
        probability = self._refined(fused, shown.slices[:, 0])
        return _Attempt(shown, views, predictions, fused, probability)

    def _refined(
        self, probability: npt.NDArray[np.float32], slices: Tensor
    ) -> npt.NDArray[np.float32]:
        """Enlarge to the size of the slices and correct by their intensities, on SAM2's device."""
        try:
            enlarged = _enlarge(torch.from_numpy(probability).to(slices.device), self._size)
            return self._corrected(enlarged, slices).cpu().numpy()
        except torch.cuda.OutOfMemoryError:
            logger.warning("out of GPU memory: one query is refined on the CPU")
        enlarged = _enlarge(torch.from_numpy(probability), self._size)
        return self._corrected(enlarged, slices.cpu()).numpy()

    def _corrected(self, probability: Tensor, slices: Tensor) -> Tensor:
        return refine_by_intensity(probability, slices) if self._settings.refine else probability

    @property
    def _size(self) -> int:
        return self._encoder.sam2.image_size

    def _know(self, index: int, support: Support) -> _StoredSupport:
        stack = cut_slices(support.image, size=self._size)
        masks = cut_masks(support.mask_zyx, stack.crop, size=self._size)
        check_masks(masks, name=support.name)
        key = content_key(stack.slices, masks)
        if key not in self._store:
            self._store.put(key, self._encoded(stack, masks))
        encoded = self._store.get(key)
        return _StoredSupport(
            name=support.name,
            case=support.case,
            index=index,
            key=key,
            described=encoded.volume.without_features(),
            place=find_place(encoded.masks, encoded.volume.z_mm),
            contrast=body_quantiles(stack.slices),
        )

    def _encoded(self, stack: SliceStack, masks: npt.NDArray[np.float32]) -> EncodedSupport:
        volume = self._encoder.volume(stack)
        return EncodedSupport(volume, self._encoder.remember(volume, masks), masks)

    def _same_patient(
        self, query: Query, stack: SliceStack, known: _StoredSupport, *, others: int
    ) -> _AlignedSupport | None:
        """Align another sequence of the patient by position; None without enough overlap."""
        if known.case != query.case:
            return None
        support = self._supports[known.index]
        image_zyx, mask_zyx = on_query_grid(support, query)
        slices = cut(unit_intensities(image_zyx), stack.crop, size=self._size)
        covered = np.flatnonzero(slices.any((1, 2)))
        if len(covered) < _LEAST_COVERED * len(slices) or not mask_zyx.any():
            return None
        masks = cut_masks(mask_zyx, stack.crop, size=self._size)
        encoded = self._encoded(replace(stack, slices=slices), masks)
        nearest = np.abs(np.arange(len(slices))[:, None] - covered[None]).argmin(1)
        share = float(max(1, others))
        return _AlignedSupport(
            known.name,
            lambda: encoded,
            lambda: encoded.memory,
            covered[nearest],
            similarity=1.0,
            share=share,
        )

    def _segment_by_each_and_all(
        self, volume: EncodedVolume, views: Sequence[_AlignedSupport]
    ) -> tuple[list[SupportPrediction], npt.NDArray[np.float32]]:
        """Segment every slice with each support, and with the most similar ones together.

        The joint probability is ``(n, h, w)``. Each support is read once, a few at a time.
        """
        ranked = sorted(range(len(views)), key=lambda index: -views[index].similarity)
        found: dict[int, npt.NDArray[np.float32]] = {}
        together = np.empty(0, np.float32)
        for start in range(0, len(ranked), _TOGETHER_AT_MOST):
            group = ranked[start : start + _TOGETHER_AT_MOST]
            memories = [views[index].partner_memories() for index in group]
            found |= zip(group, self._segment_by_each(volume, memories), strict=True)
            if start == 0:
                together = self._segment(volume, memories)
        predictions = [
            SupportPrediction(view.name, found[index], view.share, view.similarity)
            for index, view in enumerate(views)
        ]
        return predictions, together

    def _segment_by_each(
        self, volume: EncodedVolume, memories: Sequence[Memory]
    ) -> list[npt.NDArray[np.float32]]:
        """Segment as :meth:`_segment` does with each of the memories alone."""
        if self._encoder.sam2.device.type == "cpu":
            return [self._segment(volume, [memory]) for memory in memories]
        # On a GPU a batch contains slices of several supports, so that it is full.
        joined = Memory.joined(memories)
        slices = torch.arange(volume.n_slices, device=joined.spatial.device).repeat(len(memories))
        return np.split(self._segment(volume, [joined], slices=slices), len(memories))

    def _reverse_check(self, best: _Attempt) -> list[SupportPrediction]:
        """Segment each support with the result as prompt, and add its Dice to the prediction.

        Reverse classification accuracy: a wrong mask does not reproduce the reference masks.
        """
        result = self._encoder.remember(best.shown.volume, best.probability > 0.5)
        checked = []
        for view, prediction in zip(best.views, best.predictions, strict=True):
            support = view.support()
            numbers = np.arange(support.volume.n_slices)
            # For each support slice, the query slice with the nearest partner.
            back = np.abs(numbers[:, None] - view.partners[None]).argmin(1)
            found = self._segment(support.volume, [result[torch.from_numpy(back)]])
            expected = shrink(support.masks, found.shape[-1])
            seen = np.isin(numbers, view.partners)
            checked.append(
                replace(prediction, reverse_dice=mask_dice(found[seen] > 0.5, expected[seen] > 0.5))
            )
        return checked

    def _segment(
        self, volume: EncodedVolume, memories: Sequence[Memory], *, slices: Tensor | None = None
    ) -> npt.NDArray[np.float32]:
        """Return probabilities ``(n, h, w)``.

        Each of the ``memories`` has one entry per slice; a slice attends to its entry in each.
        ``slices`` ``(n,)`` are the numbers of the volume's slices; by default each, once.
        """
        spatial = torch.stack([memory.spatial for memory in memories], 1)
        pointer = torch.stack([memory.pointer for memory in memories], 1)

        def compute(part: slice) -> Tensor:
            prompted = Memory(spatial[part].flatten(0, 1), pointer[part].flatten(0, 1))
            features = volume.features[part if slices is None else slices[part]]
            decoded = segment(self._encoder.sam2.model, features, prompted)
            return decoded.logits[:, 0].float().sigmoid().cpu()

        return torch.cat(self._encoder.in_batches(len(spatial), compute)).numpy()


def _enlarge(maps: Tensor, size: int) -> Tensor:
    """Scale maps ``(n, h, w)`` to ``(n, size, size)``, linearly."""
    return nnf.interpolate(maps[:, None], size=(size, size), mode="bilinear")[:, 0]


def _mean(predictions: Sequence[SupportPrediction]) -> npt.NDArray[np.float32]:
    weights = np.array([one.weight for one in predictions], np.float32)
    total = sum(w * one.probability for w, one in zip(weights, predictions, strict=True))
    return (total / weights.sum()).astype(np.float32)
