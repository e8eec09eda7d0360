"""Fuzzes the decoder of infer requests: every way to read a body has to say the same.

    python -m bench.fuzz_decoder [--seconds 600] [--cases N] [--seed N] [--json FILE]

For every case (`bench.oip_cases`), until the time or the number of cases is up:

- the compiled parser, with the plain decoder behind it, against the plain decoder alone: the whole request, its arrays
  bit for bit, or the text of the error;
- the kernel against its plain-Python twin;
- JSON with an Inference-Header-Content-Length against JSON without;
- what was taken from JSON against Python's own reader of JSON, and against the same rows sent as binary data;
- a body received ahead, straight into slots, against the same body in one piece;
- and no case may raise anything but a refusal, whose text is short and printable, or take longer than the limit.

First it decodes 2^31 rows without elements, of each datatype.  It prints cases a second, the slowest decode and what
disagrees; the exit code is 1 if anything does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from bench.common import show, write_json
from bench.oip_cases import DATATYPES, MOST_ROWS, Case, Cases, families
from clover._native import infer
from clover.errors import RequestError
from clover.http.oip import tensors
from clover.http.oip.request import decode, decode_ahead
from clover.http.oip.signature import InferRequest, Signature
from clover.runtime.memory.bytes_codec import count_elements
from clover.types import FamilySpec, TensorSpec

LIMIT_MS = 5.0
"""No decode of a small body takes as long."""
NOTHING = 1 << 31
_LONGEST_TEXT = 600
_SHOWN = 20
_TIMES = 5

Outcome = tuple[Any, ...]


class Disagreement(AssertionError):
    """Two ways to read a body differ, or one breaks a promise."""


class Family:
    """A family's signature with and without the compiled parser, and its kernel beside the twin."""

    def __init__(self, spec: FamilySpec) -> None:
        self.spec = spec
        self.fast = Signature(spec, MOST_ROWS)
        self.plain = Signature(spec, MOST_ROWS)
        self.plain.plain = None
        self.parsers: list[tuple[Any, Any]] = []
        if self.fast.plain is not None:
            tensor = spec.inputs[0]
            size = min(spec.max_batch, MOST_ROWS) * int(np.prod(tensor.shape))
            for module in (infer, importlib.import_module("tests.reference.infer")):
                out = np.zeros(size, np.float32)
                self.parsers.append((module.Plain(tensor.name, tensor.shape, out), out))


class Fuzzer:
    """Examines cases.  `counts` says what they came to; `slowest` is the longest decode (milliseconds of CPU time), to
    be below `limit_ms`."""

    def __init__(self, limit_ms: float = LIMIT_MS) -> None:
        self._limit_ms = limit_ms
        self.families = {name: Family(spec) for name, spec in families().items()}
        self.counts: Counter[str] = Counter()
        self.slowest: tuple[float, Case | None] = (0.0, None)

    def examine(self, case: Case) -> None:
        """Read a case in every way; raises Disagreement."""
        family = self.families[case.family]
        fast, plain = (outcome(signature, case.body, case.json_length) for signature in (family.fast, family.plain))
        _same("the decoder with and without the compiled parser", fast, plain)
        self._time(case, family)
        self.counts[str(fast[0])] += 1
        if family.parsers and case.json_length < 0:
            self._check_kernel(family, case.body)
        if case.json_length < 0:
            headed = outcome(family.plain, case.body, len(case.body)) if case.body else plain
            _same("JSON with and without Inference-Header-Content-Length", plain, headed)
        if fast[0] == "taken":
            self._check_taken(family, case)
        else:
            _require(fast[1] in (400, 413), f"a refusal has the status {fast[1]}")
            _require(len(fast[2]) <= _LONGEST_TEXT and fast[2].isprintable(), f"the text of a refusal: {fast[2]!r}")
        if 0 < case.json_length <= len(case.body):
            self._check_again(family, case)
        if 0 < case.json_length < len(case.body) and family.plain.is_direct:
            self._check_ahead(family, case, plain)

    def _time(self, case: Case, family: Family) -> None:
        """Time a decode; what takes long is repeated, as the machine has others to serve."""
        worst, _ = self.slowest
        took = _timed(lambda: outcome(family.fast, case.body, case.json_length))
        if took > worst:
            took = min(_timed(lambda: outcome(family.fast, case.body, case.json_length)) for _ in range(_TIMES))
        if took > worst:
            self.slowest = took, case
            _require(took < self._limit_ms, f"a decode took {took:.2f} ms")

    def _check_kernel(self, family: Family, body: bytes) -> None:
        said = []
        for parser, out in family.parsers:
            found = parser.parse(body)
            each = len(out) * (found[1] if found else 0) // min(family.spec.max_batch, MOST_ROWS)
            said.append((found, out[:each].tobytes()))
        self.counts["parsed by the kernel"] += said[0][0] is not None
        _same("the kernel and its twin", *said)

    def _check_taken(self, family: Family, case: Case) -> None:
        """Compare a request that was taken with an independent reading of its JSON, and with its binary form."""
        request = decode(family.plain, case.body, case.json_length)
        _require(1 <= request.rows <= min(MOST_ROWS, max(1, len(case.body))), f"{request.rows} rows were taken")
        if case.json_length == 0:
            return
        text = case.body if case.json_length < 0 else case.body[: case.json_length]
        document = json.loads(text)
        given = {item["name"]: item for item in document["inputs"]}
        for index, rows in request.inputs:
            tensor = family.spec.inputs[index]
            item = given[tensor.name]
            _require(all(type(axis) is int for axis in item["shape"]), f"the shape {item['shape']} was taken")
            if "data" in item:
                _same("the decoder and Python's JSON", _bits(rows), _bits(independent(tensor, item)))
        if case.json_length < 0:
            back = decode(family.plain, *as_binary(family.spec, request))
            _same("a request in JSON and in binary", _told(request), _told(back))

    def _check_again(self, family: Family, case: Case) -> None:
        """Compare a binary request whose JSON came before, with other tensors, with one whose JSON is new."""
        signature, text, tail = family.plain, case.body[: case.json_length], case.body[case.json_length :]
        alike = [(text, others) for others in (tail[::-1], tail[:-1], tail + b"\0")]
        for other, others in (*alike, *((named, tail) for named in _renamed(text))):
            fresh = Signature(family.spec, MOST_ROWS)
            outcome(fresh, case.body, case.json_length)
            self.counts["known"] += fresh.known is not None
            again = outcome(fresh, other + others, len(other))
            signature.known = None
            _same("JSON that came before and new JSON", again, outcome(signature, other + others, len(other)))

    def _check_ahead(self, family: Family, case: Case, whole: Outcome) -> None:
        text, size = case.body[: case.json_length], len(case.body) - case.json_length
        ahead = decode_ahead(family.plain, text, size)
        if ahead is None:
            _require(whole[0] == "refused", "a good body was not received ahead")
            return
        self.counts["received ahead"] += 1
        _require(whole[0] == "taken", f"what is refused in one piece was received ahead: {whole}")
        _same("a body received ahead and in one piece", _told(ahead)[:-1], whole[1:-1])
        _require(len(whole[-1]) == 1 and len(whole[-1][0][1][-1]) == size, "the rows received ahead are not the body")


def outcome(signature: Signature, body: bytes, json_length: int) -> Outcome:
    """Return what the decoder makes of a body: ("taken", all of the request) or ("refused", status, text)."""
    try:
        return ("taken", *_told(decode(signature, body, json_length)))
    except RequestError as error:
        return "refused", error.status, error.message


def _renamed(text: bytes) -> list[bytes]:
    """Return the JSON of a request with other strings in place of the first that could be its id."""
    others = (b"other", b"", b'a\\"b', b'"', "\u00e9".encode(), b"i" * 1025, b"\\u0041", b"\0")
    found = re.search(rb'"id"\s*:\s*"([^"]*)"', text)
    return [text[: found.start(1)] + other + text[found.end(1) :] for other in others] if found else []


def _told(request: InferRequest) -> Outcome:
    outputs = [(one.index, one.binary, one.classes) for one in request.outputs]
    inputs = [(index, _bits(rows)) for index, rows in request.inputs]
    times = request.timeout_ns, request.min_accuracy, request.cascade, request.wants_receipt
    return request.id, request.rows, outputs, *times, request.shapes, inputs


def _bits(rows: Any) -> Outcome:
    if isinstance(rows, list):
        return "BYTES", len(rows), tuple(rows)
    return str(rows.dtype), rows.shape, rows.tobytes()


def independent(tensor: TensorSpec, item: dict[str, Any]) -> Any:
    """Return the rows of a tensor that was taken from JSON, as Python's own reader and NumPy have them."""
    flat: list[Any] = item["data"]
    while flat and isinstance(flat[0], list):
        flat = [element for part in flat for element in part]
    shape = item["shape"]
    if tensor.datatype == "BYTES":
        each = len(flat) // shape[0]
        packed = [len(text.encode()).to_bytes(4, "little") + text.encode() for text in flat]
        return [b"".join(packed[row * each : (row + 1) * each]) for row in range(shape[0])]
    dtype = tensors.DATATYPES[tensor.datatype].dtype
    convert: Callable[[Any], Any] = float if dtype.kind == "f" else bool if dtype.kind == "b" else int
    exact = np.dtype(np.float64) if dtype.kind == "f" else dtype
    return np.array([convert(element) for element in flat], exact).astype(dtype).reshape(shape)


def as_binary(spec: FamilySpec, request: InferRequest) -> tuple[bytes, int]:
    """Return a request's body with its rows as binary data, and the length of its JSON."""
    inputs, tail = [], []
    for index, rows in request.inputs:
        tensor = spec.inputs[index]
        raw = b"".join(rows) if isinstance(rows, list) else tensors.numbers_to_binary(rows)
        row = [count_elements(rows[0]) // (2 if len(tensor.shape) == 2 else 1)] if isinstance(rows, list) else []
        shape = [len(rows), *row, *tensor.shape[1:]] if isinstance(rows, list) else list(rows.shape)
        item = {"name": tensor.name, "shape": shape, "datatype": tensor.datatype}
        inputs.append(item | {"parameters": {"binary_data_size": len(raw)}})
        tail.append(raw)
    parameters: dict[str, Any] = {"clover_min_accuracy": request.min_accuracy, "clover_receipt": request.wants_receipt}
    parameters |= {"timeout": request.timeout_ns // 1000, "clover_cascade": "on" if request.cascade else "off"}
    if request.timeout_ns % 1000 or request.timeout_ns > 1000 << 53:
        parameters["timeout"] = 0
        parameters["clover_max_latency_ms"] = request.timeout_ns / 1e6
    outputs = [
        {
            "name": spec.outputs[one.index].name,
            "parameters": {
                "binary_data": one.binary,
                "classification": one.classes if one.classes < 1 << 64 else float(one.classes),
            },
        }
        for one in request.outputs
    ]
    text = orjson.dumps({"id": request.id, "inputs": inputs, "outputs": outputs, "parameters": parameters})
    return text + b"".join(tail), len(text)


def _timed(call: Callable[[], object]) -> float:
    start = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - start) / 1e6


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise Disagreement(text)


def _same(what: str, first: Any, second: Any) -> None:
    if first != second:
        raise Disagreement(f"{what} disagree: {str(first)[:600]} and {str(second)[:600]}")


# --- rows of nothing --------------------------------------------------------------------------------------------------


def nothing(datatype: str, row: list[int], *, binary: bool) -> tuple[bytes, int]:
    """Return the body of a request of 2^31 rows of a shape and no data, and the length of its JSON (-1: all of it)."""
    tensor: dict[str, Any] = {"name": "x", "shape": [NOTHING, *row], "datatype": datatype}
    if binary:
        tensor["parameters"] = {"binary_data_size": 0}
    else:
        tensor["data"] = []
    text = orjson.dumps({"inputs": [tensor]})
    return text, len(text) if binary else -1


def rows_of_nothing() -> list[list[object]]:
    """Decode 2^31 rows without data of each datatype; milliseconds, bytes allocated at most, and what was said."""
    table: list[list[object]] = []
    known = families()
    for datatype in DATATYPES:
        for family, row in ((datatype, [2]), (f"{datatype} variable", [0, 2])):
            for binary in (False, True):
                signature = Signature(known[family], 1 << 16)
                body, json_length = nothing(datatype, row, binary=binary)
                outcome(signature, body, json_length)
                took = max(_timed(lambda: outcome(signature, body, json_length)) for _ in range(_TIMES))  # noqa: B023
                tracemalloc.start()
                said = outcome(signature, body, json_length)
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                form = "binary" if binary else "JSON"
                table.append([f"{datatype} {[NOTHING, *row]}", form, took, peak, " ".join(map(str, said[:2]))])
                if said[0] != "refused" or took >= LIMIT_MS:
                    raise Disagreement(f"{NOTHING} rows of nothing as {datatype} in {form}: {said}, {took:.2f} ms")
    return table


# --- the run ----------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="how many cases at most")
    parser.add_argument("--seed", type=int, default=1, help="of the generator: the same seed gives the same cases")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    show("2^31 rows of nothing", ["shape", "form", "ms", "bytes", "outcome"], rows_of_nothing())
    fuzzer = Fuzzer()
    cases = Cases(options.seed)
    found: list[str] = []
    start = time.monotonic()
    number = 0
    while number < options.cases and time.monotonic() - start < options.seconds and len(found) < _SHOWN:
        case = cases.case()
        number += 1
        try:
            fuzzer.examine(case)
        except Exception as error:  # whatever it is, it is a finding
            found.append(f"case {number} of seed {options.seed}: {type(error).__name__}: {error}\n  {case}")
            print(found[-1], flush=True)
    seconds = time.monotonic() - start
    slowest, slow = fuzzer.slowest
    counts = ", ".join(f"{count} {name}" for name, count in sorted(fuzzer.counts.items()))
    print(f"{number} cases of seed {options.seed} in {seconds:.0f} s ({number / seconds:.0f} a second): {counts}")
    size = len(slow.body) if slow else 0
    print(f"slowest decode {slowest:.3f} ms (limit {LIMIT_MS:g}), of {size} bytes: {str(slow)[:160]}")
    print(f"{len(found)} disagreements")
    figures = {"cases": number, "seconds": seconds, "slowest_ms": slowest, "disagreements": found}
    write_json(options.json, {**figures, "counts": dict(fuzzer.counts)})
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
