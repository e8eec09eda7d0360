"""Messages cut up and put together: what protobuf reads is the same, and what it refuses is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("grpc", reason="the extra grpc is not installed")

from google.protobuf.message import DecodeError

from clover.grpc import wire
from clover.grpc.messages import ModelInferRequest, ModelInferResponse
from tests.support.examples import examples

RAW = 7


@settings(deadline=None)
@given(st.text(max_size=200), st.lists(st.binary(max_size=300), max_size=4), st.lists(st.text(max_size=5), max_size=3))
def test_what_is_cut_out_is_missing_and_nothing_else(name: str, raws: list[bytes], inputs: list[str]) -> None:
    given = ModelInferRequest(model_name=name, raw_input_contents=raws, id="7")
    given.parameters["timeout"].int64_param = 5
    for one in inputs:
        given.inputs.add(name=one, shape=[1, 2 << 40])
    rest, found = wire.cut(given.SerializeToString(), RAW)
    assert [bytes(one) for one in found] == raws
    del given.raw_input_contents[:]
    assert ModelInferRequest.FromString(rest) == given


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_fields_of_bytes_follow_the_others(raws: list[bytes]) -> None:
    rest = ModelInferResponse(model_name="m").SerializeToString()
    answer = ModelInferResponse.FromString(wire.with_fields(rest, 6, raws))
    assert answer.model_name == "m"
    assert list(answer.raw_output_contents) == raws


def test_arrays_are_fields_as_they_lie() -> None:
    array = np.arange(300, dtype=np.int32).reshape(100, 3)
    answer = ModelInferResponse.FromString(wire.with_fields(b"", 6, [array]))
    assert answer.raw_output_contents[0] == array.tobytes()


@settings(deadline=None, max_examples=examples(400))
@given(st.binary(max_size=40))
def test_protobuf_and_we_agree_on_what_is_malformed(data: bytes) -> None:
    try:
        rest, raws = wire.cut(data, RAW)
        given = ModelInferRequest.FromString(rest)
    except (ValueError, DecodeError):
        return  # some of what protobuf reads is refused: groups, which no client sends
    whole = ModelInferRequest.FromString(data)
    assert list(whole.raw_input_contents) == [bytes(one) for one in raws]
    del whole.raw_input_contents[:]
    assert whole == given


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\x05ab", b"\x80" * 11, b"\x0b", b"\x3d\x00", b"\x39\x00", b"\x08"])
def test_a_message_that_ends_too_early_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        wire.cut(data, RAW)


def test_a_message_has_so_many_fields_at_most() -> None:
    assert len(wire.cut(b"\x3a\x00" * 4096, RAW)[1]) == 4096
    with pytest.raises(ValueError, match="more than 4096 fields"):
        wire.cut(b"\x3a\x00" * 4097, RAW)
