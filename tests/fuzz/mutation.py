"""Damage to bytes, records, text headers and JSON, decided by a random generator."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

_INTEGERS = (0, 1, 2, 3, 4, 7, 8, 16, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 65536)
_LARGE = (2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1)
INTEGERS = (*_INTEGERS, *_LARGE, -1, -2, -32768, -(2**31), -(2**63))
FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-3, 1000.0, 0.009, 100.1, 1e-38, 1e-45, 1e30, 3.4e38),
    *(-3.4e38, float("nan"), float("inf"), float("-inf"), 1.79e308, -1e-300),
)
WORDS = (
    *("", " ", "0", "-1", "nan", "inf", "1e999", "99999999999999999999", "0x10", "1,2", "1;2"),
    *("True", "None", "../../etc/passwd", "/etc/passwd", "LOCAL", "LIST", "%d", "a" * 5000),
    *("\x00", "ü", "\ud800", "\u202e", "T2", "GED4", "skip", "none", "*", "(1,0,0)", "1 0 0"),
)


def damaged(content: bytes, random: Random, *, others: Sequence[bytes] = ()) -> bytes:
    """Return the content with one to four places flipped, overwritten, cut, repeated or spliced."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if not data:
            return bytes(random.randrange(256) for _ in range(random.randrange(64)))
        place = _place(len(data), random)
        kind = random.randrange(9)
        if kind <= 1:
            data[place] ^= 1 << random.randrange(8)
        elif kind == 2:
            data[place] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind == 3:
            size = random.choice((2, 4, 8))
            value = random.choice(INTEGERS) % 2 ** (8 * size)
            data[place : place + size] = value.to_bytes(size, random.choice(("little", "big")))
        elif kind == 4:
            del data[place:]
        elif kind == 5:
            del data[place : place + random.choice((1, 2, 4, 16, 100))]
        elif kind == 6:
            piece = data[place : place + random.choice((1, 8, 64, 512))]
            data[place:place] = piece * random.choice((1, 1, 2, 50))
        elif kind == 7 and others:
            other = random.choice(others)
            start = random.randrange(max(1, len(other)))
            data[place:] = other[start : start + random.choice((8, 100, len(other)))]
        else:
            data += bytes(random.randrange(256) for _ in range(random.choice((1, 4, 32))))
    return bytes(data)


def _place(length: int, random: Random) -> int:
    """Choose a place, half of the time in the first 512 bytes, where headers are."""
    return random.randrange(min(length, 512) if random.random() < 0.5 else length)


def with_fields_changed(content: bytes, dtype: np.dtype, at: int, random: Random) -> bytes:
    """Return the content with one to three fields of the record at ``at`` set to odd values."""
    if len(content) < at + dtype.itemsize:
        return damaged(content, random)
    data = bytearray(content)
    record = np.frombuffer(data, dtype, 1, at)
    assert dtype.names is not None
    for _ in range(random.choice((1, 1, 2, 3))):
        field = record[random.choice(dtype.names)]
        flat = field.reshape(-1)
        index = random.randrange(flat.size)
        kind = flat.dtype.kind
        with np.errstate(all="ignore"):
            if kind == "f":
                odd = random.choice(FLOATS) if random.random() < 0.7 else random.gauss(0, 100)
                flat[index] = odd
            elif kind in "iu":
                bits = 8 * flat.dtype.itemsize
                value = random.choice(INTEGERS) % 2**bits
                flat[index] = value - 2**bits if kind == "i" and value >= 2 ** (bits - 1) else value
            else:
                flat[index] = random.choice((b"", b"\xff" * 80, b"n+1", b"ni1", b"n+2", b"a"))
    return bytes(data)


def with_lines_changed(
    lines: Sequence[bytes], random: Random, *, separators: Sequence[bytes]
) -> list[bytes]:
    """Return the lines of a text header with one to three changed, removed or repeated."""
    changed = list(lines)
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(changed))
        kind = random.randrange(6)
        if kind == 0 and len(changed) > 1:
            del changed[place]
        elif kind == 1:
            changed.insert(random.randrange(len(changed) + 1), changed[place])
        elif kind == 2:
            changed[place] = damaged(changed[place], random)
        else:
            line = changed[place]
            separator = next((one for one in separators if one in line), separators[0])
            key, _, value = line.partition(separator)
            words = value.split() or [b""]
            odd = random.choice((random.choice(WORDS), random.choice(INTEGERS)))
            odd = odd if random.random() < 0.8 else random.choice(FLOATS)
            words[random.randrange(len(words))] = str(odd).encode("utf-8", "surrogatepass")
            if random.random() < 0.1:
                words.append(words[0])
            if random.random() < 0.1:
                words.pop()
            changed[place] = key + separator + b" " + b" ".join(words)
        changed = changed or [b""]
    return changed


def damaged_json(content: bytes, random: Random) -> bytes:
    """Return JSON with one to three values replaced, removed, repeated or nested; rarely broken."""
    if random.random() < 0.15:
        return damaged(content, random)
    value = copy.deepcopy(json.loads(content))
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _with_one_changed(value, random)
    text = json.dumps(value)
    if random.random() < 0.02:
        deep = random.choice((50, 2000, 100_000))
        opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
        nested = opening * deep + "1" + closing * deep
        text = text.replace("null", nested, 1) if "null" in text else nested
    return text.encode("utf-8", "surrogatepass")


def _with_one_changed(value: Any, random: Random) -> Any:
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        items: Any = ()
        if isinstance(node, dict):
            items = node.items()
        elif isinstance(node, list):
            items = enumerate(node)
        for key, one in items:
            places.append((node, key))
            collect(one)

    collect(value)
    if not places or random.random() < 0.01:
        return _odd_value(random)
    parent, key = random.choice(places)
    kind = random.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice(WORDS)] = parent.pop(key)
    elif kind == 1:
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == 2:
        other, name = random.choice(places)
        parent[key] = copy.deepcopy(other[name] if name in _keys(other) else None)
    else:
        parent[key] = _odd_value(random)
    return value


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def _odd_value(random: Random) -> Any:
    return random.choice(
        (
            *(None, True, False, [], {}, [[]], {"": None}, [None] * 3, random.choice(WORDS)),
            *(random.choice(INTEGERS), random.choice(FLOATS), 10**30, random.choice(WORDS)),
            *([random.choice(INTEGERS)] * 3, [random.choice(FLOATS)] * 3),
        )
    )
