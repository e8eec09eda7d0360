from __future__ import annotations

import fcntl
import json
import os
import socket
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.errors import WorkerError
from clover.types import FamilySpec, TensorSpec, VariantSpec
from clover.worker import frames

FAMILY = FamilySpec(
    name="f",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(2,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(3,), labels=("a", "b", "c")),),
    variants=(VariantSpec(name="v", loader="m:f", parameters={"n": 1}), VariantSpec(name="w", loader="m:g")),
    description="long",
)
ORDER = frames.WorkerOrder(family=FAMILY, variant="v", backend="eager", cores=(0,), max_batch=4)


@pytest.fixture
def pair():
    a, b = frames.socket_pair()
    yield a, b
    a.close()
    b.close()


def open_fds():
    return len(os.listdir("/proc/self/fd"))


def test_records_round_trip(pair):
    for record in (
        frames.Hello(pid=3, threads=1, import_ms=12.5),
        frames.Spawn(token=9, slots=4, order=ORDER),
        frames.Exited(pid=3, code=-9),
        frames.WorkerState(state="failed", text="no"),
        frames.WorkerState(
            state="ready",
            resident=(frames.HeldMemory(variant="v", weights_bytes=3, peak_bytes=4),),
            context_bytes=5,
            left_out={"w": "too large"},
        ),
        frames.Exit(),
        frames.EndAsked(),
    ):
        frames.send(pair[0], record)
        kind, payload, fds = frames.receive(pair[1])
        assert kind == frames._KINDS[type(record)]
        assert frames.decode(payload, type(record)) == record
        assert fds == ()


def test_an_order_keeps_the_variants_that_its_worker_is_to_hold_as_far_as_a_frame_takes_them():
    assert [one.name for one in ORDER.trimmed().family.variants] == ["v"]
    also = (frames.Resident(variant="w", backend="eager"),)
    both = msgspec.structs.replace(ORDER, also=also)
    assert [one.name for one in both.trimmed().family.variants] == ["v", "w"]
    assert both.fitting() is both
    table = tuple(float(ms) for ms in range(20_000))
    wide = frames.Resident(variant="w", backend="eager", pace_ms=table)
    assert msgspec.structs.replace(ORDER, also=(wide, *also)).fitting().also == ()
    assert msgspec.structs.replace(ORDER, also=(*also, wide)).fitting() == both
    frames.pack(frames.Spawn(token=1, slots=4, order=both.fitting().trimmed()))


def test_descriptors_come_along_closed_on_exec(pair):
    r, w = os.pipe()
    frames.send(pair[0], frames.Stop(), (r, w))
    _, _, fds = frames.receive(pair[1], 2)
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
    os.write(fds[1], b"x")
    assert os.read(r, 1) == b"x"
    frames.close_all([r, w, *fds])


def test_cut_descriptors_are_an_error_and_none_stays_open(pair):
    r, w = os.pipe()
    before = open_fds()
    for most in (0, 1, 2):
        frames.send(pair[0], frames.Stop(), (r, w, r, w))
        with pytest.raises(WorkerError, match="cut off"):
            frames.receive(pair[1], most)
    assert open_fds() == before
    frames.close_all([r, w])


def test_the_end_of_the_stream(pair):
    pair[0].close()
    assert frames.receive(pair[1]) is None


def test_nothing_to_read(pair):
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        frames.receive(pair[1])


def test_other_packets_are_refused(pair):
    good = frames.pack(frames.Stop())
    for bad, why in (
        (b"x", "too short"),
        (b"\0" * 20, "this version"),
        (good + b"!", "says its payload"),
        (good[:-1], "says its payload"),
        (struct.pack("<IHHI", frames._MAGIC, 1, 99, 0), "unknown frame kind"),
        (struct.pack("<IHHI", frames._MAGIC, 2, 1, 0), "this version"),
    ):
        pair[0].send(bad)
        with pytest.raises(WorkerError, match=why):
            frames.receive(pair[1])
    with pytest.raises(WorkerError, match="malformed Exited"):
        frames.decode(b'{"pid":1,"code":2,"more":3}', frames.Exited)


def test_a_packet_longer_than_the_buffer_is_cut_and_refused(pair):
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    pair[0].send(b"\0" * (frames.MAX_PAYLOAD_BYTES + 200))
    with pytest.raises(WorkerError, match="cut off"):
        frames.receive(pair[1])


def test_the_largest_payload_fits_a_socket(pair):
    text = "x" * (frames.MAX_PAYLOAD_BYTES - 200)
    frames.send(pair[0], frames.SpawnRefused(token=1, reason=text))
    assert frames.decode(frames.receive(pair[1])[1], frames.SpawnRefused).reason == text
    with pytest.raises(WorkerError, match="shorten"):
        frames.pack(frames.SpawnRefused(token=1, reason=text + "y" * 200))


@given(st.binary(max_size=64))
def test_no_bytes_break_the_decoder(data):
    try:
        kind, payload = frames.unpack(data)
    except WorkerError:
        return
    assert isinstance(kind, frames.Kind)
    assert len(payload) == len(data) - 12


def test_trimmed_orders_hold_one_variant_and_no_labels():
    trimmed = ORDER.trimmed()
    assert [v.name for v in trimmed.family.variants] == ["v"]
    assert trimmed.family.outputs[0].labels == ()
    assert trimmed.family.description == ""
    assert trimmed.family.digest == FAMILY.digest


@pytest.mark.parametrize(
    "state",
    [
        {"batches": 10**400},
        {"overruns": -1},
        {"load_ms": 1e300},
        {"warm_ms": -0.1},
        {"text": 7},
    ],
)
def test_figures_that_no_worker_has_are_refused(state):
    with pytest.raises(WorkerError, match="malformed WorkerState"):
        frames.decode(json.dumps({"state": "ready", **state}).encode(), frames.WorkerState)
