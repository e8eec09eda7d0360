"""A worker that waits for its order."""

from __future__ import annotations

from collections.abc import Iterator
from socket import socket

import pytest

from clover.errors import WorkerError
from clover.types import FamilySpec, TensorSpec, VariantSpec
from clover.worker import frames, hot_spare
from clover.worker.loop import ParentGone

SPEC = FamilySpec(
    name="toy",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(1,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,)),),
    variants=(VariantSpec(name="small", loader="m:f"), VariantSpec(name="large", loader="m:f")),
    max_batch=4,
)
ORDER = frames.WorkerOrder(family=SPEC, variant="large", backend="eager", cores=(0,), max_batch=4)


@pytest.fixture
def ends() -> Iterator[tuple[socket, socket]]:
    ours, theirs = frames.socket_pair()
    with ours, theirs:
        yield ours, theirs


def test_it_says_what_it_is_and_returns_the_order(ends: tuple[socket, socket]) -> None:
    server, worker = ends
    frames.send(server, frames.Adopt(order=ORDER.trimmed()))
    assert hot_spare.stand_by(worker) == ORDER.trimmed()
    frame = frames.receive(server)
    assert frame is not None
    assert frames.decode(frame[1], frames.WorkerState).state == "spare"


def test_it_ends_when_asked_and_with_the_server(ends: tuple[socket, socket]) -> None:
    server, worker = ends
    frames.send(server, frames.Exit())
    assert hot_spare.stand_by(worker) is None
    frames.send(server, frames.Stop())
    with pytest.raises(WorkerError, match="was sent STOP"):
        hot_spare.stand_by(worker)
    server.close()
    with pytest.raises(ParentGone):
        hot_spare.stand_by(worker)


def test_its_own_order_names_no_variant_and_has_lanes_for_all() -> None:
    spare = ORDER.without_weights(lanes=2).trimmed()
    assert (spare.variant, spare.family.variants, spare.lanes) == ("", (), 2)
    assert ORDER.lanes == 1
    assert spare.cores == ORDER.cores
