"""Bodies of infer requests: every way to read one says the same, JSON and binary, compiled and as source.

The first byte chooses a family (`bench.oip_cases`: each datatype, fixed and variable), the next two say how much of the
rest is JSON (65535: all of it, and no length is given).
"""

from __future__ import annotations

from bench.fuzz_decoder import Fuzzer, outcome
from bench.oip_cases import Case, Cases, families

INSTRUMENTED = ("clover.http.oip", "clover.runtime.memory.bytes_codec", "tests.reference.infer")
FAMILIES = sorted(families())
FUZZER = Fuzzer(limit_ms=float("inf"))  # instrumented, it is slower than what is timed

DICTIONARY = (
    *(b'"inputs":', b'"outputs":', b'"name":', b'"shape":', b'"datatype":', b'"data":', b'"parameters":', b'"id":',
      b'"x"'),
    *(b'"binary_data_size":', b'"binary_data":', b'"classification":', b'"timeout":', b"true", b"false", b"null",
      b"1e400"),
    *(b"-0", b"1.0", b"18446744073709551616", b"9223372036854775808", b"[[", b"]]", b"},{", b'"FP32"', b'"BYTES"',
      b"\\u00e9"),
    *(b"\xff\xfe", b"\x01\0\0\0", b"\xff\xff\xff\xff", b" ", b"\n", b",", b":", b'"', b"{", b"}", b"[", b"]",
      b"\\ud800"),
)  # fmt: skip


def framed(case: Case) -> bytes:
    """Return a case as an input of this target."""
    size = 0xFFFF if case.json_length < 0 else min(case.json_length, 0xFFFE)
    return bytes([FAMILIES.index(case.family), size >> 8, size & 255]) + case.body


def seeds() -> list[bytes]:
    """Return cases by the grammar."""
    cases = Cases(27)
    return [framed(cases.case()) for _ in range(300)]


def check(data: bytes) -> str:
    """Read one body in every way."""
    if len(data) < 3:
        return ""
    size = data[1] << 8 | data[2]
    case = Case(FAMILIES[data[0] % len(FAMILIES)], data[3:], -1 if size == 0xFFFF else size)
    FUZZER.examine(case)
    return repr(outcome(FUZZER.families[case.family].fast, case.body, case.json_length))
