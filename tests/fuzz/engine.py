"""What all fuzz targets share: how they are found, their corpora, and mutation without guidance.

A target is a module of `tests/fuzz/targets`:

    INSTRUMENTED    modules (and packages) of the product whose branches guide the search
    DICTIONARY      byte strings that inputs are made of
    seeds()         inputs to begin with, beside the corpus
    check(data)     one case: returns what it came to, as text; raises if a promise of the product is broken

`check` is a function of its bytes alone, so that a case is its bytes, and the compiled form of the product must return
what its source does.  A corpus is `corpora/TARGET.txt`: one bytes literal a line, as Python writes it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Protocol, cast

HERE = Path(__file__).resolve().parent
NAMES = sorted(path.stem for path in (HERE / "targets").glob("*.py"))
MOST_BYTES = 4096
"""Of one input."""

_EDGES = (0, 1, 2, 7, 9, 10, 13, 31, 32, 34, 44, 45, 48, 57, 58, 91, 92, 93, 123, 125, 127, 128, 254, 255)


class Target(Protocol):
    """A module of `tests/fuzz/targets`."""

    INSTRUMENTED: tuple[str, ...]
    DICTIONARY: tuple[bytes, ...]

    def seeds(self) -> list[bytes]: ...

    def check(self, data: bytes) -> str: ...


def load(name: str) -> Target:
    """Return the target `name`; ModuleNotFoundError if what it needs is not installed."""
    return cast(Target, importlib.import_module(f"tests.fuzz.targets.{name}"))


def corpus(name: str) -> list[bytes]:
    """Return the inputs that were kept for a target."""
    path = HERE / "corpora" / f"{name}.txt"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return [ast.literal_eval(line) for line in lines]


def write_corpus(name: str, cases: Iterable[bytes]) -> None:
    """Keep inputs for a target, shortest first and each once."""
    lines = [f"{case!r}\n" for case in sorted(set(cases), key=lambda case: (len(case), case))]
    (HERE / "corpora" / f"{name}.txt").write_text("".join(lines), encoding="ascii")


def scratch(name: str) -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the files of a target, in memory if that is possible: each case writes one."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(
        prefix=f"clover-fuzz-{name}-", dir=memory if os.access(memory, os.W_OK) else None
    )


def digest(name: str, cases: Iterable[bytes]) -> list[str]:
    """Check cases in order; return a short digest of what each came to."""
    target = load(name)
    return [hashlib.blake2b(target.check(case).encode(), digest_size=8).hexdigest() for case in cases]


class Mutator:
    """An endless supply of inputs near those of a corpus, from a seed."""

    def __init__(self, cases: list[bytes], dictionary: tuple[bytes, ...], seed: int) -> None:
        self._random = Random(seed)
        self._cases = cases or [b""]
        self._dictionary = dictionary or (b"\0",)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self.case()

    def case(self) -> bytes:
        """Return the next input."""
        r = self._random
        data = bytearray(r.choice(self._cases))
        for _ in range(r.choice((1, 1, 2, 3, 5, 8))):
            self._change(data)
        return bytes(data[:MOST_BYTES])

    def _change(self, data: bytearray) -> None:
        r = self._random
        at = r.randrange(len(data) + 1)
        until = min(len(data), at + r.choice((1, 1, 2, 4, 8, 32)))
        kind = r.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << r.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = r.choice(_EDGES)
        elif kind == 2:
            del data[at:until]
        elif kind == 3:
            data[at:at] = data[at:until] * r.choice((1, 1, 2, 16))
        elif kind == 4:
            data[at:at] = r.choice(self._dictionary)
        elif kind == 5:
            data[at:until] = r.choice(self._dictionary)
        elif kind == 6:
            other = r.choice(self._cases)
            data[at:] = other[r.randrange(len(other) + 1) :]
        else:
            data[at:at] = r.randbytes(r.choice((1, 2, 4)))
