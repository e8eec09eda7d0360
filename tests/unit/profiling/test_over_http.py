"""BASE over HTTP: which runs count, what is sent, and the client that sends it."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from clover._native.histogram import Histogram
from clover.profiling import load_client, over_http
from clover.profiling.over_http import (
    HttpMeasurement,
    HttpRun,
    agreeing,
    brought_to,
    figures_of,
    front_of,
    load_of,
    work_of,
)
from clover.profiling.rows import SampleRows
from clover.types import FamilySpec, TensorSpec, VariantSpec


def run(p95_ms: float, *, load: float = 0.6, front_ms: float = 0.0, work_ms: float = 0.0) -> HttpRun:
    return HttpRun(p95_ms, front_ms, work_ms, load)


# --- which runs count ---------------------------------------------------------------------------------------------


def test_two_runs_that_agree_count_with_their_mean() -> None:
    found = figures_of([run(40.0), run(12.0), run(12.4)])
    assert found.p95_ms == pytest.approx(12.2)
    assert found.notes == ()


def test_of_several_that_agree_the_least_count() -> None:
    assert figures_of([run(40.0), run(41.0), run(12.0), run(90.0), run(13.0)]).p95_ms == pytest.approx(12.5)


def test_without_agreement_the_least_counts_and_the_profile_says_so() -> None:
    found = figures_of([run(588.0), run(12.5), run(19.0), run(90.0), run(40.0)])
    assert found.p95_ms == 12.5
    assert "no two measurements" in found.notes[0]
    assert "40 from 60% load" in found.notes[0]
    assert "the least, 12.5 ms, counts; a start in an hour or later measures again" in found.notes[0]
    busy = [run(598.0, load=1.37), run(29.4, load=0.28), run(378.0, load=1.26), run(57.2, load=0.3)]
    assert figures_of(busy).p95_ms == 29.4


def test_runs_under_too_much_load_do_not_count() -> None:
    overloaded = [run(400.0, load=1.3), run(410.0, load=1.2)]
    assert agreeing(overloaded) is None
    assert agreeing([*overloaded, run(20.0), run(21.0)]) is not None
    assert figures_of(overloaded).p95_ms == 400.0, "the least"


def test_the_front_end_is_what_the_client_sees_beyond_the_router_in_the_quietest_run() -> None:
    runs = [run(12.0, front_ms=5.0), run(12.1, front_ms=0.8), run(9.0, front_ms=0.1, load=1.2)]
    assert figures_of(runs).front_ms == 0.8
    router = Histogram()
    for ms in range(1, 101):
        router.record(ms * 1_000_000)
    seen_ms = np.arange(1.0, 101.0)
    assert front_of(seen_ms + 2.0, router) == pytest.approx(2.0, abs=1.0)
    assert front_of(np.minimum(seen_ms + 2.0, 90.0), router) == pytest.approx(2.0, abs=1.0), "the median's part"
    assert front_of(seen_ms - 9.0, router) == 0.0


def seen(waits_ms: NDArray[np.float64]) -> tuple[NDArray[np.float64], Histogram]:
    """What a client and the router see of requests of 4 ms, which take .3 ms of work on top and wait so long."""
    router = Histogram()
    for _ in waits_ms:
        router.record(4_000_000)
    return 4.3 + waits_ms, router


def test_of_what_the_front_end_adds_that_is_work_which_is_no_waiting_for_its_loop() -> None:
    waits_ms = np.linspace(0.0, 0.6, 1000)
    ms, router = seen(waits_ms)
    front_ms, lag_ms = front_of(ms, router), float(np.quantile(waits_ms, 0.95) - np.quantile(waits_ms, 0.05))
    assert front_ms == pytest.approx(0.87, abs=0.05)
    assert work_of(ms, router, front_ms, lag_ms) == pytest.approx(0.33, abs=0.05)
    assert work_of(ms, router, front_ms, 5.0) == pytest.approx(0.33, abs=0.05), "at least that of the fastest"
    assert work_of(ms - 1.0, router, 0.0, 0.0) == 0.0


def test_on_a_busy_machine_work_is_three_times_that_of_the_fastest_requests_at_most() -> None:
    waits_ms = np.linspace(0.0, 40.0, 1000) - 2.0  # the fastest tenth is hindered by nobody
    ms, router = seen(np.maximum(waits_ms, 0.0))
    front_ms = front_of(ms, router)
    assert front_ms > 30.0
    assert work_of(ms, router, front_ms, lag_ms=10.0) == pytest.approx(0.9, abs=0.15)
    runs = [run(12.0, front_ms=5.0, work_ms=0.9), run(12.1, front_ms=0.8, work_ms=0.4)]
    assert figures_of(runs).work_ms == 0.4, "the least, as of all that the front end adds"
    assert figures_of([run(12.0, work_ms=0.9), run(40.0, work_ms=0.5), run(90.0, work_ms=0.7)]).work_ms == 0.5


def test_latencies_that_grow_tell_how_much_more_comes_than_is_served() -> None:
    arrivals_s = np.linspace(0.0, 2.0, 1000)
    noise_ms = np.random.default_rng(0).exponential(10.0, 1000)
    assert load_of(noise_ms, 2.0, busy=0.6) == 0.6
    for load in (1.25, 2.0):
        behind_ms = arrivals_s * (1.0 - 1.0 / load) * 1e3
        assert load_of(noise_ms + behind_ms, 2.0, busy=0.6) == pytest.approx(load, rel=0.05)
    stalled = noise_ms.copy()
    stalled[920:980] += 400.0
    assert load_of(stalled, 2.0, busy=0.6) == 0.6, "one stall is no queue"
    assert load_of(noise_ms[:2], 2.0, busy=0.6) == 0.6, "two answers are no queue either"


def test_the_p95_of_another_load_is_brought_to_the_one_wanted() -> None:
    assert brought_to(0.6, 20.0, 0.6) == 20.0
    assert brought_to(0.6, 20.0, 0.7) == pytest.approx(15.0)
    assert brought_to(0.6, 20.0, 0.5) == pytest.approx(25.0)
    assert brought_to(0.6, 20.0, 0.1) == pytest.approx(30.0), "hardly a queue: from 40 %"
    assert brought_to(0.6, 900.0, 1.3) == 900.0, "a queue that only grows"


# --- what is sent -------------------------------------------------------------------------------------------------


def family(*inputs: TensorSpec) -> FamilySpec:
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(1,)),)
    return FamilySpec(name="f", inputs=inputs, outputs=outputs, variants=(VariantSpec(name="v", loader="m:f"),))


def bodies(spec: FamilySpec, *arrays: Any, rows: int) -> list[tuple[bytes, int]]:
    measurement: Any = HttpMeasurement
    made = measurement(None, {}, Path(), SampleRows(spec, arrays, np.empty(0)), 1.0)
    found: list[tuple[bytes, int]] = made._requests(spec, rows)
    return found


def test_small_rows_are_sent_as_json_and_others_as_binary_tensors() -> None:
    small = family(TensorSpec(name="x", datatype="FP32", shape=(3,)))
    body, json_length = bodies(small, np.arange(12, dtype=np.float32).reshape(4, 3), rows=2)[0]
    assert json_length == -1
    tensor = orjson.loads(body)["inputs"][0]
    assert (tensor["name"], tensor["shape"], len(tensor["data"])) == ("x", [2, 3], 6)

    large = family(TensorSpec(name="x", datatype="FP32", shape=(20_000,)))
    body, json_length = bodies(large, np.ones((2, 20_000), np.float32), rows=1)[0]
    assert orjson.loads(body[:json_length])["inputs"][0]["parameters"] == {"binary_data_size": 80_000}
    assert len(body) == json_length + 80_000

    words = family(TensorSpec(name="x", datatype="BYTES", shape=(1,), max_bytes=16))
    body, json_length = bodies(words, np.array([[b"ab"], [b"c"]], object), rows=2)[0]
    assert body[json_length:] in (b"\2\0\0\0ab\1\0\0\0c", b"\1\0\0\0c\2\0\0\0ab")


# --- the client ---------------------------------------------------------------------------------------------------


@contextmanager
def server(answer: bytes) -> Iterator[tuple[str, int]]:
    """Answer every request of two bytes ("ab") with `answer`, on each connection, in threads."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def serve(connection: socket.socket) -> None:
        with connection:
            while connection.recv(2):
                connection.sendall(answer)
                if b"content-length" not in answer:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()


def played(answer: bytes) -> list[float]:
    with server(answer) as (host, port):
        command = [sys.executable, "-I", "-S", str(over_http._CLIENT), host, str(port), "500", "0.2", "1", "5"]
        request = (2).to_bytes(4, "little") + b"ab"
        out = subprocess.run(command, input=request, capture_output=True, check=True).stdout
    return [float(ms) for ms in np.frombuffer(out)]


def test_the_client_times_every_request_of_a_poisson_stream() -> None:
    ms = played(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    assert 60 < len(ms) < 150, "500 a second for a fifth of one"
    assert all(one > 0.0 for one in ms)
    assert len(played(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")) == len(ms), "the same arrivals each time"


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_refused_requests_and_broken_answers_are_not_timed(answer: bytes) -> None:
    assert all(map(math.isnan, played(answer)))


def test_the_client_needs_nothing_but_the_standard_library() -> None:
    source = Path(load_client.__file__).read_text(encoding="utf-8")
    assert "clover" not in source.partition('"""\n\n')[2]
