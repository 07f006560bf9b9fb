"""What torch saved is read as torch reads it, and what would reach elsewhere is refused."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.weights.checkpoint import as_tensors, read_checkpoint

INIT = {"configuration": "3d_fullres", "device": torch.device("cuda", 0)}


def save(path, weights, **others):
    torch.save({"network_weights": weights, "init_args": INIT, **others}, path)
    return path


@pytest.mark.parametrize("sha256", [True, False], ids=["in memory", "mapped"])
def test_tensors_of_every_kind_are_those_of_torch(tmp_path, sha256):
    numbers = torch.randn(4, 6)
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)
    kinds += (torch.int16, torch.int8, torch.uint8, torch.bool)
    weights = OrderedDict((str(kind), (numbers * 9).to(kind)) for kind in kinds)
    weights["transposed"] = numbers.T
    weights["part"] = numbers[1:3, ::2]
    weights["scalar"], weights["empty"] = torch.tensor(3.5), torch.zeros(0, 3)
    weights["parameter"] = torch.nn.Parameter(numbers)
    path = save(tmp_path / "all.pth", weights, epoch=np.float64(0.25), losses=[np.int32(7), None])

    content = read_checkpoint(path, sha256=sha256_file(path) if sha256 else None)

    for name, found in as_tensors(content["network_weights"]).items():
        assert torch.equal(found.float(), weights[name].detach().float()), name
    assert (content["epoch"], content["losses"]) == (0.25, [7, None])
    assert content["init_args"]["device"] == "cuda:0"


def test_tensors_that_share_memory_go_on_sharing_it(tmp_path):
    shared = torch.randn(5)
    path = save(tmp_path / "shared.pth", {"a": shared, "b": shared, "c": shared[1:]})

    weights = read_checkpoint(path)["network_weights"]

    assert np.shares_memory(weights["a"], weights["c"])
    tensors = as_tensors(weights)
    assert tensors["a"] is tensors["b"]


def test_writing_to_a_mapped_weight_leaves_the_file_alone(tmp_path):
    path = save(tmp_path / "mapped.pth", {"a": torch.ones(4)})
    before = path.read_bytes()

    read_checkpoint(path)["network_weights"]["a"][:] = 7

    assert path.read_bytes() == before


class Rebuilt:
    """Pickled as a tensor of its storage, with a place and shape of its own."""

    def __init__(self, tensor, *place):
        self.storage, self.place = tensor._typed_storage(), place

    def __reduce__(self):
        hooks = OrderedDict()
        return torch._utils._rebuild_tensor_v2, (self.storage, *self.place, False, hooks)


@pytest.mark.parametrize(
    "place",
    [(0, (4, 2), (1, 1)), (3, (2,), (1,)), (0, (2,), (9,)), (-1, (2,), (1,)), (0, (2,), (-1,))],
    ids=str,
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, place):
    path = save(tmp_path / "beyond.pth", {"a": Rebuilt(torch.ones(4), *place)})

    with pytest.raises(ModelError, match="reaches beyond its storage"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "numpy.load", "torch.load"])
def test_any_other_name_in_the_pickle_is_refused(tmp_path, name):
    module, _, function = name.rpartition(".")

    class Named:
        def __reduce__(self):
            return getattr(__import__(module), function), ("echo",)

    path = save(tmp_path / "named.pth", {"a": Named()})

    with pytest.raises(ModelError, match="is not allowed"):
        read_checkpoint(path)


def test_an_archive_of_the_other_byte_order_is_refused(tmp_path):
    path = save(tmp_path / "big.pth", {"a": torch.ones(4)})
    path.write_bytes(path.read_bytes().replace(b"little", b"bigger"))

    with pytest.raises(ModelError, match="endian"):
        read_checkpoint(path)


def test_a_legacy_pickle_is_refused(tmp_path):
    path = tmp_path / "legacy.pth"
    path.write_bytes(pickle.dumps({"network_weights": {}, "init_args": INIT["configuration"]}))

    with pytest.raises(ModelError, match=r"legacy\.pth: cannot be loaded"):
        read_checkpoint(path)
