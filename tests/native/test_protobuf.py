"""What a `ModelInferRequest` holds, counted before protobuf reads it: the twin, then the kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("grpc", reason="the extra grpc is not installed")

from google.protobuf.message import DecodeError

from clover._native import protobuf
from clover.grpc.messages import ModelInferRequest
from tests.reference import protobuf as reference
from tests.support.examples import examples

MOST = 1 << 18


def request(**others: Any) -> Any:
    return ModelInferRequest(model_name="m", **others)


def weight_of(kernels: SimpleNamespace, message: Any) -> int:
    """The least weight with which a message is taken, by bisection."""
    data, low, high = message.SerializeToString(), 0, MOST
    while low < high:
        middle = (low + high) // 2
        try:
            kernels.protobuf.cut(data, middle)
        except OverflowError:
            low = middle + 1
        else:
            high = middle
    return low


@settings(deadline=None)
@given(st.text(max_size=200), st.lists(st.binary(max_size=300), max_size=4), st.lists(st.text(max_size=5), max_size=3))
def test_what_is_cut_out_is_missing_and_nothing_else(
    kernels: SimpleNamespace, name: str, raws: list[bytes], inputs: list[str]
) -> None:
    asked = request(raw_input_contents=raws, id=name)
    asked.parameters["timeout"].int64_param = 5
    for one in inputs:
        asked.inputs.add(name=one, shape=[1, 2 << 40])
    rest, found = kernels.protobuf.cut(asked.SerializeToString(), MOST)
    assert [bytes(one) for one in found] == raws
    del asked.raw_input_contents[:]
    assert ModelInferRequest.FromString(rest) == asked


@settings(deadline=None, max_examples=examples(400))
@given(st.binary(max_size=40), st.integers(-1, 60))
@example(b"\x2a\x04\x2a\x02\x10\x01", 8)
@example(b"\x2a\x03\x0b\x0c\x0c", MOST)
@example(b"\x32\x02\x12\x7f", MOST)
def test_the_kernel_does_what_its_twin_does_and_refuses_what_protobuf_does(data: bytes, weight: int) -> None:
    found: list[tuple[Any, Any]] = []
    for cut in (reference.cut, protobuf.cut):
        try:
            rest, raws = cut(data, weight)
        except (ValueError, OverflowError) as error:
            found.append((type(error), str(error)))
        else:
            found.append((rest, [bytes(raw) for raw in raws]))
    assert found[0] == found[1]
    if isinstance(found[0][0], type):
        return  # some of what protobuf reads is refused: groups, which no client sends
    rest, raws = found[0]
    try:
        given = ModelInferRequest.FromString(rest)
    except DecodeError:
        return
    whole = ModelInferRequest.FromString(data)
    assert list(whole.raw_input_contents) == raws
    del whole.raw_input_contents[:]
    assert whole == given


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\x05ab", b"\x80" * 11, b"\x0b", b"\x3d\x00", b"\x39\x00", b"\x08"])
def test_a_message_that_ends_too_early_is_refused(kernels: SimpleNamespace, data: bytes) -> None:
    for message in (data, b"\x2a" + bytes([len(data)]) + data, b"\x32" + bytes([len(data)]) + data):
        with pytest.raises(ValueError):
            kernels.protobuf.cut(message, MOST)


def test_a_message_has_so_many_fields_at_most(kernels: SimpleNamespace) -> None:
    assert len(kernels.protobuf.cut(b"\x3a\x00" * 4096, MOST)[1]) == 4096
    with pytest.raises(OverflowError, match="more than 4096 fields"):
        kernels.protobuf.cut(b"\x3a\x00" * 4097, MOST)


@pytest.mark.parametrize("place", ["request", "input", "output"])
def test_a_message_has_so_many_parameters_at_most(kernels: SimpleNamespace, place: str) -> None:
    asked = request()
    holder = {"request": lambda: asked, "input": asked.inputs.add, "output": asked.outputs.add}[place]()
    for number in range(64):
        holder.parameters[f"p{number}"].int64_param = number
    kernels.protobuf.cut(asked.SerializeToString(), MOST)
    holder.parameters["one more"].bool_param = True
    with pytest.raises(OverflowError, match="more than 64 parameters"):
        kernels.protobuf.cut(asked.SerializeToString(), MOST)


CONTENTS = {
    **dict.fromkeys(("bool", "int", "int64", "uint", "uint64", "fp32", "fp64"), 1),
    "bytes": 3,
}
"""What an element weighs."""


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(CONTENTS)), st.integers(0, 9)), st.integers(0, 9))
def test_each_element_weighs(kernels: SimpleNamespace, counts: dict[str, int], axes: int) -> None:
    asked = request()
    bare = weight_of(kernels, asked)
    one = asked.inputs.add(shape=[300] * axes)
    one.contents.SetInParent()
    expected = bare + 3 + (3 + axes if axes else 0) + 3
    for kind, count in counts.items():
        values = [b"abc"] * count if kind == "bytes" else [1] * count
        getattr(one.contents, f"{kind}_contents").extend(values)
        expected += CONTENTS[kind] * count + (3 if count and kind != "bytes" else 0)
    assert weight_of(kernels, asked) == expected


def test_numbers_that_are_not_packed_weigh_as_fields(kernels: SimpleNamespace) -> None:
    contents = b"\x10\x01" * 10
    message = b"\x2a\x16\x2a\x14" + contents
    assert ModelInferRequest.FromString(message).inputs[0].contents.int_contents == [1] * 10
    kernels.protobuf.cut(message, 36)
    with pytest.raises(OverflowError, match="too many elements or fields"):
        kernels.protobuf.cut(message, 35)


