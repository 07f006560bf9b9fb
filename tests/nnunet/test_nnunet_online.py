"""Unlabelled patches in a training: what they count, and that a network learns from them."""

import copy
import shutil
from dataclasses import dataclass, field, replace

import pytest
import torch
from tiny_training import PRESET, write_labelled_cases

from sslmedsam2.nnunet import trainer as trainer_module
from sslmedsam2.nnunet.contrast import standardise
from sslmedsam2.nnunet.dataset import (
    UnlabelledCase,
    build_dataset,
    case_key,
    write_splits,
    write_unlabelled,
)
from sslmedsam2.nnunet.online import (
    OnlineSettings,
    TwoViewsTransform,
    certainty,
    deep_unlabelled_loss,
    fewshot_weights,
    mixed_target,
    unlabelled_loss,
)
from sslmedsam2.nnunet.plans import IGNORE, TRAINED_LABELS_WITH_IGNORE
from sslmedsam2.nnunet.trainer import LiverTrainer, TrainingSettings
from sslmedsam2.nnunet.training import preprocessed_dir, train_fold, trained_model_dir

pytestmark = pytest.mark.usefixtures("one_thread", "no_progress_png")

ONLINE = OnlineSettings(warm_up=0.25, ramp=0.25, hand_over=0.75, sure_above=0.5)
SETTINGS = TrainingSettings(
    epochs=4, iterations_per_epoch=2, validation_iterations=1, online=ONLINE
)
CASES = {"case3__T2": UnlabelledCase(0.8), "case4__T2": UnlabelledCase(0.0)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A work directory with two labelled and two unlabelled cases, and nothing trained."""
    folder = tmp_path_factory.mktemp("online")
    images = write_labelled_cases(folder / "data", count=4)
    keys = [case_key(image) for image in images]
    dataset = build_dataset(
        images,
        preprocessed_dir=preprocessed_dir(folder),
        preset=PRESET,
        labels=TRAINED_LABELS_WITH_IGNORE,
    )
    write_splits(dataset, [{"train": [keys[0], *keys[2:]], "val": [keys[1]]}])
    write_unlabelled(dataset, CASES)
    return folder


@pytest.fixture
def work_dir(data, tmp_path):
    return shutil.copytree(data, tmp_path / "work")


def _trained(work_dir, settings=SETTINGS):
    checkpoint = train_fold(work_dir, fold=0, settings=settings, device="cpu")
    return torch.load(checkpoint, weights_only=False)["network_weights"]


def _differ(one, other):
    return any(not torch.equal(value, other[name]) for name, value in one.items())


@dataclass
class Noted:
    """What a training did, step by step.

    Attributes
    ----------
    batches
        The patches of each step.
    averages, weights
        The teacher's weights before each step, and the network's after it.
    wanted
        What the teacher makes of the weak view, before each step.
    targets
        The predictions of a teacher that steps learnt from.
    served
        The weights in the checkpoint.
    """

    batches: list = field(default_factory=list)
    averages: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    wanted: list = field(default_factory=list)
    targets: list = field(default_factory=list)
    served: dict = field(default_factory=dict)


def _noted(work_dir, settings=SETTINGS):
    """Train, and note each step."""
    noted = Noted()
    mix, step = trainer_module.mixed_target, LiverTrainer.train_step

    def noting_target(teacher, fewshot, weight):
        noted.targets.append(teacher)
        return mix(teacher, fewshot, weight)

    def noting(self, batch):
        noted.batches.append(batch)
        noted.averages.append(copy.deepcopy(self._teacher.state_dict()))
        with torch.no_grad():
            logits = self._teacher(batch["unlabelled_data"][:, :1])[0]
        noted.wanted.append(logits.softmax(dim=1)[:, 1:2])
        result = step(self, batch)
        noted.weights.append(copy.deepcopy(self.network.state_dict()))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "mixed_target", noting_target)
        patch.setattr(LiverTrainer, "train_step", noting)
        noted.served = _trained(work_dir, settings)
    return noted


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """What an uninterrupted training did."""
    return _noted(shutil.copytree(data, tmp_path_factory.mktemp("whole") / "work"))


def test_labelled_and_unlabelled_cases_keep_to_their_own_patches(trained):
    batches = trained.batches

    assert {key for batch in batches for key in batch["keys"]} == {"case1__T2"}
    assert {key for batch in batches for key in batch["unlabelled_keys"]} == set(CASES)
    for batch in batches:
        assert batch["unlabelled_data"].shape == (1, 2, *PRESET.patch_zyx)
        assert batch["unlabelled_target"].shape == (1, 1, *PRESET.patch_zyx)


def test_unlabelled_patches_change_the_weights_after_the_warm_up_only(trained, work_dir):
    never = _noted(work_dir, replace(SETTINGS, online=replace(ONLINE, warm_up=1.0)))

    assert not _differ(trained.weights[1], never.weights[1])
    assert _differ(trained.weights[2], never.weights[2])


def test_interrupted_and_resumed_training_ends_like_an_uninterrupted_one(
    trained, work_dir, monkeypatch
):
    step = LiverTrainer.train_step

    def failing(self, batch):
        if self._steps == 5:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(LiverTrainer, "train_step", failing)
        with pytest.raises(KeyboardInterrupt):
            _trained(work_dir)
    latest = trained_model_dir(work_dir) / "fold_0" / "checkpoint_latest.pth"
    assert torch.load(latest, weights_only=False)["current_epoch"] == 2

    assert not _differ(trained.served, _trained(work_dir))


def test_teacher_is_the_average_of_the_weights_and_sees_the_weak_view(trained):
    assert len(trained.targets) == 6
    for found, wanted in zip(trained.targets, trained.wanted[2:], strict=True):
        assert torch.equal(found, wanted)
    after_each = [*trained.averages[1:], trained.served]
    steps = zip(trained.averages, trained.weights, after_each, strict=True)
    for number, (before, weights, after) in enumerate(steps, start=1):
        decay = (1 + number) / (10 + number)
        for name, mean in after.items():
            torch.testing.assert_close(mean, decay * before[name] + (1 - decay) * weights[name])


def _random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_loss_teaches_the_target_where_it_is_certain_and_nothing_elsewhere():
    target = _random(1, 1, 4, 6, 6)
    voxel_weight = certainty(target, sure_above=0.75)
    unsure = torch.maximum(target, 1 - target) < 0.75
    logits = torch.zeros(1, 2, 4, 6, 6, requires_grad=True)

    patch_weight = torch.ones(1)
    unlabelled_loss(logits, target, voxel_weight=voxel_weight, patch_weight=patch_weight).backward()

    assert unsure.any()
    towards_liver = -logits.grad[:, 1:2]
    assert (towards_liver[unsure] == 0).all()
    assert (towards_liver[~unsure & (target > 0.5)] > 0).all()
    assert (towards_liver[~unsure & (target < 0.5)] < 0).all()


def test_soft_target_itself_has_the_least_loss():
    target = _random(1, 1, 3, 4, 4)
    whole = torch.ones_like(target)

    def loss(probability):
        logits = torch.cat([(1 - probability).log(), probability.log()], dim=1)
        return unlabelled_loss(logits, target, voxel_weight=whole, patch_weight=torch.ones(1))

    assert loss(target) < loss((target + 0.05).clamp_max(0.999))
    assert loss(target) < loss((target > 0.5).float().clamp(0.001, 0.999))


def test_patch_that_does_not_count_has_no_gradient():
    logits = torch.zeros(2, 2, 2, 3, 3, requires_grad=True)
    target = torch.ones(2, 1, 2, 3, 3)

    unlabelled_loss(
        logits, target, voxel_weight=target, patch_weight=torch.tensor([1.0, 0.0])
    ).backward()

    assert logits.grad[0].any()
    assert not logits.grad[1].any()


def test_coarse_outputs_learn_the_mean_of_the_target():
    target = torch.zeros(1, 1, 4, 4, 4)
    target[..., :2] = 1
    fine, coarse = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 2, 2, 2)
    outputs = [fine.requires_grad_(), coarse.requires_grad_()]

    deep_unlabelled_loss(outputs, target, sure_above=0.75, patch_weight=torch.ones(1)).backward()

    for output in outputs:
        towards_liver, width = -output.grad[0, 1], output.shape[-1] // 2
        assert (towards_liver[..., :width] > 0).all()
        assert (towards_liver[..., width:] < 0).all()


def test_target_is_handed_over_from_fewshot_mask_to_teacher():
    settings = OnlineSettings(warm_up=0.1, ramp=0.2, hand_over=0.5, finish=0.1)
    teacher, fewshot = torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)

    def target(progress):
        weight = fewshot_weights(
            ["case3__T2"], CASES, share=settings.fewshot_share(progress), network_dice=None
        )
        return mixed_target(teacher, fewshot, weight).item()

    assert [target(progress) for progress in (0.1, 0.3, 0.5, 0.9)] == pytest.approx(
        [0.8, 0.4, 0, 0]
    )
    shares = [settings.teacher_share(progress) for progress in (0.1, 0.2, 0.3, 0.9)]
    assert shares == pytest.approx([0, 0.5, 1, 1])
    assert [settings.is_on(p) for p in (0, 0.09, 0.1, 0.89, 0.91, 1)] == [
        *(False, False, True),
        *(True, False, False),
    ]


def test_fewshot_mask_counts_by_its_reliability_and_not_where_the_network_is_better():
    cases = {"a": UnlabelledCase(0.8), "b": UnlabelledCase(0.8, yields_above=0.85)}

    def weights(dice):
        return fewshot_weights(["a", "b"], cases, share=0.5, network_dice=dice).tolist()

    assert weights(None) == weights(0.84) == pytest.approx([0.4, 0.4])
    assert weights(0.86) == pytest.approx([0.4, 0])


def test_ignored_voxels_of_the_fewshot_mask_follow_the_teacher():
    teacher = torch.full((1, 1, 1, 1, 2), 0.3)
    fewshot = torch.tensor([1, IGNORE]).view(1, 1, 1, 1, 2)

    assert mixed_target(teacher, fewshot, torch.tensor([1.0])).flatten().tolist() == pytest.approx(
        [1.0, 0.3]
    )


def test_strong_view_changes_the_image_and_sees_no_labels():
    given = []

    class Inverted(torch.nn.Module):
        def forward(self, image, segmentation):
            given.append(segmentation)
            return {"image": -image, "segmentation": segmentation}

    image, labels = standardise(_random(1, 2, 3, 3)), torch.ones(1, 2, 3, 3, dtype=torch.int16)
    sample = TwoViewsTransform(Inverted())(image=image, segmentation=labels)

    assert torch.equal(sample["image"], torch.cat([image, -image]))
    assert torch.equal(sample["segmentation"], labels)
    assert not given[0].any()
