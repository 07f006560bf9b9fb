import hashlib
import json
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file, save_file
from tiny_sam2 import TINY

from sslmedsam2.errors import ModelError
from sslmedsam2.fewshot.checkpoint import (
    CompactArchitecture,
    build_compact,
    build_hiera_tiny,
    load_sam2,
    save_compact,
)
from sslmedsam2.fewshot.memory import encode_slices

CPU = torch.device("cpu")


@pytest.fixture
def compact_file(tiny_sam2, tmp_path):
    path = tmp_path / "compact.safetensors"
    save_compact(tiny_sam2.model, path, architecture=TINY, notes={"steps": "3"})
    return path


def _refused(path):
    """Return the error's text after checking that it helps."""
    with pytest.raises(ModelError) as caught:
        load_sam2(path, device=CPU)
    error = caught.value
    assert str(path) in str(error)
    assert error.remedy
    assert error.remedy in str(error)
    assert "\n" not in str(error)
    return str(error)


def test_a_saved_network_comes_back(tiny_sam2, compact_file):
    loaded = load_sam2(compact_file, device=CPU)
    assert loaded.path.stem == "compact"
    assert loaded.sha256 == hashlib.sha256(compact_file.read_bytes()).hexdigest()
    assert loaded.image_size == TINY.image_size
    saved = tiny_sam2.model.state_dict()
    for name, value in loaded.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, saved[name].half().float()), name


def test_what_is_loaded_is_what_was_hashed_though_the_file_is_swapped(
    tiny_sam2, compact_file, monkeypatch
):
    content, read = compact_file.read_bytes(), Path.read_bytes

    def swap_after(path):
        found = read(path)
        path.write_bytes(b"something else")
        return found

    monkeypatch.setattr(Path, "read_bytes", swap_after)
    loaded = load_sam2(compact_file, device=CPU)

    assert loaded.sha256 == hashlib.sha256(content).hexdigest()
    saved = tiny_sam2.model.state_dict()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, saved[name].half().float()), name


def test_a_loaded_network_is_frozen(compact_file):
    model = load_sam2(compact_file, device=CPU).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_file_is_small_and_alone(tiny_sam2, compact_file):
    n = sum(value.numel() for value in tiny_sam2.model.state_dict().values())
    assert compact_file.stat().st_size < 2 * n + 100_000
    assert list(compact_file.parent.iterdir()) == [compact_file]


def test_notes_are_kept_in_the_file(compact_file):
    from safetensors import safe_open

    with safe_open(compact_file, framework="pt") as file:
        assert file.metadata()["steps"] == "3"


@pytest.mark.parametrize("name", ["none.safetensors", "none.pt"])
def test_a_missing_file_is_named(tmp_path, name):
    assert "no such file" in _refused(tmp_path / name)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize(
    "content",
    # The second text is one on which the unpickler fails with a KeyError.
    [b"", b"no network", b"hello", b"\x00" * 4096],
    ids=["empty", "text", "other text", "zeros"],
)
def test_a_file_of_something_else_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    _refused(path)


def test_a_truncated_compact_file_is_refused(compact_file):
    compact_file.write_bytes(compact_file.read_bytes()[:-1000])
    _refused(compact_file)


def test_a_truncated_official_file_is_refused(tmp_path):
    path = tmp_path / "official.pt"
    torch.save({"model": {"maskmem_tpos_enc": torch.zeros(7, 1, 1, 64)}}, path)
    path.write_bytes(path.read_bytes()[:-100])
    _refused(path)


@pytest.mark.parametrize(
    "changes",
    [{"d_model": 64}, {"stages": [1, 1, 3, 1]}, {"no_such_size": 3}, {"stages": 7}],
    ids=["other width", "other depth", "unknown field", "nonsense"],
)
def test_weights_that_do_not_fit_the_named_architecture_are_refused(compact_file, changes):
    import dataclasses

    architecture = dataclasses.asdict(TINY) | changes
    save_file(
        load_file(compact_file), compact_file, metadata={"architecture": json.dumps(architecture)}
    )
    _refused(compact_file)


@pytest.mark.parametrize("text", [None, "not json", "[1, 2]"])
def test_a_file_without_an_architecture_is_refused(compact_file, text):
    metadata = None if text is None else {"architecture": text}
    save_file(load_file(compact_file), compact_file, metadata=metadata)
    _refused(compact_file)


@pytest.mark.parametrize(
    "content",
    [
        {"network_weights": {"conv.weight": torch.zeros(1)}},
        {"model": {"conv.weight": torch.zeros(1)}},
        {"model": 3},
        [torch.zeros(1)],
    ],
    ids=["nnU-Net", "other network", "no weights", "list"],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    _refused(path)


class _WritesAFile:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "evil.pt", tmp_path / "was_run"
    content = {"model": {"maskmem_tpos_enc": torch.zeros(1)}, "extra": _WritesAFile(trace)}
    torch.save(content, path)
    _refused(path)
    assert not trace.exists()


@pytest.mark.slow
def test_an_official_checkpoint_loads_at_512_pixels(tmp_path):
    """Weights of the official shapes; the published file itself is not to be had here."""
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.manual_seed(0)
    # The published file was made at 1024 pixels; no weight's shape depends on that.
    state = build_hiera_tiny(1024).state_dict()
    torch.save({"model": state}, path)
    loaded = load_sam2(path, device=CPU)
    assert loaded.image_size == 512
    assert loaded.path.stem == "sam2.1_hiera_tiny"
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.slow
def test_a_hiera_checkpoint_with_a_weight_missing_is_refused(tmp_path):
    path = tmp_path / "short.pt"
    state = build_hiera_tiny(512).state_dict()
    del state["no_obj_ptr"]
    torch.save({"model": {name: value.half() for name, value in state.items()}}, path)
    assert "no_obj_ptr" in _refused(path)


def _n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_compact_network_is_small_enough_to_ship():
    n = _n_parameters(build_compact(CompactArchitecture()))
    assert 2e6 < n < 8e6
    assert 2 * n < 15e6  # bytes in half precision


@pytest.mark.parametrize("image_size", [64, 96, 128, 192])
def test_features_have_strides_4_8_and_16(image_size):
    architecture = CompactArchitecture(
        image_size=image_size, embed_dim=8, stages=(1, 1, 2, 1), d_model=32, mem_dim=16
    )
    model = build_compact(architecture).eval()
    assert model.image_size == image_size
    with torch.no_grad():
        features = encode_slices(model, torch.zeros(2, 1, image_size, image_size))
    assert features.fine.shape[-2:] == (image_size // 4, image_size // 4)
    assert features.middle.shape[-2:] == (image_size // 8, image_size // 8)
    assert features.coarse.shape == (2, 32, image_size // 16, image_size // 16)


def test_the_seed_decides_the_first_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return build_compact(TINY).state_dict()["maskmem_tpos_enc"]

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_building_neither_needs_nor_leaves_a_state_of_hydra():
    GlobalHydra.instance().clear()
    first, second = build_compact(TINY), build_compact(TINY)
    assert not GlobalHydra.instance().is_initialized()
    assert _n_parameters(first) == _n_parameters(second)


def test_a_new_network_is_ready_to_train():
    model = build_compact(TINY)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_hiera_tiny_is_the_official_network_at_512_pixels():
    model = build_hiera_tiny(512)
    assert model.image_size == 512
    # Of the published checkpoint sam2.1_hiera_tiny.pt.
    assert _n_parameters(model) == pytest.approx(38.9e6, rel=0.01)
    with torch.no_grad():
        features = encode_slices(model.eval(), torch.zeros(1, 1, 512, 512))
    assert features.coarse.shape == (1, 256, 32, 32)
