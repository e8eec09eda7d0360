"""Rows in and out of a slab, in slots of any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.runtime.memory.rows import FixedRows, read_rows, write_array
from clover.runtime.memory.slab import Layout, Slab
from clover.types import FamilySpec, TensorSpec, VariantSpec
from tests.support.examples import examples

SLOTS = 12
ORDERS = st.permutations(range(SLOTS)).flatmap(
    lambda order: st.integers(1, SLOTS).map(lambda count: list(order[:count]))
)


def family(datatype: str) -> FamilySpec:
    tensor = TensorSpec(name="x", datatype=datatype, shape=(2,))
    return FamilySpec(name="f", inputs=(tensor,), outputs=(tensor,), variants=(VariantSpec(name="v", loader="m:f"),))


@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
@settings(max_examples=examples(200))
@given(slots=ORDERS)
def test_each_row_lies_in_its_slot_whatever_their_order(datatype: str, slots: list[int]) -> None:
    spec = family(datatype)
    slab = Slab.create(Layout(spec, SLOTS))
    try:
        (fixed,) = FixedRows.from_tensors(slab, "input", spec.inputs)
        assert fixed is not None
        region = slab.input(0)
        rows = np.array([[slot, -slot] for slot in slots], region.dtype)
        for write in (lambda: write_array(slab, spec.inputs[0], 0, slots, rows), lambda: fixed.put(slots, rows)):
            region[...] = 99
            write()
            for slot in range(SLOTS):
                assert region[slot].tolist() == ([slot, -slot] if slot in slots else [99, 99])
            assert fixed.get(slots).tolist() == rows.tolist()
        slab.output(0)[...] = region
        assert np.asarray(read_rows(slab, spec, 0, slots)).tolist() == rows.tolist()
    finally:
        slab.close()


def test_slots_whose_ends_alone_look_consecutive_are_not_taken_for_neighbours() -> None:
    """As in a profile's last batch: its answers were those of other rows."""
    spec = family("INT64")
    slab = Slab.create(Layout(spec, SLOTS))
    try:
        slots = [4, 9, 1, 7]
        write_array(slab, spec.inputs[0], 0, slots, np.array([[slot, 0] for slot in slots], np.int64))
        assert slab.input(0)[slots, 0].tolist() == slots
    finally:
        slab.close()
