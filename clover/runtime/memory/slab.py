"""The slab: one family's rows in shared memory, written once by the server and read in place by its workers.

A slab is a sealed memfd, a structure of arrays.  Each tensor of the family has one region `[slots, *bound]`, so that
consecutive slots form one contiguous tensor and a worker needs no copy to read a batch.  A row smaller than its bound
(a variable axis) lies in the leading corner of its slot: `input(i)[slot][:d0, :d1]`.  A BYTES tensor is a region
`[slots, max_bytes]` of uint8 that holds its elements in OIP form (uint32 little-endian length, then the bytes, each).

Before the regions stands one row of words a slot: a generation (uint32, counts the uses of a slot), the confidence of
its answer (float32, from the worker), the request id (uint64), then per variable tensor its dims (uint32 each) and per
BYTES tensor its length in bytes.  A family with steps in its workers has room for a text in each slot, by which a
worker says why it refused the row.  The first page names all of this (magic, version, sizes, a digest of the tensors);
a process that attaches with another layout is refused.  Nothing has a name in /dev/shm: the descriptor is passed along,
and the memory goes with its last holder, however that one dies.

BF16 travels as uint16 and FP16 as float16, because NumPy has no bfloat16.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clover.errors import ConfigError, WorkerError
from clover.families import DATATYPES
from clover.types import FamilySpec, TensorSpec

Kind = Literal["input", "output"]

DTYPES: dict[str, np.dtype[Any]] = {**DATATYPES, "BYTES": np.dtype(np.uint8)}
"""How each OIP datatype lies in a slab."""

ROWS_REFUSED = 2
"""Status of a completion some of whose rows were refused: their slots say why, the other rows are answered."""

NO_MEMORY = 3
"""Status of a completion for which the worker had no memory: its rows may well be answered another time."""

REFUSAL_BYTES = 240
"""Room for the reason why a row was refused."""

_PAGE_BYTES = 4096
_ALIGN_BYTES = 64
_HEAD_WORDS = 4
_HEADER = struct.Struct("<8sIIQII32s")
_MAGIC = b"CLVRSLAB"
_VERSION = 2
_MAX_RANK = 8
_MAX_SLOTS = 1 << 24
_MAX_BYTES = 1 << 40
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Region:
    """Where one tensor lies, and which words of a slot's header describe it (-1: none)."""

    __slots__ = ("bound", "dims_word", "dtype", "length_word", "offset", "row_bytes", "tensor")

    def __init__(self, tensor: TensorSpec) -> None:
        if tensor.datatype not in DTYPES:
            known = ", ".join(DTYPES)
            raise ConfigError(f"tensor {tensor.name!r}: unknown datatype {tensor.datatype!r}; one of {known}")
        bound = (tensor.max_bytes,) if tensor.datatype == "BYTES" else tensor.bound
        _check_tensor(tensor, bound)
        self.tensor = tensor
        self.dtype = DTYPES[tensor.datatype]
        self.bound = bound
        self.row_bytes = math.prod(bound) * self.dtype.itemsize
        self.offset = 0
        self.dims_word = -1
        self.length_word = -1


def _check_tensor(tensor: TensorSpec, bound: tuple[int, ...]) -> None:
    if tensor.datatype == "BYTES" and tensor.max_bytes < 4:
        raise ConfigError(f"tensor {tensor.name!r}: a BYTES tensor needs max_bytes, the room of one row (at least 4)")
    if len(tensor.shape) > _MAX_RANK:
        raise ConfigError(f"tensor {tensor.name!r}: at most {_MAX_RANK} axes")
    if tensor.variable and len(tensor.max_shape) != len(tensor.shape):
        raise ConfigError(f"tensor {tensor.name!r}: a variable axis needs max_shape, with one bound an axis")
    if any(not 1 <= axis <= 1 << 31 for axis in (*tensor.bound, *bound)):
        raise ConfigError(f"tensor {tensor.name!r}: every axis must be at least 1, and bounded by max_shape")
    for axis, most in zip(tensor.shape, tensor.bound, strict=True):
        if 0 <= axis != most:
            raise ConfigError(f"tensor {tensor.name!r}: max_shape differs from shape on a fixed axis")


class Layout:
    """Offsets and sizes of a family's slab with `slots` rows.  Raises ConfigError if tensors or sizes are unusable.

    `bytes` is the size of the whole slab, `row_bytes` what one more slot adds.
    """

    def __init__(self, spec: FamilySpec, slots: int) -> None:
        if not 1 <= slots <= _MAX_SLOTS:
            raise ConfigError(f"a slab holds 1 to {_MAX_SLOTS} slots, not {slots}")
        self.spec = spec
        self.slots = slots
        self.inputs = [Region(tensor) for tensor in spec.inputs]
        self.outputs = [Region(tensor) for tensor in spec.outputs]
        said = TensorSpec(name="refusal", datatype="BYTES", shape=(1,), max_bytes=REFUSAL_BYTES)
        self.refusal = Region(said) if spec.stepped else None
        regions = (*self.inputs, *self.outputs, *(() if self.refusal is None else (self.refusal,)))
        words = _HEAD_WORDS
        for region in regions:
            if region.tensor.variable:
                region.dims_word = words
                words += len(region.tensor.shape)
            if region.tensor.datatype == "BYTES":
                region.length_word = words
                words += 1
        self.words = words + words % 2  # the request id stays 8-byte aligned in every slot
        self.row_bytes = self.words * 4 + sum(region.row_bytes for region in regions)
        offset = _align(_PAGE_BYTES + slots * self.words * 4)
        for region in regions:
            region.offset = offset
            offset = _align(offset + slots * region.row_bytes)
        self.bytes = -(-offset // _PAGE_BYTES) * _PAGE_BYTES
        if self.bytes > _MAX_BYTES:
            raise ConfigError(f"a slab of {slots} slots of {self.row_bytes} bytes is too large")
        text = repr([(t.datatype, t.shape, t.bound, t.max_bytes) for t in (*spec.inputs, *spec.outputs)])
        text += "" if self.refusal is None else f"/{REFUSAL_BYTES}"
        self.digest = hashlib.sha256(f"{len(spec.inputs)}/{text}".encode()).digest()

    @classmethod
    def fitting(cls, spec: FamilySpec, most_bytes: int, *, least: int = 1, most: int = 1 << 16) -> Layout:
        """Return the layout with as many slots as fit into `most_bytes`, within `least` .. `most` slots."""
        room = most_bytes - _PAGE_BYTES - _ALIGN_BYTES * (3 + len(spec.inputs) + len(spec.outputs))
        return cls(spec, max(least, min(most, room // cls(spec, 1).row_bytes)))

    def region(self, kind: Kind, index: int) -> Region:
        """Return the region of input or output `index`."""
        return (self.inputs if kind == "input" else self.outputs)[index]

    def header(self) -> bytes:
        """Return what the first page of a slab of this layout begins with."""
        return _HEADER.pack(_MAGIC, _VERSION, self.slots, self.bytes, self.words, 0, self.digest)


def _align(offset: int) -> int:
    return -(-offset // _ALIGN_BYTES) * _ALIGN_BYTES


def shared_memory(name: str, size: int) -> int:
    """Return a new sealed memfd of `size` zero bytes that can neither shrink nor grow (close-on-exec)."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_shared(fd: int, size: int) -> mmap.mmap:
    """Map all of a memfd from `shared_memory`.  Raises WorkerError if its size differs or it could still shrink."""
    found = os.fstat(fd).st_size
    if found != size:
        raise WorkerError(f"shared memory has {found} bytes instead of {size}")
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise WorkerError("shared memory is not sealed")
    return mmap.mmap(fd, size)


class Slab:
    """A mapped slab.  Made by `create` (which owns the descriptor) or `attach`."""

    def __init__(self, fd: int, layout: Layout, mapped: mmap.mmap) -> None:
        self.fd = fd
        self.layout = layout
        self._map = mapped
        words = np.frombuffer(mapped, np.uint32, layout.slots * layout.words, _PAGE_BYTES)
        self._words = words.reshape(layout.slots, layout.words)
        self.generation: NDArray[np.uint32] = self._words[:, 0]
        """[slots] uint32: counts the uses of each slot."""
        self.score: NDArray[np.float32] = self._words.view(np.float32)[:, 1]
        """[slots] float32: the confidence of the answer in each slot, if the family has a confidence function."""
        self.request: NDArray[np.uint64] = words.view(np.uint64).reshape(layout.slots, -1)[:, 1]
        """[slots] uint64: the request each slot serves."""
        self._inputs = [self._view(region) for region in layout.inputs]
        self._outputs = [self._view(region) for region in layout.outputs]
        self._refusals = self._view(layout.refusal) if layout.refusal is not None else None

    @classmethod
    def create(cls, layout: Layout) -> Slab:
        """Return a new slab of zeros; pages cost memory once they are touched."""
        fd = shared_memory("clover-slab", layout.bytes)
        try:
            made = cls(fd, layout, map_shared(fd, layout.bytes))
            made.write_header()
            return made
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, layout: Layout) -> Slab:
        """Map another process's slab and take over `fd`.  Raises WorkerError if it is not of this layout."""
        mapped = map_shared(fd, layout.bytes)
        if mapped[: _HEADER.size] != layout.header():
            magic, version, slots, size, _, _, _ = _HEADER.unpack(mapped[: _HEADER.size])
            mapped.close()
            raise WorkerError(
                f"the slab does not match the family: magic {magic!r}, version {version}, {slots} slots, {size} bytes"
            )
        return cls(fd, layout, mapped)

    def write_header(self) -> None:
        """Write the header, also anew before another process attaches: a model may have overwritten it."""
        self._map[: _HEADER.size] = self.layout.header()

    @property
    def memory(self) -> mmap.mmap:
        """The whole mapped memory."""
        return self._map

    def _view(self, region: Region) -> NDArray[Any]:
        slots = self.layout.slots
        flat = np.frombuffer(self._map, region.dtype, slots * math.prod(region.bound), region.offset)
        return flat.reshape(slots, *region.bound)

    def input(self, index: int) -> NDArray[Any]:
        """Return the array [slots, *bound] of input `index`; BYTES: uint8 [slots, max_bytes]."""
        return self._inputs[index]

    def output(self, index: int) -> NDArray[Any]:
        """Return the array [slots, *bound] of output `index`; BYTES: uint8 [slots, max_bytes]."""
        return self._outputs[index]

    def array(self, kind: Kind, index: int) -> NDArray[Any]:
        """Return `input(index)` or `output(index)`."""
        return (self._inputs if kind == "input" else self._outputs)[index]

    def dims(self, kind: Kind, index: int, slot: int) -> tuple[int, ...]:
        """Return the shape of the row in `slot`.  Raises ValueError if the other side wrote dims beyond the
        bound."""
        region = self.layout.region(kind, index)
        if region.dims_word < 0:
            return region.tensor.shape
        rank = len(region.tensor.shape)
        found: list[int] = self._words[slot, region.dims_word : region.dims_word + rank].tolist()
        _check_dims(region.tensor, found)
        return tuple(found)

    def set_dims(self, kind: Kind, index: int, slot: int, dims: Sequence[int]) -> None:
        """Record the shape of the row in `slot`; raises ValueError if it breaks the declaration."""
        region = self.layout.region(kind, index)
        _check_dims(region.tensor, dims)
        if region.dims_word >= 0:
            self._words[slot, region.dims_word : region.dims_word + len(dims)] = dims

    def length(self, kind: Kind, index: int, slot: int) -> int:
        """Return bytes used by the BYTES tensor's row in `slot`; ValueError beyond its room (a misbehaving peer)."""
        region = self.layout.region(kind, index)
        found = int(self._words[slot, region.length_word]) if region.length_word >= 0 else region.row_bytes
        if found > region.row_bytes:
            raise ValueError(f"tensor {region.tensor.name!r}: {found} bytes in a slot of {region.row_bytes}")
        return found

    def set_length(self, kind: Kind, index: int, slot: int, length: int) -> None:
        """Record how many bytes of a BYTES row are used; raises ValueError beyond its room."""
        region = self.layout.region(kind, index)
        if region.length_word < 0 or not 0 <= length <= region.row_bytes:
            raise ValueError(f"tensor {region.tensor.name!r}: {length} bytes do not fit its {region.row_bytes}")
        self._words[slot, region.length_word] = length

    def get_bytes(self, kind: Kind, index: int, slot: int) -> bytes:
        """Return a copy of a BYTES row in OIP form."""
        return self.array(kind, index)[slot, : self.length(kind, index, slot)].tobytes()

    def put_bytes(self, kind: Kind, index: int, slot: int, data: bytes | bytearray | memoryview) -> None:
        """Write a BYTES row in OIP form; raises ValueError if it does not fit."""
        self.set_length(kind, index, slot, len(data))
        self.array(kind, index)[slot, : len(data)] = np.frombuffer(data, np.uint8)

    def refuse(self, slots: Sequence[int], reasons: Mapping[int, str]) -> None:
        """Write why rows of a batch were refused; `reasons` go by the places of their slots in `slots`."""
        region, texts = self.layout.refusal, self._refusals
        assert region is not None
        assert texts is not None
        for place, slot in enumerate(slots):
            said = reasons.get(place, "").encode()[:REFUSAL_BYTES]
            texts[slot, : len(said)] = np.frombuffer(said, np.uint8)
            self._words[slot, region.length_word] = len(said)

    def refusals(self, slots: Sequence[int]) -> dict[int, str]:
        """Return by slot why the worker refused its row; of `slots` those that it refused."""
        region, texts = self.layout.refusal, self._refusals
        if region is None or texts is None:
            return {}
        found = {}
        for slot in slots:
            length = min(int(self._words[slot, region.length_word]), REFUSAL_BYTES)
            if length:
                said = texts[slot, :length].tobytes().decode(errors="replace")
                found[slot] = "".join(char if char.isprintable() else "?" for char in said)
        return found

    def release(self) -> None:
        """Give the memory of all rows back: they are zeros until they are written again.  No slot may be in use."""
        regions = (*self.layout.inputs, *self.layout.outputs)
        start = -(-min(region.offset for region in regions) // _PAGE_BYTES) * _PAGE_BYTES
        if start < self.layout.bytes:
            self._map.madvise(mmap.MADV_REMOVE, start, self.layout.bytes - start)

    def close(self) -> None:
        """Close the descriptor and unmap.  Views that are still held keep the mapping (not the slab) alive."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._inputs = []
        self._outputs = []
        self._refusals = None
        self.generation = self.request = self.score = self._words = np.empty(0, np.uint32)  # type: ignore[assignment]
        try:
            self._map.close()
        except BufferError:
            return  # the last view unmaps it


def _check_dims(tensor: TensorSpec, dims: Sequence[int]) -> None:
    if len(dims) != len(tensor.shape):
        raise ValueError(f"tensor {tensor.name!r}: {len(dims)} axes instead of {len(tensor.shape)}")
    for axis, declared, most in zip(dims, tensor.shape, tensor.bound, strict=True):
        if not (axis == declared if declared >= 0 else 0 <= axis <= most):
            raise ValueError(f"tensor {tensor.name!r}: shape {list(dims)} does not match {list(tensor.shape)}")
