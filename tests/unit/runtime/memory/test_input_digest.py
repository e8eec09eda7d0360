"""Numbers for the inputs of rows: of tensors of one size, of texts, and of rows that differ in shape."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from clover.runtime.memory.rows import InputDigests, write_array, write_bytes
from clover.runtime.memory.slab import Layout, Slab
from clover.types import TensorSpec
from tests.support.router_fixture import family


def oip(*elements: bytes) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def test_texts_and_rows_of_any_shape_are_told_apart_by_what_is_theirs() -> None:
    """What an earlier row left in the slot, beyond this one's own, is none of it."""
    text = TensorSpec(name="text", datatype="BYTES", shape=(1,), max_bytes=64)
    varied = TensorSpec(name="x", datatype="FP32", shape=(-1, -1), max_shape=(3, 4))
    spec = family(inputs=(TensorSpec(name="id", datatype="INT64", shape=(1,)), text, varied))
    slab = Slab.create(Layout(spec, 4))
    inputs = InputDigests(slab, spec, key=1)

    def write(slot: int, said: bytes, shape: tuple[int, int], number: int = 7) -> int:
        write_array(slab, spec.inputs[0], 0, [slot], np.array([[number]], np.int64))
        write_bytes(slab, text, 1, [slot], [oip(said)], None)
        write_array(slab, varied, 2, [slot], np.ones((1, *shape), np.float32))
        return inputs.digest(slot)

    first = write(0, b"shirt", (2, 3))
    write(1, b"something much longer than a shirt", (3, 4))
    assert write(1, b"shirt", (2, 3)) == first
    others = {write(2, b"shirts", (2, 3)), write(2, b"shirt", (3, 2)), write(2, b"shirt", (2, 3), 8)}
    assert len(others | {first}) == 4
    slab._words[0, slab.layout.region("input", 2).dims_word] = 99  # a worker wrote over it
    assert inputs.digest(0) == 0


@pytest.mark.parametrize("shape", [(1000, 750), (750, 1000)])
def test_a_large_row_of_varying_shape_is_not_copied(shape: tuple[int, int]) -> None:
    """It would take the event loop's time, and memory, by what a client sends."""
    varied = TensorSpec(name="x", datatype="FP32", shape=(-1, -1), max_shape=(1000, 1000))
    text = TensorSpec(name="text", datatype="BYTES", shape=(1,), max_bytes=4_000_000)
    spec = family(inputs=(varied, text))
    slab = Slab.create(Layout(spec, 2))
    inputs = InputDigests(slab, spec, key=1)
    write_array(slab, varied, 0, [0], np.ones((1, *shape), np.float32))
    write_bytes(slab, text, 1, [0], [oip(bytes(3_000_000))], None)
    inputs.digest(0)
    tracemalloc.start()
    try:
        inputs.digest(0)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_another_process_has_another_key() -> None:
    spec = family()
    slab = Slab.create(Layout(spec, 4))
    assert InputDigests(slab, spec).digest(0) != InputDigests(slab, spec).digest(0)
