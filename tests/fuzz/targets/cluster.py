"""What machines of a cluster send each other, what the controller keeps, and what HAProxy answers.

The first byte chooses: below 128 a record, which is read from JSON and survives its own JSON, or an error that readers
of JSON have (`clover.errors.MALFORMED`); from 128 on a text, which is read or refused with the error of its reader in
printable words.  The readers are those that the modules below have: `clover.cluster` grows, and this takes what there
is.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec

from clover import errors
from clover.malformed import MALFORMED
from clover.types import Record

INSTRUMENTED = ("clover.cluster", "clover.cluster.planning.records")
_MODULES = (
    "clover.cluster.planning.records",
    "clover.cluster.ports",
    "clover.cluster.cluster_records",
    "clover.cluster.controller.records",
    "clover.cluster.ingress.state",
)
_TEXTS = (
    ("clover.cluster.cluster_file", "parse", "ConfigError"),
    ("clover.cluster.ingress.runtime", "parse_server_states", "ClusterError"),
    ("clover.cluster.ingress.runtime", "parse_statistics", "ClusterError"),
    ("clover.cluster.ingress.runtime", "parse_info", "ClusterError"),
)
"""Module, function of a text, and the error that it raises."""


def _found(name: str) -> ModuleType | None:
    return importlib.import_module(name) if importlib.util.find_spec(name) is not None else None


def _records() -> list[type[Record]]:
    return [
        kind
        for module in filter(None, map(_found, _MODULES))
        for _, kind in sorted(inspect.getmembers(module, inspect.isclass))
        if issubclass(kind, Record) and kind.__module__ == module.__name__
    ]


def _texts() -> list[tuple[Callable[[str], object], type[Exception]]]:
    readers = []
    for name, function, error in _TEXTS:
        module = _found(name)
        if module is not None:
            readers.append((getattr(module, function), getattr(module, error, None) or getattr(errors, error)))
    return readers


TEXTS = _texts()
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


SAID = (
    '[[region]]\nname = "north"\n\n[[node]]\nname = "north-1"\nregion = "north"\n\n[[family]]\nfamily = "fashion"\n',
    (
        "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_check_state srv_port "
        "srv_use_ssl srv_check_addr srv_check_port\n3 north 1 north-1 127.0.0.1 2 0 256 6 8080 0 - 0\n"
    ),
    "B.3.0.7.stot.1:MCP:u64:12\nS.3.1.0.pxname.1:KNS:str:north\n",
    "Name: HAProxy\nVersion: 2.8.5\nUptime_sec: 12\n",
)


def seeds() -> list[bytes]:
    """Return each record with all of its fields, and a text for each reader."""
    records = [bytes([at]) + json.dumps(_example(kind)).encode() for at, kind in enumerate(RECORDS)]
    return records + [bytes([128 + at]) + text.encode() for at in range(max(1, len(TEXTS))) for text in SAID]


def check(data: bytes) -> str:
    """Read one record or text."""
    choice = (data[:1] or b"\0")[0]
    if choice >= 128 and TEXTS:
        return _text(*TEXTS[(choice - 128) % len(TEXTS)], data[1:].decode("utf-8", "replace"))
    kind = RECORDS[choice % len(RECORDS)]
    try:
        record = msgspec.json.decode(data[1:], type=kind)
    except MALFORMED as error:
        return f"refused: {type(error).__name__}"
    text = msgspec.json.encode(record)
    back = msgspec.json.decode(text, type=kind)
    assert back == record or _has_nan(record), "the record does not survive its JSON"
    return text.decode()


def _text(read: Callable[[str], object], refusal: type[Exception], text: str) -> str:
    try:
        return repr(read(text))
    except refusal as error:
        words = str(error)
        assert all(line.replace("\t", " ").isprintable() for line in words.split("\n")), repr(words)
        return f"refused: {words}"


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Record):
        return any(_has_nan(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_nan, value))
