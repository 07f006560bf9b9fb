"""SAM2's parts, called one at a time: encode slices, make memories of prompted ones, decode others

The video predictor of `sam2` chooses the memories of a frame by its place in time. Slices of other
patients have no such place, so here the caller gives the memories that a slice attends to. Every
tensor has the slices (or independent queries) along its first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional as nnf

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base
    from typing_extensions import Self

_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_PROMPT_LOGIT: Final = 10.0
"""SAM2 turns a mask prompt into logits of +10 and -10."""


class _OfSlices:
    """Tensors with the slices along their first axis."""

    def __getitem__(self, index: Tensor | slice) -> Self:
        """Return the tensors of some slices, in the given order."""
        return self.map(lambda tensor: tensor[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same with each tensor changed."""
        return type(self)(*map(change, vars(self).values()))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return all slices of the parts, in order."""
        return cls(*map(torch.cat, zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class Features(_OfSlices):
    """The output of the image encoder for ``n`` slices.

    ``fine`` and ``middle`` are ``(n, c, h, w)`` at strides 4 and 8; ``coarse`` at stride 16 is what
    memories are made of and what attends to them.
    """

    fine: Tensor
    middle: Tensor
    coarse: Tensor


@dataclass(frozen=True)
class Memory(_OfSlices):
    """SAM2's memories of ``n`` segmented slices: maps ``(n, c, h, w)``, pointers ``(n, d)``."""

    spatial: Tensor
    pointer: Tensor


@dataclass(frozen=True)
class Decoded:
    """A mask for each of ``n`` slices.

    ``logits`` are ``(n, 1, h, w)`` at stride 4 and say where the object is, if it is there;
    ``object_logit`` ``(n,)`` says whether it is; ``iou`` ``(n,)`` is the network's own guess of
    the mask's quality. ``pointer`` is for a :class:`Memory`.
    """

    logits: Tensor
    object_logit: Tensor
    iou: Tensor
    pointer: Tensor


def encode_slices(model: SAM2Base, images: Tensor) -> Features:
    """Run the image encoder once on slices ``(n, 1, size, size)`` in [0, 1]."""
    return Features(*model.forward_image(normalise(images))["backbone_fpn"])


def normalise(images: Tensor) -> Tensor:
    """Make three normalised channels of grey ``(n, 1, size, size)`` in [0, 1]."""
    mean = images.new_tensor(_IMAGENET_MEAN).view(1, 3, 1, 1)
    std = images.new_tensor(_IMAGENET_STD).view(1, 3, 1, 1)
    return (images - mean) / std


def remember_prompts(model: SAM2Base, features: Features, masks: Tensor) -> Memory:
    """Make memories of slices whose masks ``(n, 1, size, size)``, 0 or 1, are known.

    An empty mask makes a memory of absence.
    """
    present = masks.flatten(1).amax(1, keepdim=True) > 0
    prompt = model.mask_downsample(masks)
    if prompt.shape[-2:] != model.sam_prompt_encoder.mask_input_size:
        prompt = nnf.interpolate(
            prompt, size=model.sam_prompt_encoder.mask_input_size, mode="bilinear", antialias=True
        )
    decoded = _decode(model, features, features.coarse, mask_prompt=prompt)
    logits = (2 * masks - 1) * _PROMPT_LOGIT
    # As in SAM2: first by the decoder's object score, then by the mask.
    pointer = _gate_pointer(model, decoded.pointer, decoded.object_logit[:, None] > 0)
    return Memory(
        spatial=_remember(model, features, logits, present),
        pointer=_gate_pointer(model, pointer, present),
    )


def remember_decoded(model: SAM2Base, features: Features, decoded: Decoded) -> Memory:
    """Make memories of slices that the network itself has segmented."""
    present = decoded.object_logit[:, None] > 0
    size = (model.image_size, model.image_size)
    logits = nnf.interpolate(decoded.logits.float(), size=size, mode="bilinear")
    logits = torch.where(present[..., None, None], logits, -_PROMPT_LOGIT)
    return Memory(
        spatial=_remember(model, features, logits, present),
        pointer=_gate_pointer(model, decoded.pointer, present),
    )


def segment(
    model: SAM2Base,
    features: Features,
    prompted: Memory,
    *,
    recent: tuple[tuple[int, Memory], ...] = (),
) -> Decoded:
    """Find the object in ``n`` slices, given what each of them remembers.

    ``prompted`` holds ``n * k`` memories: the first ``k`` are the first slice's, and so on; they
    are a set, without order. ``recent`` are memories (``n`` each) of slices some steps before,
    with the number of steps, from 1 to ``model.num_maskmem - 1``.
    """
    n, _, height, width = features.coarse.shape
    k = prompted.spatial.shape[0] // n
    position = model.memory_encoder.position_encoding(prompted.spatial[:1])
    position = position.flatten(2).permute(2, 0, 1).to(prompted.spatial.dtype)

    frames = [(0, prompted.spatial.view(n, k, *prompted.spatial.shape[1:])[:, i]) for i in range(k)]
    frames += [(steps, memory.spatial) for steps, memory in recent]
    tokens = [spatial.flatten(2).permute(2, 0, 1) for _, spatial in frames]
    places = [
        # The last place in time is the prompted slices', the others are counted from the nearest.
        (position + model.maskmem_tpos_enc[steps - 1]).expand(-1, n, -1)
        for steps, _ in frames
    ]
    pointers = list(prompted.pointer.view(n, k, -1).unbind(1))
    pointers += [memory.pointer for _, memory in recent]
    pointer_tokens, pointer_places = _pointer_tokens(
        model, torch.stack(pointers), [max(1, steps) for steps, _ in frames]
    )
    attended = model.memory_attention(
        curr=features.coarse.flatten(2).permute(2, 0, 1),
        curr_pos=_image_position(model, features.coarse),
        memory=torch.cat([*tokens, pointer_tokens]),
        memory_pos=torch.cat([*places, pointer_places]),
        num_obj_ptr_tokens=pointer_tokens.shape[0],
    )
    return _decode(model, features, attended.permute(1, 2, 0).reshape(n, -1, height, width))


def _pointer_tokens(model: SAM2Base, pointers: Tensor, steps: list[int]) -> tuple[Tensor, Tensor]:
    """Split pointers ``(p, n, d_model)`` into tokens as wide as a memory, with their places."""
    from sam2.modeling.sam2_utils import get_1d_sine_pe

    p, n, d_model = pointers.shape
    pieces = d_model // model.mem_dim
    tokens = pointers.view(p, n, pieces, model.mem_dim).transpose(1, 2).flatten(0, 1)
    places = pointers.new_zeros(p, model.mem_dim)
    if model.add_tpos_enc_to_obj_ptrs:
        time = torch.tensor(steps, device=pointers.device) / (model.max_obj_ptrs_in_encoder - 1)
        width = d_model if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
        places = model.obj_ptr_tpos_proj(get_1d_sine_pe(time, dim=width).to(pointers.dtype))
    places = places[:, None].expand(-1, n, -1).repeat_interleave(pieces, 0)
    return tokens, places


def _image_position(model: SAM2Base, coarse: Tensor) -> Tensor:
    position = model.image_encoder.neck.position_encoding(coarse[:1])
    return position.to(coarse.dtype).flatten(2).permute(2, 0, 1).expand(-1, coarse.shape[0], -1)


def _decode(
    model: SAM2Base, features: Features, embedding: Tensor, mask_prompt: Tensor | None = None
) -> Decoded:
    n = embedding.shape[0]
    no_point = embedding.new_zeros(n, 1, 2), -torch.ones(n, 1, device=embedding.device).int()
    sparse, dense = model.sam_prompt_encoder(points=no_point, boxes=None, masks=mask_prompt)
    several = model.multimask_output_for_tracking and mask_prompt is None
    logits, iou, tokens, object_logit = model.sam_mask_decoder(
        image_embeddings=embedding,
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=several,
        repeat_image=False,
        high_res_features=[features.fine, features.middle],
    )
    best = iou.argmax(1)
    rows = torch.arange(n, device=best.device)
    token = tokens[rows, best if tokens.shape[1] > 1 else 0]
    return Decoded(
        logits=logits[rows, best][:, None],
        object_logit=object_logit[:, 0],
        iou=iou[rows, best],
        pointer=model.obj_ptr_proj(token),
    )


def _gate_pointer(model: SAM2Base, pointer: Tensor, present: Tensor) -> Tensor:
    share = present.to(pointer.dtype)
    return share * pointer + (1 - share) * model.no_obj_ptr


def _remember(model: SAM2Base, features: Features, logits: Tensor, present: Tensor) -> Tensor:
    cells = features.coarse
    spatial, _ = model._encode_new_memory(
        current_vision_feats=[cells.flatten(2).permute(2, 0, 1)],
        feat_sizes=[tuple(cells.shape[-2:])],
        pred_masks_high_res=logits,
        object_score_logits=present.to(logits.dtype),
        is_mask_from_pts=False,
    )
    return spatial
