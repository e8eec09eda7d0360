"""Answers kept by the digest of their input, so that an equal row need not be computed again.

A digest is BLAKE2b with a secret key of this process, 256 bits, over the shape and the bytes of each input and over
everything else that decides whether an answer may be used (`context`: who asks, with which demands, under which plan).
Without the key nobody can make two rows collide, and rows do not collide by chance.

The cache is bounded in bytes and in age.  Answers belong to an owner, the tenant that asked.  If there is no room, the
owner with the most bytes loses its least recently used answer.  So no owner loses what fits into an equal share of the
room, and a single owner has all of it.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clover.runtime.memory.rows import Memory
from clover.types import FamilySpec

_OVERHEAD_BYTES = 512
"""What an entry takes beside its outputs: digest, tuple, place in the dictionary."""

RowOutputs = tuple[tuple[tuple[int, ...], bytes], ...]
"""By output: the shape of the row (empty: as declared), and its bytes."""


class KeptAnswer(NamedTuple):
    """The answer to a row: its outputs, and what its receipt said of it (`accuracy` in percent)."""

    outputs: RowOutputs
    lane: int
    accuracy: float
    path: str
    born_ns: int

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return _OVERHEAD_BYTES + len(self.path) + sum(len(data) for _, data in self.outputs)


class _Share:
    """The answers of one owner, the most recently used last."""

    __slots__ = ("answers", "bytes")

    def __init__(self) -> None:
        self.answers: OrderedDict[bytes, KeptAnswer] = OrderedDict()
        self.bytes = 0


class AnswerCache:
    """Keeps answers of one family, at most `most_bytes` of them, for at most `most_age_ns`.

    `hits`, `misses`: rows that were looked for; `evicted`: those that went because there was no room.
    """

    def __init__(
        self, memory: Memory, spec: FamilySpec, most_bytes: int, most_age_ns: int, secret: bytes | None = None
    ) -> None:
        self.most_bytes = most_bytes
        self.hits = 0
        self.misses = 0
        self.evicted = 0
        self.bytes = 0
        self._most_age_ns = most_age_ns
        self._secret = os.urandom(32) if secret is None else secret
        self._memory = memory
        self._shares: dict[str, _Share] = {}
        self._inputs = [_reader(memory, "input", at, one) for at, one in enumerate(spec.inputs)]
        self._outputs = [_reader(memory, "output", at, one) for at, one in enumerate(spec.outputs)]
        self._writers = [_writer(memory, at, one) for at, one in enumerate(spec.outputs)]

    def __len__(self) -> int:
        return sum(len(share.answers) for share in self._shares.values())

    def digests(self, slots: Sequence[int], context: bytes) -> list[bytes]:
        """Return the digest of the inputs in each slot together with `context`; raises ValueError if a worker damaged
        the shape of one."""
        found = []
        for slot in slots:
            digest = hashlib.blake2b(key=self._secret, digest_size=32)
            digest.update(b"%d:" % len(context))
            digest.update(context)
            for read in self._inputs:
                dims, data = read(slot)
                digest.update(b"%r%d:" % (dims, len(data)))
                digest.update(data)
            found.append(digest.digest())
        return found

    def find(self, digests: Sequence[bytes], now_ns: int, owner: str = "") -> list[KeptAnswer] | None:
        """Return the answers to all rows of `owner`, which become the most recently used; None if any is missing or too
        old."""
        found = []
        share = self._shares.get(owner)
        for digest in digests:
            kept = share.answers.get(digest) if share is not None else None
            if kept is not None and now_ns - kept.born_ns > self._most_age_ns:
                self._drop(owner, digest)
                kept = None
            if kept is None:
                self.misses += len(digests)
                return None
            found.append(kept)
        if share is not None:
            for digest in digests:
                share.answers.move_to_end(digest)
        self.hits += len(digests)
        return found

    def fill(self, slots: Sequence[int], answers: Sequence[KeptAnswer]) -> None:
        """Write the outputs of answers into the slots of their rows."""
        for slot, kept in zip(slots, answers, strict=True):
            for write, (dims, data) in zip(self._writers, kept.outputs, strict=True):
                write(slot, dims, data)

    def outputs(self, slot: int) -> RowOutputs:
        """Return the outputs in a slot; raises ValueError if a worker wrote what its declaration does not allow."""
        return tuple(read(slot) for read in self._outputs)

    def keep(self, digest: bytes, answer: KeptAnswer, owner: str = "") -> None:
        """Keep an answer of `owner`, instead of an earlier one to the same row."""
        if answer.size > self.most_bytes:
            return
        if owner in self._shares and digest in self._shares[owner].answers:
            self._drop(owner, digest)
        share = self._shares.setdefault(owner, _Share())
        share.answers[digest] = answer
        share.bytes += answer.size
        self.bytes += answer.size
        while self.bytes > self.most_bytes:
            largest = max(self._shares, key=lambda name: self._shares[name].bytes)
            self._drop(largest, next(iter(self._shares[largest].answers)))
            self.evicted += 1

    def clear(self) -> None:
        """Forget all answers."""
        self._shares.clear()
        self.bytes = 0

    def _drop(self, owner: str, digest: bytes) -> None:
        share = self._shares[owner]
        size = share.answers.pop(digest).size
        share.bytes -= size
        self.bytes -= size
        if not share.answers:
            del self._shares[owner]


def _reader(memory: Memory, kind: str, index: int, tensor: Any) -> Callable[[int], tuple[tuple[int, ...], bytes]]:
    """Return a function from a slot to the shape (empty: as declared) and the bytes of a row."""
    if tensor.datatype == "BYTES":
        if tensor.variable:
            return lambda slot: (tuple(memory.dims(kind, index, slot)), memory.get_bytes(kind, index, slot))
        return lambda slot: ((), memory.get_bytes(kind, index, slot))
    region: NDArray[Any] = memory.array(kind, index)
    if not tensor.variable:
        return lambda slot: ((), region[slot : slot + 1].tobytes())

    def varied(slot: int) -> tuple[tuple[int, ...], bytes]:
        dims = tuple(memory.dims(kind, index, slot))
        corner: tuple[Any, ...] = (slot, *map(slice, dims))
        return dims, region[corner].tobytes()

    return varied


def _writer(memory: Memory, index: int, tensor: Any) -> Callable[[int, tuple[int, ...], bytes], None]:
    """Return a function that writes an output of such a shape and bytes into a slot."""
    if tensor.datatype == "BYTES":

        def text(slot: int, dims: tuple[int, ...], data: bytes) -> None:
            if tensor.variable:
                memory.set_dims("output", index, slot, dims)
            memory.put_bytes("output", index, slot, data)

        return text
    region: NDArray[Any] = memory.array("output", index)

    def numbers(slot: int, dims: tuple[int, ...], data: bytes) -> None:
        corner: tuple[Any, ...] = (slot, *map(slice, dims))
        if tensor.variable:
            memory.set_dims("output", index, slot, dims)
        region[corner] = np.frombuffer(data, region.dtype).reshape(dims if tensor.variable else region.shape[1:])

    return numbers
