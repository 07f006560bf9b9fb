import dataclasses

import numpy as np
import pytest
import torch

from sslmedsam2.fewshot.memory import Features, Memory
from sslmedsam2.fewshot.store import (
    EncodedSupport,
    EncodedVolume,
    MemoryLimits,
    SupportStore,
    content_key,
)

CPU = torch.device("cpu")


def _support(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return EncodedSupport(
        volume=EncodedVolume(
            features=Features(draw(3, 2, 8, 8), draw(3, 4, 4, 4), draw(3, 8, 2, 2)),
            descriptors=draw(3, 128).numpy(),
            z_mm=np.arange(3) * 2.5,
        ),
        memory=Memory(draw(3, 4, 2, 2), draw(3, 8)),
        masks=(draw(3, 32, 32) > 0).float().numpy(),
    )


def _arrays(thing):
    """Flatten what a stored support holds."""
    if dataclasses.is_dataclass(thing):
        return [
            a for field in dataclasses.fields(thing) for a in _arrays(getattr(thing, field.name))
        ]
    return [np.asarray(thing)]


N_BYTES = sum(array.nbytes for array in _arrays(_support(0)))


def _files(folder):
    return sorted(folder.glob("*")) if folder.exists() else []


def _assert_same(found, expected):
    for one, other in zip(_arrays(found), _arrays(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("fit", [0, 1, 3, 5])
def test_what_does_not_fit_into_memory_waits_on_disk_and_comes_back_equal(tmp_path, fit):
    folder = tmp_path / "scratch"
    store = SupportStore(folder, limits=MemoryLimits(fit * N_BYTES), device=CPU)
    for seed in range(5):
        assert f"k{seed}" not in store
        store.put(f"k{seed}", _support(seed))
    assert len(_files(folder)) == 5 - fit
    for seed in (3, 0, 4, 1, 2, 3):
        assert f"k{seed}" in store
        _assert_same(store.get(f"k{seed}"), _support(seed))
        _assert_same(store.memory(f"k{seed}"), _support(seed).memory)


def test_reading_from_disk_does_not_fill_the_memory(tmp_path):
    store = SupportStore(tmp_path, limits=MemoryLimits(0), device=CPU)
    store.put("a", _support(1))
    assert store.get("a") is not store.get("a")


def test_a_key_tells_content_apart():
    base = np.arange(6, dtype=np.float32)
    different = [
        (base,),
        (base + 1,),
        (base.reshape(2, 3),),
        (base.astype(np.float64),),
        (base, base),
        (base[:3], base[3:]),
    ]
    assert len({content_key(*arrays) for arrays in different}) == len(different)


def test_a_key_does_not_depend_on_the_layout_in_memory():
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert content_key(base) == content_key(np.asfortranarray(base))
