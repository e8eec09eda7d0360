from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import ConfigError, WorkerError
from clover.runtime.memory.slab import DTYPES, Layout, Slab, map_shared
from clover.types import FamilySpec, TensorSpec, VariantSpec
from tests.support.examples import examples


def family(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> FamilySpec:
    outputs = outputs or (TensorSpec(name="out", datatype="FP32", shape=(10,)),)
    return FamilySpec(name="f", inputs=inputs, outputs=outputs, variants=(VariantSpec(name="v", loader="m:f"),))


IMAGE = TensorSpec(name="image", datatype="FP32", shape=(1, 28, 28))
TEXT = TensorSpec(name="text", datatype="BYTES", shape=(1,), max_bytes=64)
WAVE = TensorSpec(name="wave", datatype="FP16", shape=(-1, 3), max_shape=(100, 3))


@pytest.fixture
def slab() -> Iterator[Slab]:
    made = Slab.create(Layout(family(IMAGE, TEXT, WAVE, TensorSpec(name="b", datatype="BF16", shape=(2,))), 8))
    yield made
    made.close()


def test_consecutive_slots_are_one_contiguous_tensor(slab: Slab) -> None:
    images = slab.input(0)
    assert images.shape == (8, 1, 28, 28)
    assert images[2:6].flags.c_contiguous
    assert slab.input(1).shape == (8, 64)
    assert slab.input(1).dtype == np.uint8
    assert slab.input(2).shape == (8, 100, 3)
    assert slab.input(2).dtype == np.float16
    assert slab.input(3).dtype == np.uint16
    assert slab.output(0).shape == (8, 10)


def test_another_mapping_sees_the_same_rows(slab: Slab) -> None:
    other = Slab.attach(os.dup(slab.fd), Layout(slab.layout.spec, 8))
    slab.input(0)[3] = 7.0
    slab.set_dims("input", 2, 3, (17, 3))
    slab.put_bytes("input", 1, 3, b"\x02\0\0\0hi")
    slab.generation[3] = 5
    slab.request[3] = (1 << 63) + 9
    assert (other.input(0)[3] == 7.0).all()
    assert other.dims("input", 2, 3) == (17, 3)
    assert other.get_bytes("input", 1, 3) == b"\x02\0\0\0hi"
    assert int(other.generation[3]) == 5
    assert int(other.request[3]) == (1 << 63) + 9
    assert other.dims("input", 0, 3) == (1, 28, 28)
    other.close()


def test_regions_do_not_overlap(slab: Slab) -> None:
    for index in range(4):
        slab.input(index)[...] = 0
    slab.output(0)[...] = 0
    slab.input(0)[...] = 1
    slab.generation[...] = 1
    slab.request[...] = 1
    for index in (1, 2, 3):
        assert not slab.input(index).any()
    assert not slab.output(0).any()
    assert slab.length("input", 1, 0) == 0


def test_dims_and_lengths_are_bounded(slab: Slab) -> None:
    for dims in ((101, 3), (5, 4), (5,), (-1, 3)):
        with pytest.raises(ValueError, match="wave"):
            slab.set_dims("input", 2, 0, dims)
    with pytest.raises(ValueError, match="image"):
        slab.set_dims("input", 0, 0, (1, 28, 27))
    with pytest.raises(ValueError, match="text"):
        slab.put_bytes("input", 1, 0, bytes(65))
    with pytest.raises(ValueError, match="image"):
        slab.set_length("input", 0, 0, 3)


def test_what_a_peer_wrote_is_not_believed(slab: Slab) -> None:
    slab._words[0, :] = 0xFFFFFFFF
    with pytest.raises(ValueError, match="wave"):
        slab.dims("input", 2, 0)
    with pytest.raises(ValueError, match="text"):
        slab.get_bytes("input", 1, 0)


def test_attach_refuses_another_layout(slab: Slab) -> None:
    with pytest.raises(WorkerError, match="bytes instead"):
        Slab.attach(slab.fd, Layout(family(IMAGE), 8))
    same_size = TensorSpec(name="image", datatype="INT32", shape=(1, 28, 28))
    small = Slab.create(Layout(family(IMAGE), 8))
    with pytest.raises(WorkerError, match="does not match"):
        Slab.attach(small.fd, Layout(family(same_size), 8))
    small._map[0:8] = b"whatever"
    with pytest.raises(WorkerError, match="magic b'whatever'"):
        Slab.attach(small.fd, Layout(family(IMAGE), 8))
    small.close()


def test_the_memory_is_sealed(slab: Slab) -> None:
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(slab.fd, 4096)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(slab.fd, slab.layout.bytes + 4096)
    assert not os.get_inheritable(slab.fd)
    loose = os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, 4096)
    with pytest.raises(WorkerError, match="not sealed"):
        map_shared(loose, 4096)
    assert fcntl.fcntl(slab.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
    os.close(loose)


def test_close_releases_the_descriptors() -> None:
    before = len(os.listdir("/proc/self/fd"))
    slab = Slab.create(Layout(family(IMAGE), 4))
    view = slab.input(0)
    slab.close()
    slab.close()
    view[0] = 1.0
    del view, slab
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (TensorSpec(name="t", datatype="FP31", shape=(1,)), "unknown datatype"),
        (TensorSpec(name="t", datatype="BYTES", shape=(1,)), "max_bytes"),
        (TensorSpec(name="t", datatype="FP32", shape=(-1,)), "max_shape"),
        (TensorSpec(name="t", datatype="FP32", shape=(0,)), "at least 1"),
        (TensorSpec(name="t", datatype="FP32", shape=(2,), max_shape=(3,)), "fixed axis"),
        (TensorSpec(name="t", datatype="FP32", shape=(1,) * 9), "8 axes"),
        (TensorSpec(name="t", datatype="FP64", shape=(1 << 30, 1 << 30)), "too large"),
    ],
)
def test_unusable_tensors_are_refused(tensor: TensorSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Layout(family(tensor), 4)


def test_slot_counts_are_bounded() -> None:
    for slots in (0, -1, 1 << 25):
        with pytest.raises(ConfigError, match="slots"):
            Layout(family(IMAGE), slots)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(set(DTYPES) - {"BYTES"})), st.lists(st.integers(1, 5), max_size=3)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 40),
    st.integers(1, 1 << 20),
)
def test_layouts_hold_their_rows(tensors: list[tuple[str, list[int]]], slots: int, budget: int) -> None:
    spec = family(*(TensorSpec(name=f"t{i}", datatype=d, shape=tuple(s)) for i, (d, s) in enumerate(tensors)))
    layout = Layout(spec, slots)
    ends = 4096 + slots * layout.words * 4
    for region in (*layout.inputs, *layout.outputs):
        assert region.offset >= ends
        assert region.offset % 64 == 0
        ends = region.offset + slots * region.row_bytes
    assert ends <= layout.bytes
    fitting = Layout.fitting(spec, budget)
    assert fitting.slots == 1 or fitting.bytes <= max(budget + 4096, 0)
