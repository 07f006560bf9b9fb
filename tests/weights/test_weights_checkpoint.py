import pickle

import pytest
import torch
from weights_samples import MACHINE_FOLDER, make_network

from sslmedsam2.errors import ModelError
from sslmedsam2.weights.checkpoint import (
    as_tensors,
    average_checkpoints,
    freeze_checkpoint,
    read_checkpoint,
)


@pytest.fixture
def source(training):
    return training.folder / "fold_0" / "checkpoint_final.pth"


@pytest.fixture
def frozen(source, tmp_path):
    target = tmp_path / "frozen.pth"
    freeze_checkpoint(source, target)
    return target


def test_frozen_checkpoint_loads_without_any_allowed_class(frozen):
    content = torch.load(frozen, weights_only=True)

    assert set(content) == {
        "network_weights",
        "trainer_name",
        "init_args",
        "inference_allowed_mirroring_axes",
    }
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["init_args"] == {"configuration": "3d_fullres", "fold": 0}
    assert content["inference_allowed_mirroring_axes"] == [0, 1, 2]


def test_frozen_checkpoint_gives_the_same_prediction(training, frozen):
    network = make_network(seed=99)
    network.load_state_dict(torch.load(frozen, weights_only=True)["network_weights"])
    image = torch.randn(1, 1, 8, 16, 16)

    with torch.no_grad():
        assert torch.equal(network(image), training.networks[0](image))


def test_half_precision_halves_the_file_and_barely_moves_the_prediction(
    training, source, frozen, tmp_path
):
    small = tmp_path / "half.pth"
    freeze_checkpoint(source, small, half=True)
    network = make_network(seed=99)
    network.load_state_dict(torch.load(small, weights_only=True)["network_weights"])
    image = torch.randn(1, 1, 8, 16, 16)

    n_weights = sum(weight.numel() for weight in network.parameters())
    assert frozen.stat().st_size - small.stat().st_size == pytest.approx(2 * n_weights, rel=0.3)
    assert all(weight.dtype == torch.float32 for weight in network.parameters())
    with torch.no_grad():
        torch.testing.assert_close(
            network(image), training.networks[0](image), atol=2e-2, rtol=2e-2
        )


def test_weights_under_several_names_are_stored_once(frozen):
    weights = torch.load(frozen, weights_only=True)["network_weights"]
    places = {tensor.data_ptr() for tensor in weights.values()}

    assert len(places) == len(list(make_network(seed=0).parameters()))
    assert len(places) < len(weights)


def test_freezing_twice_gives_the_same_bytes(source, frozen, tmp_path):
    again = tmp_path / "elsewhere" / "another_name.pth"
    freeze_checkpoint(source, again)

    assert again.read_bytes() == frozen.read_bytes()


def test_nothing_of_the_training_machine_is_left(source, frozen):
    assert MACHINE_FOLDER.encode() in source.read_bytes()
    assert MACHINE_FOLDER.encode() not in frozen.read_bytes()


def test_training_checkpoint_with_numpy_numbers_is_read(source):
    assert read_checkpoint(source)["current_epoch"] == 1


class _Payload:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (open, (self.witness, "w"))


def test_checkpoint_that_would_run_code_is_refused_unrun(tmp_path):
    witness = tmp_path / "was_run"
    bad = tmp_path / "bad.pth"
    torch.save({"network_weights": _Payload(str(witness))}, bad)

    with pytest.raises(ModelError, match=r"bad\.pth: cannot be loaded"):
        read_checkpoint(bad)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"PK\x03\x04 cut off",
        pickle.dumps([1, 2], protocol=2),
    ],
    ids=["empty", "git-lfs pointer", "broken zip", "other pickle"],
)
def test_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(content)

    with pytest.raises(ModelError, match="checkpoint_final"):
        read_checkpoint(path)


def test_truncated_checkpoint_is_refused(frozen):
    frozen.write_bytes(frozen.read_bytes()[:-100])

    with pytest.raises(ModelError, match="cannot be loaded"):
        read_checkpoint(frozen)


def test_checkpoint_without_configuration_is_refused(tmp_path):
    path = tmp_path / "weights_alone.pth"
    torch.save({"network_weights": {"a": torch.zeros(1)}}, path)

    with pytest.raises(ModelError, match="init_args"):
        read_checkpoint(path)


def test_weight_that_is_not_finite_is_refused_and_nothing_written(tmp_path):
    source, target = tmp_path / "diverged.pth", tmp_path / "frozen.pth"
    torch.save(
        {
            "network_weights": {"head.weight": torch.tensor([1.0, 1e6])},
            "init_args": {"configuration": "3d_fullres"},
        },
        source,
    )
    freeze_checkpoint(source, target)
    target.unlink()

    with pytest.raises(ModelError, match=r"'head\.weight' is not finite as float16"):
        freeze_checkpoint(source, target, half=True)
    assert not target.exists()


@pytest.fixture
def folds(training):
    return [training.folder / f"fold_{fold}" / "checkpoint_final.pth" for fold in (0, 1)]


def test_average_is_the_mean_of_all_weights(training, folds, tmp_path):
    target = tmp_path / "fold_average" / "checkpoint_final.pth"
    average_checkpoints(folds, target)

    weights = read_checkpoint(target)["network_weights"]
    first, second = (training.networks[fold].state_dict() for fold in (0, 1))
    assert weights.keys() == first.keys()
    for name, mean in as_tensors(weights).items():
        torch.testing.assert_close(mean, (first[name] + second[name]) / 2)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_average_of_one_checkpoint_is_its_own_network(training, folds, tmp_path):
    target = tmp_path / "average.pth"
    average_checkpoints([folds[0]] * 3, target)
    network = make_network(seed=99)
    network.load_state_dict(as_tensors(read_checkpoint(target)["network_weights"]))
    image = torch.randn(1, 1, 8, 16, 16)

    with torch.no_grad():
        torch.testing.assert_close(network(image), training.networks[0](image))


def test_average_can_be_frozen_and_stores_shared_weights_once(folds, tmp_path):
    average_checkpoints(folds, tmp_path / "average.pth")
    freeze_checkpoint(tmp_path / "average.pth", tmp_path / "frozen.pth")

    weights = torch.load(tmp_path / "frozen.pth", weights_only=True)["network_weights"]
    assert len({tensor.data_ptr() for tensor in weights.values()}) == len(
        list(make_network(seed=0).parameters())
    )


@pytest.mark.parametrize("damage", ["names", "shapes"])
def test_average_of_different_networks_is_refused(folds, tmp_path, damage):
    content = torch.load(folds[1], weights_only=False)
    if damage == "names":
        content["network_weights"].popitem()
    else:
        name, tensor = next(iter(content["network_weights"].items()))
        content["network_weights"][name] = tensor[:1].clone()
    other = tmp_path / "other.pth"
    torch.save(content, other)

    with pytest.raises(ModelError, match=r"other\.pth.*another network"):
        average_checkpoints([folds[0], other], tmp_path / "average.pth")
    assert not (tmp_path / "average.pth").exists()
