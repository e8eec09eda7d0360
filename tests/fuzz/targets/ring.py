"""A worker's ring under a hostile peer: steps of either side, and bytes written over the shared memory between them.

The first byte of a step chooses it (a field that the peer owns is set, memory is overwritten, or a call is made); what
follows are its arguments.  The compiled ring and its twin do the same, and raise nothing but ValueError.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from clover._native import ring as compiled

INSTRUMENTED = ("tests.reference.ring",)
MAX_BATCH, LANES = 4, 3
SIZE = compiled.RING_BYTES(MAX_BATCH)
_FIELDS = (64, 128, 192, 256, 320)
DICTIONARY = (b"\0\1\0", b"\1\1", b"\2", b"\3\1\0", b"\4\0\1", b"\4\1\xff", b"\5\0\0\0", b"\6\1\x80\1", b"\7")


def seeds() -> list[bytes]:
    """Return plain exchanges, and some in which the peer lies."""
    exchange = b"\0\1\0" + b"\1" + b"\3\1\0" + b"\2"
    return [exchange, exchange * 5, b"\0\2\1" * 17 + b"\1" * 17, b"\3\1\0" * 17 + b"\2" * 17, b"\7\0\1\2",
            *(bytes([4, field, value]) + exchange for field in range(5) for value in (1, 17, 255)),
            *(b"\0\1\0" + bytes([6, 1, at, value]) + b"\1" for at in range(0, 40, 4) for value in (0,
              255))]  # fmt: skip


class Side:
    """Both ends of one ring, of one implementation."""

    def __init__(self, module: ModuleType) -> None:
        self.memory = np.zeros(SIZE, np.uint8)
        self.server: Any = module.Ring(self.memory, MAX_BATCH, create=True, lanes=LANES)
        self.worker: Any = module.Ring(self.memory, MAX_BATCH, lanes=LANES)
        self.module = module
        self.slots = np.arange(8, dtype=np.uint32)
        self.out = np.zeros(8, np.uint32)
        self.confidence = np.zeros(8, np.float32)

    def step(self, kind: int, a: int, b: int, c: int) -> Any:
        """Take a step; return what it came to."""
        try:
            if kind == 0:
                return self.server.submit(a << 8 | b, self.slots, a % 6, b % 4)
            if kind == 1:
                return self.worker.take(self.out), self.out.tolist()
            if kind == 2:
                return self.server.reap(self.confidence), np.nan_to_num(self.confidence, nan=-1.0).tolist()
            if kind == 3:
                return self.worker.complete(a, b - 128, a % 6, c, c + b, c, self.confidence if b & 1 else None)
            if kind == 4:
                at = _FIELDS[a % len(_FIELDS)]
                self.memory[at : at + 8] = np.frombuffer(
                    int(b if c < 128 else (1 << 64) - b - 1).to_bytes(8, "little"), np.uint8
                )
                return None
            if kind == 5:
                return self.server.untaken()
            if kind == 6:
                self.memory[(a * 256 + b) % SIZE] = c
                return None
            if a & 1:
                self.worker = self.module.Ring(self.memory, MAX_BATCH + (b > 250), lanes=LANES)
            else:
                self.worker.before_sleep() if hasattr(self.worker, "before_sleep") else None
            return "attached"
        except ValueError:  # in words of its own
            return "ValueError"


def check(data: bytes) -> str:
    """Play one exchange on both."""
    sides = [Side(compiled), Side(importlib.import_module("tests.reference.ring"))]
    said: list[str] = []
    at = 0
    while at < len(data) and len(said) < 256:
        kind = data[at] % 8
        a, b, c = (*data[at + 1 : at + 4], 0, 0, 0)[:3]
        at += {0: 3, 3: 4, 4: 4, 6: 4, 7: 3}.get(kind, 1)
        theirs = [repr(side.step(kind, a, b, c)) for side in sides]
        assert theirs[0] == theirs[1], f"step {kind} {a, b, c}: {theirs[0]} compiled, {theirs[1]} in the twin"
        assert (sides[0].memory == sides[1].memory).all(), f"step {kind} {a, b, c} leaves other memory"
        said.append(theirs[0])
    return "\n".join(said)
