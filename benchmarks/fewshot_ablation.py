"""Each idea of the few-shot branch on and off, on real volumes, in one run.

Five volumes of `chaos_mr_t2` are supports, the other eleven queries; Dice is that of the mask on
the volume's own grid. Ideas that did not help live only here.

    python benchmarks/fewshot_ablation.py --json benchmarks/results/fewshot_ablation.json
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser, report, require_real_data
from fewshot import COMPACT, SUPPORTS, Case, load
from torch import Tensor

from sslmedsam2.fewshot.alignment import Place, align, find_place
from sslmedsam2.fewshot.checkpoint import LoadedSam2, load_sam2
from sslmedsam2.fewshot.harmonise import refine_by_intensity
from sslmedsam2.fewshot.memory import Decoded, Memory, remember_decoded, segment
from sslmedsam2.fewshot.outcome import largest_piece
from sslmedsam2.fewshot.slices import SliceStack, cut_masks, cut_slices, paste, whole_slice
from sslmedsam2.fewshot.store import EncodedVolume, Encoder
from sslmedsam2.imaging.volume import mask_dice
from sslmedsam2.submission.metrics import measure


@dataclass(frozen=True)
class Seen:
    """A case as the network sees it, with its true masks on the slices."""

    case: Case
    stack: SliceStack
    volume: EncodedVolume
    masks: np.ndarray
    memory: Memory
    place: Place


class Bench:
    """Encodes cases once and answers queries in any of the ways."""

    def __init__(
        self, sam2: LoadedSam2, supports: Sequence[Case], *, body_crop: bool = True
    ) -> None:
        self._encoder = Encoder(sam2)
        self._model = sam2.model
        self._body_crop = body_crop
        self.supports = [self.see(case) for case in supports]

    def see(self, case: Case) -> Seen:
        size = self._encoder.sam2.image_size
        crop = None if self._body_crop else whole_slice(case.image.array_zyx.shape)
        stack = cut_slices(case.image, size=size, crop=crop)
        masks = cut_masks(case.mask_zyx, stack.crop, size=size)
        volume = self._encoder.volume(stack)
        memory = self._encoder.remember(volume, masks)
        return Seen(case, stack, volume, masks, memory, find_place(masks, volume.z_mm))

    def partners(self, query: Seen, how: str = "together", n: int = 5) -> list[np.ndarray]:
        """Return the support slices for each query slice, a list entry for each support."""
        supports = self.supports[:n]
        if how == "relative":
            at = (np.arange(query.volume.n_slices) + 0.5) / query.volume.n_slices
            return [(at * s.volume.n_slices).astype(int) for s in supports]
        pairs = [(s.volume, s.place) for s in supports]
        if how == "one by one":
            return [align(query.volume, [pair])[0][0].indices for pair in pairs]
        return [partners.indices for partners in align(query.volume, pairs)[0]]

    @torch.inference_mode()
    def ask(self, query: Seen, memories: Sequence[Memory]) -> Decoded:
        spatial = torch.stack([memory.spatial for memory in memories], 1).flatten(0, 1)
        pointer = torch.stack([memory.pointer for memory in memories], 1).flatten(0, 1)
        return segment(self._model, query.volume.features, Memory(spatial, pointer))

    def memories(self, partners: Sequence[np.ndarray], shift: int = 0) -> list[Memory]:
        return [
            support.memory[torch.from_numpy((index + shift).clip(0, support.volume.n_slices - 1))]
            for support, index in zip(self.supports, partners, strict=False)
        ]

    @torch.inference_mode()
    def track(self, query: Seen, memories: Sequence[Memory], order: Sequence[int]) -> np.ndarray:
        """Go through the slices in order; each also remembers the six before it."""
        found: dict[int, np.ndarray] = {}
        recent: list[Memory] = []
        for at in order:
            here = query.volume.features[torch.full((len(memories),), at)]
            prompted = Memory(
                torch.stack([memory.spatial[at] for memory in memories]),
                torch.stack([memory.pointer[at] for memory in memories]),
            )
            steps = tuple((k + 1, memory) for k, memory in enumerate(recent[:6]))
            decoded = segment(self._model, here, prompted, steps)
            recent.insert(0, remember_decoded(self._model, here, decoded))
            found[at] = sigmoid(decoded.logits).mean(0)
        return np.stack([found[at] for at in range(query.volume.n_slices)])


def sigmoid(logits: Tensor) -> np.ndarray:
    return logits[:, 0].sigmoid().numpy()


def single(bench: Bench, query: Seen, partners: Sequence[np.ndarray]) -> np.ndarray:
    answers = [sigmoid(bench.ask(query, [m]).logits) for m in bench.memories(partners)]
    return np.mean(answers, axis=0)


def joint(bench: Bench, query: Seen, partners: Sequence[np.ndarray]) -> np.ndarray:
    return sigmoid(bench.ask(query, bench.memories(partners)).logits)


def both(bench: Bench, query: Seen, partners: Sequence[np.ndarray] | None = None) -> np.ndarray:
    partners = bench.partners(query) if partners is None else partners
    return (single(bench, query, partners) + joint(bench, query, partners)) / 2


def gated(bench: Bench, query: Seen) -> np.ndarray:
    partners = bench.partners(query)
    answers = [bench.ask(query, [memory]) for memory in bench.memories(partners)]
    answers.append(bench.ask(query, bench.memories(partners)))
    share = [sigmoid(a.logits) * (a.object_logit > 0).numpy()[:, None, None] for a in answers]
    return (np.mean(share[:-1], axis=0) + share[-1]) / 2


def three_slices(bench: Bench, query: Seen) -> np.ndarray:
    partners = bench.partners(query)
    shifted = [bench.memories(partners, shift) for shift in (-1, 0, 1)]
    answers = [sigmoid(bench.ask(query, list(trio)).logits) for trio in zip(*shifted, strict=True)]
    return (np.mean(answers, axis=0) + joint(bench, query, partners)) / 2


def tracked(bench: Bench, query: Seen) -> np.ndarray:
    memories = bench.memories(bench.partners(query))
    n = query.volume.n_slices
    forth = bench.track(query, memories, range(n))
    back = bench.track(query, memories, range(n - 1, -1, -1))
    return (forth + back) / 2


def never_empty(bench: Bench, query: Seen) -> np.ndarray:
    """Show no support slice without liver: the nearest one with liver instead."""
    partners = []
    for support, index in zip(bench.supports, bench.partners(query), strict=True):
        filled = np.flatnonzero(support.masks.any((1, 2)))
        partners.append(filled[np.abs(index[:, None] - filled[None]).argmin(1)])
    return both(bench, query, partners)


def weighted(bench: Bench, query: Seen) -> np.ndarray:
    """Weigh supports by how well each agrees with the plain mean, to the fourth power."""
    partners = bench.partners(query)
    answers = [sigmoid(bench.ask(query, [m]).logits) for m in bench.memories(partners)]
    mean = np.mean(answers, axis=0) > 0.5
    weights = [mask_dice(answer > 0.5, mean) ** 4 + 1e-3 for answer in answers]
    return (np.average(answers, axis=0, weights=weights) + joint(bench, query, partners)) / 2


def median(bench: Bench, query: Seen) -> np.ndarray:
    partners = bench.partners(query)
    answers = [sigmoid(bench.ask(query, [m]).logits) for m in bench.memories(partners)]
    return (np.median(answers, axis=0) + joint(bench, query, partners)) / 2


def copied(bench: Bench, query: Seen) -> np.ndarray:
    pairs = zip(bench.supports, bench.partners(query), strict=True)
    return np.mean([support.masks[index] for support, index in pairs], axis=0)


WAYS: dict[str, Callable[[Bench, Seen], np.ndarray]] = {
    "alone and together (chosen)": both,
    "alone only": lambda b, q: single(b, q, b.partners(q)),
    "together only": lambda b, q: joint(b, q, b.partners(q)),
    "aligned one by one": lambda b, q: both(b, q, b.partners(q, "one by one")),
    "aligned by relative height": lambda b, q: both(b, q, b.partners(q, "relative")),
    "gated by object score": gated,
    "three slices a support": three_slices,
    "tracked both ways": tracked,
    "tracked and chosen, mean": lambda b, q: (tracked(b, q) + both(b, q)) / 2,
    "no empty support slices": never_empty,
    "supports weighted by agreement": weighted,
    "median over supports": median,
    "1 support": lambda b, q: both(b, q, b.partners(q, n=1)),
    "3 supports": lambda b, q: both(b, q, b.partners(q, n=3)),
    "masks copied, no network": copied,
}


def dice_of(query: Seen, probability: np.ndarray, *, refined: bool) -> float:
    maps = probability.astype(np.float32)
    if refined:
        size = query.stack.slices.shape[-1]
        tensor = torch.from_numpy(maps)[:, None]
        fine = torch.nn.functional.interpolate(tensor, size=(size, size), mode="bilinear")
        maps = refine_by_intensity(fine[:, 0], torch.from_numpy(query.stack.slices)).numpy()
    mask, _ = largest_piece(paste(maps, query.stack) > 0.5)
    spacing = query.case.image.spacing_zyx_mm
    return measure(mask, query.case.mask_zyx, spacing_zyx_mm=spacing).dice


def score(bench: Bench, queries: Sequence[Seen], way: Callable[[Bench, Seen], Any]) -> dict:
    answers = [way(bench, query) for query in queries]
    return {
        name: round(
            statistics.mean(
                dice_of(query, answer, refined=refined)
                for query, answer in zip(queries, answers, strict=True)
            ),
            4,
        )
        for name, refined in (("refined", True), ("plain", False))
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sam2", type=Path, default=COMPACT)
    options = arguments.parse_args()
    folder = require_real_data("chaos_mr_t2")
    cases = [load(path, "T2") for path in sorted(folder.iterdir()) if path.is_dir()]
    supports = [cases[k] for k in SUPPORTS]
    asked = [case for case in cases if case not in supports]
    sam2 = load_sam2(options.sam2, device=torch.device("cpu"))
    bench = Bench(sam2, supports)
    queries = [bench.see(case) for case in asked]
    table = {name: score(bench, queries, way) for name, way in WAYS.items()}
    squashed = Bench(sam2, supports, body_crop=False)
    table["whole slices, squashed"] = score(squashed, [squashed.see(c) for c in asked], both)
    report({"n_queries": len(queries), "dice": table}, options.json)


if __name__ == "__main__":
    main()
