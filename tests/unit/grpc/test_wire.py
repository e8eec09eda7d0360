"""Messages put together: what protobuf reads is the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("grpc", reason="the extra grpc is not installed")

from clover.grpc import wire
from clover.grpc.messages import ModelInferResponse


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
