"""What machines of a cluster send each other, and what the controller keeps: the first byte chooses the record.

JSON is the record, which survives its own JSON, or an error of msgspec's; a cluster file is a ConfigError or a cluster.
The records are those that the modules below have: `clover.cluster` grows, and this reads what there is.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
from types import ModuleType
from typing import Any

import msgspec

from clover.errors import MALFORMED
from clover.types import Record

INSTRUMENTED = ("clover.cluster", "clover.planning.cluster.records")
_MODULES = ("clover.planning.cluster.records", "clover.cluster.ports", "clover.cluster.cluster_records")


def _modules() -> list[ModuleType]:
    found = []
    for name in _MODULES:
        if importlib.util.find_spec(name) is not None:
            found.append(importlib.import_module(name))
    return found


def _records() -> list[type[Record]]:
    return [
        kind
        for module in _modules()
        for _, kind in sorted(inspect.getmembers(module, inspect.isclass))
        if issubclass(kind, Record) and kind.__module__ == module.__name__
    ]


RECORDS = _records()
DICTIONARY = (
    *(f'"{name}":'.encode() for kind in RECORDS for name in kind.__struct_fields__),
    *(b"1e400", b"-1", b"null", b"true", b"[]", b"{}", b'""', b"99999999999999999999", b"NaN", b"[[[[", b'{"a":',
      b"0.5", b"1"),
)  # fmt: skip


def _example(kind: Any) -> Any:
    """Return a value of a type, as small as it may be."""
    info = msgspec.inspect.type_info(kind)
    return _of(info)


def _of(info: Any) -> Any:
    kind = type(info).__name__
    if kind == "StructType":
        return {field.encode_name: _of(field.type) for field in info.fields}
    if kind in ("ListType", "VarTupleType", "CollectionType"):
        return [_of(info.item_type)]
    if kind == "TupleType":
        return [_of(one) for one in info.item_types]
    if kind == "DictType":
        return {"a": _of(info.value_type)}
    if kind == "UnionType":
        return _of(info.types[0])
    if kind == "LiteralType":
        return info.values[0]
    return {"IntType": 1, "FloatType": 0.5, "StrType": "a", "BoolType": True}.get(kind)


def seeds() -> list[bytes]:
    """Return each record with all of its fields."""
    return [bytes([at]) + json.dumps(_example(kind)).encode() for at, kind in enumerate(RECORDS)]


def check(data: bytes) -> str:
    """Read one record."""
    kind = RECORDS[(data[:1] or b"\0")[0] % len(RECORDS)]
    try:
        record = msgspec.json.decode(data[1:], type=kind)
    except MALFORMED as error:
        return f"refused: {type(error).__name__}"
    text = msgspec.json.encode(record)
    back = msgspec.json.decode(text, type=kind)
    assert back == record or _has_nan(record), "the record does not survive its JSON"
    return text.decode()


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Record):
        return any(_has_nan(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_nan, value))
