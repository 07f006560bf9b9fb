"""Other organs as additional targets: what is learned, and that nothing of it is served."""

from copy import deepcopy

import pytest
import torch
from tiny_models import make_network, make_plans

from sslmedsam2.nnunet import organs
from sslmedsam2.nnunet.plans import AUXILIARY_OFFSET, IGNORE, LIVER, UNSURE_LIVER

PATCH = (1, 1, 16, 32, 32)
KIDNEY, SPLEEN, STOMACH = 2, 3, 5


@pytest.fixture
def networks():
    usual = make_network(make_plans(), seed=3)
    return usual, organs.add_organs(deepcopy(usual))


def test_organs_are_output_in_training_beside_an_unchanged_liver(networks):
    usual, network = networks
    patch = torch.randn(PATCH)

    torch.testing.assert_close(network.eval()(patch), usual.eval()(patch))
    outputs = network.train()(patch)
    assert outputs.shape[1] == 2 + organs.N_CLASSES
    torch.testing.assert_close(outputs[:, :2], usual.train()(patch))


def test_weights_fit_nnunets_network_and_are_loaded_without_those_of_organs(networks):
    usual, network = networks
    served = organs.without_organs(network.state_dict())
    assert served.keys() == usual.state_dict().keys()

    own = network.decoder.seg_layers[-1].organs.weight.clone()
    changed = {name: value + 1 for name, value in served.items()}
    network.load_state_dict(changed)
    assert torch.equal(network.decoder.seg_layers[-1].organs.weight, own)
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in changed.items())


def test_labels_become_liver_and_classes_of_organs():
    labels = torch.tensor(
        [-1, 0, LIVER, IGNORE, UNSURE_LIVER, *(AUXILIARY_OFFSET + k for k in (2, 3, 4, 6, 11))]
    ).reshape(1, 1, 1, -1)
    sample = {"image": torch.zeros(labels.shape), "segmentation": labels}

    liver, classes = organs.OrganTargetsTransform()(**sample)["segmentation"].flatten(1).tolist()
    assert liver == [0, 0, LIVER, IGNORE, IGNORE, 0, 0, 0, 0, 0]
    assert classes == [0, 0, 1, 0, 0, KIDNEY, KIDNEY, SPLEEN, STOMACH, 0]


def _target(*classes):
    """Return a patch whose slices hold the classes, one each."""
    return torch.tensor(classes).reshape(1, -1, 1, 1).expand(1, -1, 4, 4)


def _logits(*classes):
    """Return confident logits of these classes."""
    target = _target(*classes)
    return 12.0 * torch.nn.functional.one_hot(target, organs.N_CLASSES).movedim(-1, 1).float()


def test_loss_is_least_for_the_right_organs():
    target = _target(0, 1, SPLEEN, STOMACH)
    right = organs.organ_loss(_logits(0, 1, SPLEEN, STOMACH), target)
    wrong = organs.organ_loss(_logits(0, 1, STOMACH, SPLEEN), target)

    assert right == pytest.approx(-1, abs=1e-3)
    assert wrong > right + 1


def test_an_organ_without_a_label_counts_as_background():
    target = _target(0, 1, SPLEEN, 0)
    assert organs.organ_loss(_logits(0, 1, SPLEEN, STOMACH), target) == pytest.approx(-1, abs=1e-3)
    assert organs.organ_loss(_logits(0, 1, SPLEEN, SPLEEN), target) > 0


def test_patches_with_the_liver_alone_do_not_count_and_have_a_gradient():
    logits = _logits(0, 1, SPLEEN, STOMACH).requires_grad_()
    loss = organs.organ_loss(logits, _target(0, 1, 1, 0))
    loss.backward()

    assert loss == 0
    assert not logits.grad.any()
