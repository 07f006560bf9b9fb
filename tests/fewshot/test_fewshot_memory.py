"""Our way through SAM2's parts against SAM2's own ``track_step``, the reference."""

import copy

import pytest
import torch
from tiny_sam2 import ABSENT, PRESENT, leaning_towards

from sslmedsam2.fewshot import memory
from sslmedsam2.fewshot.memory import Memory

# Both sides are float32 sums of the same terms; only the order of some may differ.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
N_FRAMES = 20  # SAM2 measures time in at most 16 frames; a longer video reaches that.


@pytest.fixture(params=["official", "compact"])
def model(request, official_sam2, tiny_sam2):
    return official_sam2 if request.param == "official" else tiny_sam2.model


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def masks():
    masks = torch.zeros(6, 1, 64, 64)
    for k in range(6):
        masks[k, :, 10 + 3 * k : 30 + 4 * k, 20:45] = 1
    return masks


def _track(model, image, *, index, memories=None, mask=None, reverse=False):
    """Run SAM2's own step on one frame; ``memories`` maps frames to earlier outputs."""
    backbone = model.forward_image(memory.normalise(image[None]))
    _, features, positions, sizes = model._prepare_backbone_features(backbone)
    output = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}} | (memories or {})
    return model.track_step(
        frame_idx=index,
        is_init_cond_frame=mask is not None,
        current_vision_feats=features,
        current_vision_pos_embeds=positions,
        feat_sizes=sizes,
        point_inputs=None,
        mask_inputs=None if mask is None else mask[None],
        output_dict=output,
        num_frames=N_FRAMES,
        track_in_reverse=reverse,
    )


def _remembered(output):
    return Memory(output["maskmem_features"], output["obj_ptr"])


@torch.no_grad()
def test_a_prompted_slice_is_remembered_as_sam2_remembers_it(model, images, masks):
    ours = memory.remember_prompts(model, memory.encode_slices(model, images[:1]), masks[:1])
    theirs = _track(model, images[0], index=0, mask=masks[0])
    torch.testing.assert_close(ours.spatial, theirs["maskmem_features"], **CLOSE)


@torch.no_grad()
def test_a_prompted_slice_has_sam2s_pointer(model, images, masks):
    ours = memory.remember_prompts(model, memory.encode_slices(model, images[:1]), masks[:1])
    theirs = _track(model, images[0], index=0, mask=masks[0])
    torch.testing.assert_close(ours.pointer, theirs["obj_ptr"], **CLOSE)


@torch.no_grad()
def test_a_prompt_that_the_decoder_doubts_has_sam2s_pointer(model, images, masks):
    with leaning_towards(model, ABSENT):
        ours = memory.remember_prompts(model, memory.encode_slices(model, images[:1]), masks[:1])
        theirs = _track(model, images[0], index=0, mask=masks[0])
    torch.testing.assert_close(ours.pointer, theirs["obj_ptr"], **CLOSE)


@torch.no_grad()
def test_an_empty_mask_is_remembered_as_absence(model, images, masks):
    empty = torch.zeros_like(masks[:1])
    features = memory.encode_slices(model, images[:1])
    ours = memory.remember_prompts(model, features, empty)
    theirs = _track(model, images[0], index=0, mask=empty[0])
    torch.testing.assert_close(ours.spatial, theirs["maskmem_features"], **CLOSE)
    torch.testing.assert_close(ours.pointer, theirs["obj_ptr"], **CLOSE)
    torch.testing.assert_close(ours.pointer, model.no_obj_ptr)


@torch.no_grad()
def test_one_conditioning_frame_gives_sam2s_own_mask(model, images, masks):
    prompted = _track(model, images[0], index=0, mask=masks[0])
    theirs = _track(model, images[1], index=1, memories={"cond_frame_outputs": {0: prompted}})
    features = memory.encode_slices(model, images[1:2])
    ours = memory.segment(model, features, _remembered(prompted))
    assert theirs["object_score_logits"].item() > 0
    torch.testing.assert_close(ours.object_logit, theirs["object_score_logits"][:, 0], **CLOSE)
    torch.testing.assert_close(ours.logits, theirs["pred_masks"], **CLOSE)
    torch.testing.assert_close(ours.pointer, theirs["obj_ptr"], **CLOSE)


@torch.no_grad()
def test_several_conditioning_frames_give_sam2s_own_mask(tiny_sam2, images, masks):
    model = tiny_sam2.model
    prompted = [_track(model, images[k], index=k, mask=masks[k]) for k in range(3)]
    theirs = _track(
        model, images[3], index=3, memories={"cond_frame_outputs": dict(enumerate(prompted))}
    )
    together = Memory(
        torch.cat([output["maskmem_features"] for output in prompted]),
        torch.cat([output["obj_ptr"] for output in prompted]),
    )
    ours = memory.segment(model, memory.encode_slices(model, images[3:4]), together)
    torch.testing.assert_close(ours.logits, theirs["pred_masks"], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
def test_recent_slices_have_their_place_in_time(model, images, masks, reverse):
    at = (lambda k: 10 - k) if reverse else (lambda k: k)
    prompted = _track(model, images[0], index=at(0), mask=masks[0])
    memories = {"cond_frame_outputs": {at(0): prompted}, "non_cond_frame_outputs": {}}
    for k in (1, 2):
        memories["non_cond_frame_outputs"][at(k)] = _track(
            model, images[k], index=at(k), memories=memories, reverse=reverse
        )
    # SAM2 tells a prompted frame's distance in time; ours is a set, taken as the frame before.
    memories["cond_frame_outputs"] = {at(2): prompted}
    theirs = _track(model, images[3], index=at(3), memories=memories, reverse=reverse)
    recent = tuple((3 - k, _remembered(memories["non_cond_frame_outputs"][at(k)])) for k in (2, 1))
    ours = memory.segment(
        model, memory.encode_slices(model, images[3:4]), _remembered(prompted), recent=recent
    )
    torch.testing.assert_close(ours.logits, theirs["pred_masks"], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("lean", [PRESENT, ABSENT], ids=["present", "absent"])
def test_a_segmented_slice_is_remembered_as_sam2_remembers_it(official_sam2, images, masks, lean):
    model = official_sam2
    prompted = _track(model, images[0], index=0, mask=masks[0])
    features = memory.encode_slices(model, images[1:2])
    with leaning_towards(model, lean):
        theirs = _track(model, images[1], index=1, memories={"cond_frame_outputs": {0: prompted}})
        decoded = memory.segment(model, features, _remembered(prompted))
        ours = memory.remember_decoded(model, features, decoded)
    # An absent object has logits of -10 with us and -1024 with SAM2: 5e-5 apart as probabilities,
    # 1e-3 at the entry of the memory encoder.
    torch.testing.assert_close(ours.spatial, theirs["maskmem_features"], rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(ours.pointer, theirs["obj_ptr"], **CLOSE)


@torch.no_grad()
def test_a_batch_of_prompts_gives_what_one_by_one_gives(model, images, masks):
    masks = masks.clone()
    masks[2] = 0
    together = memory.remember_prompts(model, memory.encode_slices(model, images), masks)
    for k in range(len(images)):
        features = memory.encode_slices(model, images[k : k + 1])
        alone = memory.remember_prompts(model, features, masks[k : k + 1])
        torch.testing.assert_close(together[slice(k, k + 1)].spatial, alone.spatial, **CLOSE)
        torch.testing.assert_close(together[slice(k, k + 1)].pointer, alone.pointer, **CLOSE)


@torch.no_grad()
def test_a_batch_of_questions_gives_what_one_by_one_gives(model, images, masks):
    """Two slices with two memories each: the first two are the first slice's."""
    prompted = memory.remember_prompts(model, memory.encode_slices(model, images[:4]), masks[:4])
    features = memory.encode_slices(model, images[4:])
    together = memory.segment(model, features, prompted)
    for k in range(2):
        part = slice(k, k + 1)
        alone = memory.segment(model, features[part], prompted[slice(2 * k, 2 * k + 2)])
        torch.testing.assert_close(together.logits[part], alone.logits, **CLOSE)
        torch.testing.assert_close(together.object_logit[part], alone.object_logit, **CLOSE)


@torch.no_grad()
def test_prompted_memories_are_a_set_without_order(model, images, masks):
    prompted = memory.remember_prompts(model, memory.encode_slices(model, images[:3]), masks[:3])
    features = memory.encode_slices(model, images[3:4])
    one = memory.segment(model, features, prompted)
    other = memory.segment(model, features, prompted[torch.tensor([2, 0, 1])])
    torch.testing.assert_close(one.logits, other.logits, **CLOSE)


@torch.no_grad()
def test_each_memory_counts(model, images, masks):
    """Else agreement with SAM2 would be easily had."""
    prompted = memory.remember_prompts(model, memory.encode_slices(model, images[:3]), masks[:3])
    features = memory.encode_slices(model, images[3:4])
    of_all = memory.segment(model, features, prompted).logits
    of_two = memory.segment(model, features, prompted[:2]).logits
    assert (of_all - of_two).abs().max() > 100 * CLOSE["atol"]


@torch.no_grad()
def test_gradients_reach_every_part_that_is_used(tiny_sam2):
    """Training goes the same way as use."""
    model = copy.deepcopy(tiny_sam2.model).train().requires_grad_(True)
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 20:40] = 1
    with torch.enable_grad():
        features = memory.encode_slices(model, images)
        prompted = memory.remember_prompts(model, features[:1], mask)
        decoded = memory.segment(model, features[1:], prompted)
        (decoded.logits.mean() + decoded.object_logit.mean()).backward()
    for name in ("image_encoder.trunk", "memory_attention", "memory_encoder", "obj_ptr_proj"):
        part = model.get_submodule(name)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters()), name
