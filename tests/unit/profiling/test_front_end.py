"""What the front end adds to a latency: what is sent, the client that sends it, and what is made of its times."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from clover.errors import ProfileError
from clover.profiling import front_end
from clover.profiling.front_end import ANSWER_S, MOST_OVER_LEAST, added_ms, ask, bodies
from clover.profiling.rows import SampleRows
from clover.types import FamilySpec, TensorSpec, VariantSpec


def family(*inputs: TensorSpec, output: TensorSpec | None = None) -> FamilySpec:
    outputs = (output or TensorSpec(name="y", datatype="FP32", shape=(1,)),)
    return FamilySpec(name="f", inputs=inputs, outputs=outputs, variants=(VariantSpec(name="v", loader="m:f"),))


def rows_of(spec: FamilySpec, *arrays: Any) -> SampleRows:
    return SampleRows(spec, arrays, np.empty(0))


SMALL = rows_of(
    family(TensorSpec(name="x", datatype="FP32", shape=(3,))), np.arange(12, dtype=np.float32).reshape(4, 3)
)
LARGE = rows_of(family(TensorSpec(name="x", datatype="FP32", shape=(20_000,))), np.ones((2, 20_000), np.float32))
WORDS = rows_of(
    family(
        TensorSpec(name="x", datatype="BYTES", shape=(1,), max_bytes=16),
        output=TensorSpec(name="y", datatype="BYTES", shape=(-1,), max_shape=(9,), max_bytes=99),
    ),
    np.array([[b"ab"], [b"c"]], object),
)


# --- what is made of the times ----------------------------------------------------------------------------------------


def test_the_front_end_adds_what_the_median_request_takes_beyond_the_model() -> None:
    model_ns = np.linspace(2e6, 3e6, 101)
    assert added_ms(list(model_ns + 4e5), list(model_ns)) == pytest.approx(0.4)
    stalled = model_ns + 4e5
    stalled[40:80] += 9e6
    assert added_ms(list(stalled), list(model_ns)) == pytest.approx(0.4)
    assert added_ms([1_000], [2_000]) == 0.0


def test_on_a_busy_machine_it_is_three_times_what_the_fastest_requests_take_at_most() -> None:
    waits_ns = np.maximum(np.linspace(0.0, 40e6, 1000) - 4e6, 0.0)  # the fastest tenth is hindered by nobody
    assert added_ms(list(3e5 + waits_ns), [0] * 1000) == pytest.approx(MOST_OVER_LEAST * 0.3)


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_small_rows_are_sent_as_json_and_others_as_binary_tensors() -> None:
    body, json_length = bodies(SMALL)[0]
    assert json_length == -1
    tensor = orjson.loads(body)["inputs"][0]
    assert (tensor["name"], tensor["shape"], len(tensor["data"])) == ("x", [1, 3], 3)

    body, json_length = bodies(LARGE)[0]
    assert orjson.loads(body[:json_length])["inputs"][0]["parameters"] == {"binary_data_size": 80_000}
    assert len(body) == json_length + 80_000

    sent = {body[json_length:] for body, json_length in bodies(WORDS)}
    assert sent == {b"\2\0\0\0ab", b"\1\0\0\0c"}


@pytest.mark.parametrize("rows", [SMALL, LARGE, WORDS])
def test_the_production_front_end_answers_all_of_it(rows: SampleRows) -> None:
    run = asyncio.run(front_end.measure(rows, 5.0, seconds=0.1))
    assert 0.0 < run.ms < 100.0
    assert 0.0 < run.cpu_s <= run.seconds
    assert 0.1 <= run.seconds < 5.0
    assert 1 <= run.requests <= run.seconds / ANSWER_S


# --- the client -------------------------------------------------------------------------------------------------------


@contextmanager
def server(answer: bytes) -> Iterator[tuple[str, int]]:
    """Answer every request of two bytes ("ab") of one connection with `answer`, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(2):
                connection.sendall(answer)
                if b"content-length" not in answer:
                    return

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    try:
        yield listener.getsockname()
    finally:
        listener.close()
        serving.join()


def test_the_client_times_every_request() -> None:
    with server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") as address:
        took_ns = ask(address, [b"ab"], 0.2, 5.0)
    assert 1 <= len(took_ns) < 150, "200 a second for a fifth of one"
    assert all(ns > 0 for ns in took_ns)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n", "answered HTTP/1.1 429 Too Many Requests"),
        (b"HTTP/1.1 200 OK\r\n", "ended the connection"),
    ],
)
def test_refused_requests_and_broken_answers_are_not_timed(answer: bytes, why: str) -> None:
    with server(answer) as address, pytest.raises(ProfileError, match=why):
        ask(address, [b"ab"], 0.2, 5.0)
