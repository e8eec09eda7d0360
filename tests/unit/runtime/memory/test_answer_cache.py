"""The cache of answers against a dictionary that forgets nothing but by the same two rules."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.runtime.memory.answer_cache import AnswerCache, KeptAnswer
from clover.runtime.memory.slab import Layout, Slab
from clover.types import FamilySpec, TensorSpec, VariantSpec
from tests.support.examples import examples

SPEC = FamilySpec(
    name="mixed",
    inputs=(
        TensorSpec(name="a", datatype="FP32", shape=(2,)),
        TensorSpec(name="b", datatype="INT16", shape=(-1, 2), max_shape=(3, 2)),
        TensorSpec(name="c", datatype="BYTES", shape=(1,), max_bytes=16),
    ),
    outputs=(
        TensorSpec(name="p", datatype="FP32", shape=(2,)),
        TensorSpec(name="q", datatype="INT16", shape=(-1,), max_shape=(3,)),
        TensorSpec(name="r", datatype="BYTES", shape=(-1,), max_shape=(2,), max_bytes=24),
    ),
    variants=(VariantSpec(name="small", loader="m:f"),),
)
SLOTS = 4


@pytest.fixture
def slab() -> Any:
    made = Slab.create(Layout(SPEC, SLOTS))
    os.close(made.fd)
    made.fd = -1
    yield made
    made.close()


def row(slab: Slab, slot: int, a: float = 1.0, b: tuple[int, ...] = (1, 2), c: bytes = b"x") -> None:
    slab.input(0)[slot] = (a, 0.0)
    slab.set_dims("input", 1, slot, (len(b) // 2, 2))
    slab.input(1)[slot, : len(b) // 2] = np.array(b, np.int16).reshape(-1, 2)
    slab.put_bytes("input", 2, slot, len(c).to_bytes(4, "little") + c)


def answered(slab: Slab, slot: int, value: int) -> None:
    slab.output(0)[slot] = (value, -value)
    slab.set_dims("output", 1, slot, (value % 4,))
    slab.output(1)[slot, : value % 4] = value
    slab.set_dims("output", 2, slot, (1,))
    slab.put_bytes("output", 2, slot, b"\1\0\0\0" + bytes([value]))


def read(slab: Slab, slot: int) -> tuple[Any, ...]:
    return (
        slab.output(0)[slot].tolist(),
        slab.output(1)[slot, : slab.dims("output", 1, slot)[0]].tolist(),
        slab.get_bytes("output", 2, slot),
    )


def cache(slab: Slab, most_bytes: int = 1 << 20, most_age_ns: int = 100) -> AnswerCache:
    return AnswerCache(slab, SPEC, most_bytes, most_age_ns, secret=b"k" * 32)


def test_everything_of_a_row_and_of_its_context_is_in_its_digest(slab: Slab) -> None:
    kept = cache(slab)
    seen = set()
    for number, changes in enumerate(
        (
            {},
            {"a": 2.0},
            {"a": -0.0},
            {"b": (1, 2, 3, 4)},
            {"b": ()},
            {"c": b""},
            {"c": b"xx"},
            {"c": b"x\0"},
        )
    ):
        row(slab, 0, **changes)  # type: ignore[arg-type]
        seen.add(kept.digests([0], b"")[0])
        assert len(seen) == number + 1
    row(slab, 0)
    row(slab, 3)
    assert kept.digests([0], b"") == kept.digests([3], b"")
    assert kept.digests([0], b"other") != kept.digests([0], b"")
    assert AnswerCache(slab, SPEC, 1, 1).digests([0], b"") != kept.digests([0], b"")


def test_outputs_of_every_kind_come_back(slab: Slab) -> None:
    kept = cache(slab)
    for value in (3, 4, 5):
        answered(slab, 0, value)
        before = read(slab, 0)
        answer = KeptAnswer(kept.outputs(0), 0, 90.0, "", 0)
        answered(slab, 2, 9)
        kept.fill([2], [answer])
        assert read(slab, 2) == before


def test_shapes_that_a_worker_damaged_are_not_read(slab: Slab) -> None:
    kept = cache(slab)
    with pytest.raises(ValueError):
        slab.set_dims("output", 1, 0, (9,))
    answered(slab, 0, 3)
    assert kept.outputs(0)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["keep", "find"]), st.integers(0, 9), st.integers(0, 60), st.integers(0, 5)),
        max_size=80,
    )
)
def test_it_agrees_with_a_dictionary(steps: list[tuple[str, int, int, int]]) -> None:
    slab = Slab.create(Layout(SPEC, SLOTS))
    os.close(slab.fd)
    slab.fd = -1
    kept = cache(slab, most_bytes=3000, most_age_ns=100)
    twin: dict[bytes, KeptAnswer] = {}  # in the order of use
    now = hits = misses = 0
    for what, key, passed, value in steps:
        now += passed
        digest = bytes([key]) * 32
        if what == "keep":
            answer = KeptAnswer((((), bytes(100 * value)),), value, 90.0, "", now)
            kept.keep(digest, answer)
            twin.pop(digest, None)
            twin[digest] = answer
            while sum(one.size for one in twin.values()) > 3000:
                del twin[next(iter(twin))]
        else:
            found = kept.find([digest], now)
            expected = twin.get(digest)
            if expected is not None and now - expected.born_ns > 100:
                expected = None
                del twin[digest]
            if expected is None:
                misses += 1
                assert found is None
            else:
                hits += 1
                assert found == [expected]
                twin[digest] = twin.pop(digest)
        assert len(kept) == len(twin)
        assert kept.bytes == sum(one.size for one in twin.values()) <= 3000
        assert (kept.hits, kept.misses) == (hits, misses)
    kept.clear()
    assert (len(kept), kept.bytes) == (0, 0)
    slab.close()


def test_a_request_is_found_as_a_whole_or_not(slab: Slab) -> None:
    kept = cache(slab)
    answer = KeptAnswer((), 0, 90.0, "", 0)
    kept.keep(b"a", answer)
    assert kept.find([b"a", b"b"], 0) is None
    kept.keep(b"b", answer)
    assert kept.find([b"a", b"b"], 0) == [answer, answer]
    assert (kept.hits, kept.misses) == (2, 2)


def test_what_is_larger_than_the_cache_is_not_kept(slab: Slab) -> None:
    kept = cache(slab, most_bytes=1000)
    kept.keep(b"a", KeptAnswer((((), bytes(10)),), 0, 90.0, "", 0))
    kept.keep(b"b", KeptAnswer((((), bytes(1000)),), 0, 90.0, "", 0))
    assert (len(kept), kept.evicted) == (1, 0)


def test_one_tenants_flood_leaves_the_share_of_another(slab: Slab) -> None:
    kept = cache(slab, most_bytes=100 * 612)
    answer = KeptAnswer((((), bytes(100)),), 0, 90.0, "", 0)
    for number in range(100):
        kept.keep(b"a%d" % number, answer, "acme")
    assert len(kept) == 100, "who is alone has all of the room"
    for number in range(40):
        kept.keep(b"b%d" % number, answer, "boss")
    for number in range(100, 1000):
        kept.keep(b"a%d" % number, answer, "acme")
    assert kept.find([b"b%d" % number for number in range(40)], 0, "boss")
    assert kept.find([b"a%d" % number for number in range(940, 1000)], 0, "acme"), "the rest is there for others"
    assert (len(kept), kept.evicted) == (100, 940)
    assert kept.find([b"b0"], 0, "acme") is None


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 5)), max_size=120))
def test_no_tenant_loses_what_is_within_its_share(steps: list[tuple[str, int, int]]) -> None:
    slab = Slab.create(Layout(SPEC, SLOTS))
    os.close(slab.fd)
    slab.fd = -1
    most = 9000
    kept = cache(slab, most_bytes=most)
    given: dict[str, dict[bytes, KeptAnswer]] = {"a": {}, "b": {}, "c": {}}
    for owner, key, value in steps:
        answer = KeptAnswer((((), bytes(100 * value)),), value, 90.0, "", 0)
        digest = bytes([key])
        kept.keep(digest, answer, owner)
        given[owner].pop(digest, None)
        given[owner][digest] = answer
        assert kept.bytes <= most
        for name, answers in given.items():
            newest = 0
            for known in reversed(answers):
                newest += answers[known].size
                if newest > most / 3:
                    break
                assert known in kept._shares[name].answers
    held = [answer.size for share in kept._shares.values() for answer in share.answers.values()]
    assert (sum(held), len(held)) == (kept.bytes, len(kept))
    slab.close()
