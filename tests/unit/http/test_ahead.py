"""Bodies that are received straight into the slots of their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.config import LimitsConfig
from clover.errors import Overloaded, Unavailable
from clover.runtime.memory.rows import FixedRows
from clover.types import FamilySpec, TensorSpec
from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_body, echo_family, family, request, tensor
from tests.support.router_fixture import MS, SECOND, House
from tests.support.router_fixture import family as toy

INFER = "/v2/models/echo/infer"
ROW = np.array([[1.0, 2.0, 3.5, -4.0]], np.float32)


def binary(
    rows: np.ndarray[Any, Any] = ROW, *fields: str, datatype: str = "FP32", path: str = INFER, **document: Any
) -> bytes:
    """A whole request whose tensor travels as bytes; so does its answer."""
    raw = rows.tobytes()
    one = {"name": "IN", "shape": list(rows.shape), "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"inputs": [one], "parameters": {"binary_data_output": True}, **document})
    return request("POST", path, head + raw, [f"Inference-Header-Content-Length: {len(head)}", *fields])


def serving(spec: FamilySpec | None = None, *, roomy: bool = True, held: bool = False) -> tuple[Driver, FakeModel]:
    model = FakeModel(spec or echo_family(), held=held)
    model.roomy = roomy
    return Driver(FakeView(model), limits=LimitsConfig()), model


def begun(d: Driver, model: FakeModel, whole: bytes, *, left: int = 5) -> Any:
    """All but the last bytes of a request, which then lies in slots; its ticket."""
    d.feed(whole[:-left])
    assert model.open_tickets == 1
    ticket = model.tickets[-1]
    assert ticket.ahead
    return ticket


def test_the_rest_of_a_tensor_is_read_into_its_slots() -> None:
    d, model = serving()
    whole = binary(id="a")
    ticket = begun(d, model, whole)
    assert d.take() == []
    view = d.connection.get_buffer(-1)
    assert len(view) == 5, "no more than is due"
    assert ticket.inputs[0].reshape(-1).view(np.uint8)[:11].tobytes() == ROW.tobytes()[:11]
    (answer,) = d.send(whole[-5:])
    assert answer.status == 200
    assert answer.body.endswith(ROW.tobytes())
    assert not ticket.ahead
    assert model.open_tickets == 0
    assert d.send(binary(id="b"))[0].status == 200, "and the connection goes on"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 300), max_size=12),
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4),
    st.booleans(),
)
def test_however_it_comes_the_answers_are_the_same(cuts: list[int], names: list[str], roomy: bool) -> None:
    rows = [np.full((1, 4), ord(name), np.float32) for name in names]
    stream = b"".join(binary(row, id=name) for row, name in zip(rows, names, strict=True))
    expected = serving(roomy=False)[0].send(stream)
    d, model = serving(roomy=roomy)
    got, at = [], 0
    for size in [*cuts, len(stream)]:
        got += d.send(stream[at : at + size])
        at += size
    assert [(one.status, one.body) for one in got] == [(one.status, one.body) for one in expected]
    assert [one.status for one in got] == [200] * len(names)
    assert model.open_tickets == 0


@pytest.mark.parametrize("roomy", [False, True])
@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": []},
        {"inputs": [{"name": "OTHER", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]},
        {"inputs": [{"name": "IN", "shape": [1, 5], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]},
        {"inputs": [{"name": "IN", "shape": [1, 4], "datatype": "FP64", "parameters": {"binary_data_size": 16}}]},
        {"inputs": [{"name": "IN", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 12}}]},
        {"inputs": [{"name": "IN", "shape": [2, 4], "datatype": "FP32", "parameters": {"binary_data_size": 32}}]},
        {"inputs": [{"name": "IN", "shape": [0, 4], "datatype": "FP32", "parameters": {"binary_data_size": 0}}]},
        {"parameters": {"timeout": -1}},
        {"outputs": [{"name": "NONE"}]},
    ],
)
def test_what_is_wrong_is_told_once_it_is_there(wrong: dict[str, Any], roomy: bool) -> None:
    d, model = serving(roomy=roomy)
    whole = binary(**wrong)
    d.feed(whole[:-5])
    assert model.open_tickets == 0
    (answer,) = d.send(whole[-5:])
    assert answer.status == 400
    plain = serving(roomy=False)[0].send(whole)
    assert answer.body == plain[0].body


def test_what_cannot_lie_in_slots_as_it_comes_goes_through_a_buffer() -> None:
    flags = family("echo", [tensor("IN", "BOOL", 4)], [tensor("OUT", "BOOL", 4)])
    variable = family("echo", [tensor("IN", "FP32", -1, max_shape=(8,))], [tensor("OUT", "FP32", -1, max_shape=(8,))])
    two = family(
        "echo", [tensor("IN", "FP32", 4), tensor("TOO", "FP32", 1)], [tensor("OUT", "FP32", 4), tensor("X", "FP32", 1)]
    )
    for spec, whole in (
        (flags, binary(np.array([[1, 0, 2, 255]], np.uint8), datatype="BOOL")),
        (variable, binary()),
        (two, binary()),
    ):
        d, model = serving(spec)
        d.feed(whole[:-3])
        assert model.open_tickets == 0
        (answer,) = d.send(whole[-3:])
        assert answer.status == (400 if spec is two else 200)
    packed = binary(ROW, "Content-Encoding: gzip")
    d, model = serving()
    d.feed(packed[:-3])
    assert model.open_tickets == 0
    assert d.send(packed[-3:])[0].status == 400, "it is not what it says"


def test_a_family_that_takes_nothing_new_lends_nothing() -> None:
    d, model = serving()
    assert d.send(binary())[0].status == 200
    model.closed_reason = "the model is unloaded"
    model.refusal = Unavailable("the model is unloaded")
    d.feed(binary()[:-5])
    assert model.open_tickets == 0
    assert d.send(binary()[-5:])[0].status == 503


def test_rows_go_where_they_were_received_whatever_the_name_means_by_then() -> None:
    d, model = serving()
    ticket = begun(d, model, binary())
    other = FakeModel(echo_family())
    d.view.by_name["echo"] = other
    model.closed_reason = "the model is unloaded"
    head = d.connection.exchanges[0].head
    assert d.routes._endpoint(head, "echo").model is other
    (answer,) = d.send(binary()[-5:])
    assert answer.status == 200
    assert model.tickets == [ticket]
    assert not other.tickets


def test_a_client_that_goes_away_leaves_no_slot_behind() -> None:
    for end in ("lost", "eof"):
        d, model = serving()
        ticket = begun(d, model, binary())
        if end == "lost":
            d.connection.connection_lost(None)
        else:
            d.connection.eof_received()
        assert model.open_tickets == 0
        assert ticket.closed == 1
        late = d.connection.get_buffer(-1)
        late[:5] = b"later"
        d.connection.buffer_updated(5)
        assert b"later" not in ticket.inputs[0].tobytes(), "nobody writes into slots that are others'"


def test_a_body_that_never_comes_gives_its_slots_back() -> None:
    d, model = serving()
    ticket = begun(d, model, binary())
    for _ in range(int(2 * LimitsConfig().body_s) + 4):
        d.sweep(0.5)
    d.loop.settle()
    assert [one.status for one in d.take()] == [408]
    assert model.open_tickets == 0
    assert ticket.closed == 1
    d.feed(b"later")
    assert b"later" not in ticket.inputs[0].tobytes()


def test_a_client_that_is_slow_loses_its_slots_but_not_its_request() -> None:
    d, model = serving()
    ticket = begun(d, model, binary(id="slow"))
    for _ in range(4):
        d.sweep(0.5)
    assert model.open_tickets == 0
    assert ticket.closed == 1
    d.feed(binary(id="slow")[-5:-2])
    (answer,) = d.send(binary(id="slow")[-2:])
    assert answer.status == 200
    assert answer.body == serving(roomy=False)[0].send(binary(id="slow"))[0].body
    assert model.open_tickets == 0
    assert ticket.closed == 1


def test_a_client_that_sends_within_a_second_keeps_its_slots() -> None:
    d, model = serving()
    ticket = begun(d, model, binary())
    d.sweep(0.5), d.sweep(0.5)
    assert model.open_tickets == 1
    (answer,) = d.send(binary()[-5:])
    assert answer.status == 200
    assert model.tickets == [ticket]


def test_an_answer_that_ends_the_connection_ends_what_is_received_behind_it() -> None:
    d, model = serving(held=True)
    first = request("POST", INFER, orjson.dumps(echo_body(id="a")))
    d.feed(first)
    d.feed(binary(id="b")[:-5])
    assert model.open_tickets == 2
    ticket = model.tickets[-1]
    d.state.draining = True
    d.connection.exchanges[0].close = True
    model.run(0)
    d.loop.settle()
    assert [one.status for one in d.take()] == [200]
    assert model.open_tickets == 0
    assert ticket.closed == 1
    d.feed(b"later")
    assert b"later" not in ticket.inputs[0].tobytes()
    assert d.transport.closed


def test_a_refusal_of_rows_that_are_there_is_answered() -> None:
    d, model = serving()
    whole = binary()
    begun(d, model, whole)
    model.submit_refusal = Overloaded("the queue is full", retry_after_s=2.0)
    (answer,) = d.send(whole[-5:])
    assert answer.status == 429
    assert model.open_tickets == 0
    model.submit_refusal = None
    assert d.send(binary())[0].status == 200
    begun(d, model, whole)
    model.submit_refusal = RuntimeError("a fault")  # type: ignore[assignment]
    (answer,) = d.send(whole[-5:])
    assert answer.status == 500
    assert model.open_tickets == 0


# --- the router's side ------------------------------------------------------------------------------------------------


def test_no_more_than_half_of_the_slots_are_lent() -> None:
    house = House(slots=64)
    house.route(0)
    for _ in range(2):
        lent = []
        while (found := house.router.lend(1, 0)) is not None:
            lent.append(found[0])
        assert len(lent) == house.router.admission.lent == 32
        for ticket in lent[:4]:
            house.router.close(ticket)
            house.router.close(ticket)
        assert house.router.admission.lent == 28
        for ticket in lent[4:]:
            house.router.admit_lent(ticket)
            house.router.close(ticket)
        assert house.router.admission.lent == 0
        house.check_slots()
    assert house.router.lend(33, 0) is None
    assert house.router.lend(0, 0) is None


def test_nothing_is_lent_while_no_slot_is_free() -> None:
    house = House(slots=64)
    house.route(0)
    held = house.router.open(64)
    assert house.router.lend(1, 0) is None
    house.router.close(held)
    assert house.router.lend(1, 0) is not None


def test_rows_that_were_sent_ahead_are_admitted_like_others() -> None:
    house = House(slots=64, queue_rows=4)
    house.route(0)
    lent = []
    while (found := house.router.lend(1, 0)) is not None:
        lent.append(found[0])
    house.ask(4), house.ask(4), house.ask(3)
    house.router.admit_lent(lent[0])
    house.router.submit(lent[0], house.done.append)
    with pytest.raises(Overloaded):
        house.router.admit_lent(lent[1])
    house.router.closed_reason = "the model is unloaded"
    with pytest.raises(Unavailable, match="unloaded"):
        house.router.admit_lent(lent[2])
    for ticket in lent:
        house.router.close(ticket)
    assert house.router.admission.lent == 0


def test_what_is_written_is_what_a_worker_reads_and_counts_from_when_it_is_there() -> None:
    house = House(slots=16)
    (worker,) = house.route(0)
    found = house.router.lend(2, 0)
    assert found is not None
    ticket, view = found
    region = house.slab.input(0)
    rows = np.arange(region[0].size * 2).astype(region.dtype).reshape(2, *region.shape[1:])
    view[:] = rows.tobytes()
    house.loop.now_ns += 5 * SECOND  # a slow client
    house.router.admit_lent(ticket)
    house.router.submit(ticket, house.done.append)
    house.loop.turn()
    assert (region[ticket.slots] == rows).all()
    house.complete(worker)
    house.loop.turn()
    assert house.done == [ticket]
    assert ticket.done_ns - ticket.arrival_ns < SECOND, "the client's time is not ours"
    assert house.router.traffic.arrivals.per_s(house.loop.now_ns) == 2.0
    house.router.close(ticket)
    house.check_slots()


def test_slots_that_are_no_neighbours_are_not_lent() -> None:
    house = House(slots=16)
    house.route(0)
    (rows,) = FixedRows.from_tensors(house.slab, "input", house.spec.inputs)
    assert rows is not None
    assert rows.view([1, 3]) is None
    view = rows.view([1, 2])
    assert view is not None
    view[:] = np.arange(4, dtype=np.float32).tobytes()
    assert house.slab.input(0)[:4].tolist() == [[0, 0], [0, 1], [2, 3], [0, 0]]


def test_nothing_is_lent_while_nobody_serves() -> None:
    house = House(slots=16)
    assert house.router.lend(1, 0) is None
    house.route(0)
    assert house.router.lend(1, 0) is not None
    house.router.closed_reason = "it goes"
    assert house.router.lend(1, 0) is None


def test_rows_that_vary_in_shape_are_not_lent() -> None:
    house = House(toy(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,), max_shape=(2,)),)), slots=16)
    house.route(0)
    assert house.router.lend(1, 0) is None


def test_a_queue_that_is_full_says_so_before_a_request_is_read() -> None:
    house = House(slots=16, queue_rows=4)
    (worker,) = house.route(0)
    house.ask(4), house.ask(4)
    assert house.router.retry_in_s() == 0.0, "two batches are with the worker, and nothing waits"
    house.ask(3)
    assert house.router.retry_in_s() == 0.0
    house.ask(1)
    assert house.router.retry_in_s() == 1.0, "nothing was served yet that would tell how long it takes"
    assert house.router.retry_in_s() == 1.0
    assert house.router.traffic.codes == {429: 2}
    house.complete(worker)
    house.loop.turn()
    assert house.router.retry_in_s() == 0.0


def test_while_requests_are_refused_workers_make_room() -> None:
    """A loop that does nothing but refuse has no turn in which it could take what workers completed meanwhile."""
    house = House(slots=64, queue_rows=4)
    (worker,) = house.route(0)
    tickets = [house.ask() for _ in range(2)] + [house.ask(turn=False) for _ in range(4)]
    house.loop.turn()
    assert len(worker.ring.batches) == 2, "two batches of one row are with the worker, and four rows wait"
    assert house.router.retry_in_s() > 0.0
    worker.finish(house.loop.now_ns)
    assert house.router.retry_in_s() > 0.0, "it was looked at a moment ago"
    house.loop.now_ns += MS
    assert house.router.retry_in_s() == 0.0, "what waited is with the worker now"
    assert len(worker.ring.batches) == 2
    assert house.done == [], "nobody is answered in the middle of what somebody else is told"
    house.loop.turn()
    assert house.done == tickets[:1]
    house.check_slots()
    for _ in range(2):
        house.complete(worker)
    assert len(house.done) == 6
    assert {ticket.status for ticket in house.done} == {200}


def test_rows_that_find_no_room_have_workers_make_some() -> None:
    """Requests of many rows are refused while single ones still fit: not before they are read."""
    house = House(slots=64, queue_rows=6)
    (worker,) = house.route(0)
    for _ in range(3):
        house.ask(4)
    assert house.router.retry_in_s() == 0.0
    with pytest.raises(Overloaded):
        house.router.open(4)
    worker.finish(house.loop.now_ns)
    house.loop.now_ns += MS
    ticket = house.router.open(4)
    assert house.done == []
    house.router.close(ticket)
    house.loop.turn()
    assert len(house.done) == 1
    house.check_slots()


def test_a_queue_that_fills_within_a_turn_is_handed_out_before_anybody_is_refused() -> None:
    house = House(slots=64, queue_rows=8)
    (worker,) = house.route(0)
    for _ in range(8):
        house.ask(turn=False)
    assert worker.ring.batches == []
    assert house.router.retry_in_s() == 0.0
    assert [len(slots) for _, slots in worker.ring.batches] == [4, 4]


def test_workers_are_fed_where_no_slot_is_left() -> None:
    house = House(slots=8)
    (worker,) = house.route(0)
    for _ in range(2):
        house.ask()
    for _ in range(6):
        house.ask(turn=False)
    worker.finish(house.loop.now_ns)
    with pytest.raises(Overloaded, match="no room"):
        house.router.open(1)
    assert [len(slots) for _, slots in worker.ring.batches] == [1, 4]
    assert house.done == []
    house.loop.turn()
    house.check_slots()


def test_what_is_too_late_is_not_handed_out_to_make_room() -> None:
    house = House(slots=64, queue_rows=4)
    (worker,) = house.route(0)
    for _ in range(2):
        house.ask()
    late = [house.ask(turn=False, timeout_ns=MS) for _ in range(4)]
    assert house.router.retry_in_s() > 0.0
    worker.finish(house.loop.now_ns)
    house.loop.now_ns += 100 * MS
    assert house.router.retry_in_s() == 0.0
    assert len(worker.ring.batches) == 1
    house.loop.turn()
    assert [ticket.status for ticket in late] == [504] * 4
    house.check_slots()


def test_a_full_queue_that_nobody_serves_stays_full() -> None:
    house = House(slots=64, queue_rows=4)
    (worker,) = house.route(0)
    for _ in range(6):
        house.ask()
    for _ in range(5):
        house.loop.now_ns += MS
        assert house.router.retry_in_s() > 0.0
    assert len(worker.ring.batches) == 2
    house.check_slots()
