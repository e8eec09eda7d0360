"""Infer requests for a fuzzer: bodies by the grammar of the protocol, nearly right, in every notation JSON allows.

A case is a family, a body and how it is framed.  Most bodies are requests of which a little is replaced: a number in an
odd notation, a shape nobody means, a key given twice, a string in escapes.  Some are damaged byte by byte after that.
All comes from one seeded generator, so that a case is its seed and its number.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from clover.types import FamilySpec, TensorSpec, VariantSpec

DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)
BYTES_EACH = {name: 8 if "64" in name else 4 if "32" in name else 2 if "16" in name else 1 for name in DATATYPES}
MOST_ROWS = 6

_SPACES = ("", "", "", "", "", " ", "\n", "\t", "\r\n", "  ", "\x0b", "\u00a0")
_SHAPES = (
    *("0", "-1", "-0", "1.0", "1e0", "2E0", "1.5", "true", "false", "null", '"1"', "[1]", "{}", "01", "00", "+1", "3."),
    *("2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551615"),
    *("18446744073709551616", "1e9", "1e400", "999999999", "1000000000", "NaN", "65536", "10000000"),
)
_NUMBERS = (
    *("0", "-0", "-0.0", "0.0", "0e0", "-0e5", "1e0", "1E+2", "1e-5", "1.0", "3.50", "2e22", "1e22", "1e23", "1e-22"),
    *("1e-23", "1e-400", "1e400", "-1e400", "1e39", "3.4028234663852886e38", "3.4028235677973366e38", "3.5e38"),
    *("1.17549435e-38", "1e-45", "7e-46", "4.9e-324", "1.7976931348623157e308", "1.8e308", "9007199254740992"),
    *("9007199254740993", "-9007199254740993", "18446744073709551615", "18446744073709551616", "1e1000"),
    *(
        "0.000000000000000000000000000000000000000001",
        "123456789012345678",
        "1234567890123456789",
        "255",
        "256",
        "-129",
    ),
    *("16777217", "0.30000001192092896", "65504", "65536", "1e15", "9007199254740993.0", "1.0e2", "100e-2", "127.0"),
    *("true", "false", "null", '"1"', '"x"', "[]", "[1]", "{}", "NaN", "Infinity", "-Infinity", "01", "+1", ".5", "1."),
    *("1e", "1e+", "- 1", "0x1", "1_0", "1,", "", "\u0661"),
)
_TOKENS = (b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"0", b"-", b".", b"e", b"\x00", b"\xff", b"\xef\xbb\xbf")
_STRINGS = ("", "a", "one", 'a"b', "\n", "\x7f", "\u00e9", "\U0001f600", "x" * 70, "FP32", "\u202e", "a\\b", "/")


class Raw(str):
    """JSON as it stands."""


class Members(list[tuple[str, Any]]):
    """An object's members in their order, which may repeat a key."""


@dataclass(frozen=True)
class Case:
    """One body.  `json_length` is Inference-Header-Content-Length, -1 if there is none."""

    family: str
    body: bytes
    json_length: int


def families() -> dict[str, FamilySpec]:
    """Return the families that cases are made for, by name: each datatype fixed and variable, and some of several."""
    found: dict[str, FamilySpec] = {}

    def add(name: str, *inputs: TensorSpec, max_batch: int = 4) -> None:
        outputs = tuple(TensorSpec(name=f"{one.name}_out", datatype=one.datatype, shape=(1,)) for one in inputs)
        variants = (VariantSpec(name="v", loader="m:f"),)
        found[name] = FamilySpec(name=name, inputs=inputs, outputs=outputs, variants=variants, max_batch=max_batch)

    add("plain", TensorSpec(name="x", datatype="FP32", shape=(2, 3)))
    add("wide batch", TensorSpec(name="x", datatype="FP32", shape=(4,)), max_batch=2 * MOST_ROWS)
    add("long", TensorSpec(name="x", datatype="FP32", shape=(64,)))
    add("scalar", TensorSpec(name="x", datatype="FP32", shape=()))
    for name in DATATYPES:
        add(name, TensorSpec(name="x", datatype=name, shape=(2,), max_bytes=64))
        variable = TensorSpec(name="x", datatype=name, shape=(-1, 2), max_shape=(3, 2), max_bytes=64)
        add(f"{name} variable", variable)
    mixed = [TensorSpec(name=name, datatype=name, shape=(2,), max_bytes=64) for name in ("FP32", "INT8", "BOOL")]
    add("mixed", *mixed, TensorSpec(name="BYTES", datatype="BYTES", shape=(-1,), max_shape=(3,), max_bytes=64))
    return found


class Cases:
    """An endless supply of cases from `seed`."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._families = families()
        plain = ["plain", "wide batch", "long"]
        self._names = [*self._families, *plain * len(self._families)]  # three of four for the compiled parser

    def __iter__(self) -> Iterator[Case]:
        while True:
            yield self.case()

    def case(self) -> Case:
        """Return the next case."""
        r = self._random
        name = r.choice(self._names)
        spec = self._families[name]
        if r.random() < 0.02:
            return Case(name, r.randbytes(r.choice((0, 1, 8, 16, 24, r.randrange(64)))), 0)
        tail: list[bytes] = []
        binary = r.random() < (0.15 if self._is_plain(spec) else 0.5)
        text = self._text(self._request(spec, binary, tail)).encode("utf-8", "surrogatepass")
        if r.random() < 0.3:
            text = self._damaged(text)
        if not binary:
            return Case(name, text, len(text) if r.random() < 0.02 else -1)
        slip = r.choice((-1, 1, 4, -len(text))) if r.random() < 0.05 else 0
        data = b"".join(tail)
        if r.random() < 0.1:
            data = self._damaged(data)
        return Case(name, text + data, max(0, len(text) + slip))

    def _is_plain(self, spec: FamilySpec) -> bool:
        return spec.inputs[0].datatype == "FP32" and len(spec.inputs) == 1

    # --- requests -----------------------------------------------------------------------------------------------------

    def _request(self, spec: FamilySpec, binary: bool, tail: list[bytes]) -> Any:
        r = self._random
        rows = r.choice((1, 1, 1, 2, 3, MOST_ROWS, MOST_ROWS + 1))
        inputs: Any = [self._tensor(one, rows, binary, tail) for one in spec.inputs]
        if r.random() < 0.03:
            inputs = r.choice((Raw("null"), [], [*inputs, *inputs], [Raw(r.choice(_NUMBERS))], inputs[0], inputs[:-1]))
        members = Members([("inputs", inputs)])
        if r.random() < 0.6:
            members.append(("id", r.choice(_STRINGS) if r.random() < 0.9 else Raw(r.choice(_NUMBERS))))
        if r.random() < 0.1:
            members.append(("parameters", self._parameters()))
        if r.random() < 0.1:
            members.append(("outputs", self._outputs(spec)))
        if r.random() < 0.03:
            members.append((r.choice(("x", "model_name", "inputs ", "Id")), Raw(r.choice(_NUMBERS))))
        return self._shuffled(members)

    def _shuffled(self, members: Members) -> Members:
        r = self._random
        if r.random() < 0.03:
            members.append(r.choice(members))
        if r.random() < 0.03:
            members.append((r.choice(members)[0], Raw(r.choice(_NUMBERS))))
        if r.random() < 0.03:
            members.pop(r.randrange(len(members)))
        if r.random() < 0.5:
            r.shuffle(members)
        return members

    def _tensor(self, spec: TensorSpec, rows: int, binary: bool, tail: list[bytes]) -> Any:
        r = self._random
        shape = [
            rows,
            *(axis if axis >= 0 else r.randrange(most + 1) for axis, most in zip(spec.shape, spec.bound, strict=True)),
        ]
        count = math.prod(shape)
        written: list[Any] = list(shape)
        if r.random() < 0.12:
            written[r.randrange(len(written))] = Raw(r.choice(_SHAPES))
        if r.random() < 0.02:
            written = r.choice(([], written[1:], [*written, 1], [1] * 9, written * 3))
        name = spec.name if r.random() < 0.98 else r.choice(_STRINGS)
        datatype = spec.datatype if r.random() < 0.98 else r.choice(DATATYPES)
        members = Members([("name", name), ("shape", written), ("datatype", datatype)])
        if binary and r.random() < 0.8:
            raw = self._binary(spec, count)
            size: Any = len(raw) if r.random() < 0.95 else Raw(r.choice((f"{len(raw)}.0", *_SHAPES, str(len(raw) + 1))))
            members.append(("parameters", Members([("binary_data_size", size)])))
            tail.append(raw)
        else:
            members.append(("data", self._data(spec, shape)))
        return self._shuffled(members)

    def _data(self, spec: TensorSpec, shape: list[int]) -> Any:
        r = self._random
        count = math.prod(shape)
        if r.random() < 0.03:
            count = max(0, count + r.choice((-1, 1)))
        tame = r.random() < 0.6
        elements: list[Any] = [self._element(spec.datatype, tame) for _ in range(count)]
        if elements and r.random() < 0.25:
            elements[r.randrange(count)] = Raw(r.choice(_NUMBERS))
        if r.random() < 0.6 or count != math.prod(shape):
            return elements
        axes = shape if r.random() < 0.95 else r.choice((shape[1:], [*shape, 1], shape[:-1]))
        return _nested(elements, axes)

    def _element(self, datatype: str, tame: bool) -> Any:
        r = self._random
        if datatype == "BOOL":
            return Raw(r.choice(("true", "false")))
        if datatype == "BYTES":
            return r.choice(_STRINGS)
        if datatype in ("FP32", "FP64", "FP16", "BF16"):
            kind = 4 if tame else r.randrange(5)
            if kind == 0:
                return Raw(repr(struct.unpack("<f", r.randbytes(3) + bytes([r.randrange(127)]))[0]))
            if kind == 1:
                return Raw(
                    f"{r.choice(('', '-'))}{r.randrange(10 ** r.randrange(20))}.{r.randrange(10 ** r.randrange(1, 20))}"
                )
            if kind == 2:
                return Raw(f"{r.uniform(-9, 9):.{r.randrange(1, 18)}f}{r.choice('eE')}{r.randint(-40, 40)}")
            return Raw(repr(round(r.uniform(-4, 4), r.randrange(9))))
        bits, low = BYTES_EACH[datatype] * 8, 0
        if not datatype.startswith("U"):
            low = -(2 ** (bits - 1))
        edge = r.choice((low, low + 2**bits - 1, low - 1, low + 2**bits)) if r.random() < 0.05 else r.randrange(100)
        return Raw(f"{edge}.0" if r.random() < 0.05 else str(edge))

    def _binary(self, spec: TensorSpec, count: int) -> bytes:
        r = self._random
        if spec.datatype != "BYTES":
            return r.randbytes(count * BYTES_EACH[spec.datatype])
        elements = [r.randbytes(r.randrange(5)) for _ in range(count)]
        return b"".join(struct.pack("<I", len(one)) + one for one in elements)

    def _parameters(self) -> Any:
        r = self._random
        keys = ("timeout", "clover_max_latency_ms", "clover_min_accuracy", "clover_cascade", "clover_receipt")
        values = (*_NUMBERS[:40], "true", "false", '"on"', '"off"', "3.0", "90.5", "1e300")
        chosen = r.sample((*keys, "binary_data_output", "x"), r.randrange(3))
        return Members([(key, Raw(r.choice(values))) for key in chosen])

    def _outputs(self, spec: FamilySpec) -> Any:
        r = self._random
        listed = []
        for one in r.sample(spec.outputs, r.randint(0, len(spec.outputs))):
            members = Members([("name", one.name if r.random() < 0.9 else r.choice(_STRINGS))])
            if r.random() < 0.5:
                key = r.choice(("binary_data", "classification", "classification"))
                value = Raw(r.choice(("true", "false", "1", "3.0", "1000000000", "1e9", *_SHAPES)))
                members.append(("parameters", Members([(key, value)])))
            listed.append(members)
        return listed

    # --- text ---------------------------------------------------------------------------------------------------------

    def _text(self, node: Any) -> str:
        """Write JSON with white space and escapes as they come."""
        r = self._random
        spaced = r.random() < 0.5
        escaped = r.random() < 0.1

        def space() -> str:
            return r.choice(_SPACES[:10] if r.random() < 0.999 else _SPACES) if spaced else ""

        def quoted(text: str) -> str:
            if escaped and r.random() < 0.3:
                units = text.encode("utf-16-be", "surrogatepass")
                return '"' + "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)) + '"'
            return json.dumps(text, ensure_ascii=r.random() < 0.5)

        def write(value: Any) -> str:
            if isinstance(value, Raw):
                return f"{space()}{value}{space()}"
            if isinstance(value, Members):
                inner = ",".join(f"{space()}{quoted(key)}{space()}:{write(one)}" for key, one in value)
                return f"{space()}{{{inner}{space()}}}{space()}"
            if isinstance(value, list):
                return f"{space()}[{','.join(map(write, value))}{space()}]{space()}"
            return f"{space()}{quoted(value) if isinstance(value, str) else value}{space()}"

        return write(node)

    def _damaged(self, text: bytes) -> bytes:
        """Damage a text a few times over."""
        r = self._random
        ways: tuple[Callable[[bytes, int, int], bytes], ...] = (
            lambda t, a, b: t[:a] + bytes([t[a] ^ (1 << r.randrange(8))]) + t[a + 1 :],
            lambda t, a, b: t[:a] + t[b:],
            lambda t, a, b: t[:b] + t[a:b] + t[b:],
            lambda t, a, b: t[:a] + r.choice(_TOKENS) + t[a:],
            lambda t, a, b: t[:a] + r.choice((*_NUMBERS, *_SHAPES)).encode() + t[a:],
            lambda t, a, b: t[:a],
            lambda t, a, b: t[:a] + t[b : b + 8] + t[a:b] + t[b + 8 :],
        )
        for _ in range(r.choice((1, 1, 1, 2, 4))):
            if not text:
                break
            start = r.randrange(len(text))
            text = r.choice(ways)(text, start, min(len(text), start + r.randrange(1, 12)))
        return text


def _nested(elements: list[Any], axes: list[int]) -> list[Any]:
    if len(axes) < 2:
        return elements
    each = math.prod(axes[1:])
    return [_nested(elements[at * each : (at + 1) * each], axes[1:]) for at in range(axes[0])]
