"""Frozen dataclasses from what JSON holds, every value compared with the field's annotation.

A report that was edited, cut off or written by another tool is refused where it is read, and not
where its values are used.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

_Record = TypeVar("_Record")
_JSON_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def record_from_plain(kind: type[_Record], value: Any, *, where: str) -> _Record:
    """Make a dataclass of a JSON object; ``where`` begins the names of fields in errors.

    Understands texts, numbers, truth values, enums, tuples, mappings, further dataclasses, ``Any``
    and unions of these. Fields with a default may be missing.

    Raises
    ------
    ValueError
        Naming the field that is missing, unknown or of another kind, and what it has to be.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    known = [item for item in fields(kind) if item.init]  # type: ignore[arg-type]
    unknown = sorted(value.keys() - {item.name for item in known})
    if unknown:
        raise ValueError(f"{where} has no field {unknown[0]}")
    hints = get_type_hints(kind)
    given = {}
    for item in known:
        if item.name in value:
            place = f"{where}.{item.name}"
            given[item.name] = _converted(hints[item.name], value[item.name], where=place)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{where} lacks {item.name}")
    return kind(**given)


def _converted(kind: Any, value: Any, *, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(args, value, where=where)
    if origin is tuple:
        return _tuple(args, value, where=where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        return {k: _converted(args[1], item, where=f"{where}.{k}") for k, item in value.items()}
    if is_dataclass(kind):
        return record_from_plain(kind, value, where=where)  # type: ignore[arg-type]
    if issubclass(kind, Enum):
        if value not in [member.value for member in kind]:
            raise ValueError(f"{where} is none of {', '.join(str(m.value) for m in kind)}")
        return kind(value)
    return _plain(kind, value, where=where)


def _one_of(kinds: tuple[Any, ...], value: Any, *, where: str) -> Any:
    """Convert to a kind or, where there may be none, to None."""
    if value is None and type(None) in kinds:
        return None
    [kind] = [kind for kind in kinds if kind is not type(None)]
    return _converted(kind, value, where=where)


def _tuple(kinds: tuple[Any, ...], value: Any, *, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is not a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(value)} entries, not {len(kinds)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_converted(kind, item, where=f"{where}[{i}]") for i, (kind, item) in pairs)


def _plain(kind: type, value: Any, *, where: str) -> Any:
    # JSON writes 2.0 as it likes, and Python takes True for 1.
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is not {_JSON_NAMES[kind]}")
    return value
