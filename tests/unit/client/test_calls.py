"""The client's calls without I/O: what is sent, when it is sent again, what comes of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("httpx", reason="the client needs the extra `client`")

from clover.client.calls import Asking, Calls, Result
from clover.client.messages import Call, Reply, Retries, Send, ServerUnreachable, Wait, error_of
from clover.client.receipts import members_of, receipt_of
from clover.client.tensors import DTYPES, TensorInfo, pack, unpack
from clover.errors import (
    BadRequest,
    CloverError,
    DeadlineMissed,
    ModelFailed,
    NotFound,
    Overloaded,
    RequestError,
    Unavailable,
)

METADATA = {
    "name": "echo",
    "versions": ["1"],
    "inputs": [{"name": "IN", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "OUT", "datatype": "FP32", "shape": [-1, 2], "parameters": {"labels": ["a", "b"]}}],
}
RECEIPT = (
    'variant="small", accuracy=88.7, energy-j="0.001834211", carbon-mg="0.000255249", method=modelled, '
    "intensity=334.0;method=estimated;replayed, state=fresh, pue=1.5, "
    'provider="trace:\\"day\\"", zone="DE", path="small>xlarge", feedback="f-1"'
)


def answer(rows: Any = ((1.0, 2.0),), **fields: str) -> Reply:
    array = np.asarray(rows, np.float32)
    said = {"model_version": "1", "outputs": [{"name": "OUT", "datatype": "FP32", "shape": list(array.shape)}]}
    said["outputs"][0]["parameters"] = {"binary_data_size": array.nbytes}  # type: ignore[index]
    text = json.dumps(said).encode()
    headers = {"inference-header-content-length": str(len(text)), "clover-receipt": RECEIPT} | fields
    return Reply(200, headers, text + array.tobytes())


def failure(status: int, text: str = "no", **fields: str) -> Reply:
    return Reply(
        status, {name.replace("_", "-"): value for name, value in fields.items()}, json.dumps({"error": text}).encode()
    )


class Scene:
    """A clock, and replies for a call that is driven by hand."""

    def __init__(self, **retries: Any) -> None:
        self.now_s = 100.0
        self.calls = Calls(Retries(uniform=lambda low, high: low, **retries), {"a": "b"}, lambda: self.now_s)
        self.sent: list[Send] = []
        self.waits: list[float] = []

    def drive(self, call: Call[Any], *replies: Reply | float) -> Any:
        """Drive a call with these replies; a number lets so many seconds pass before the next one."""
        left = list(replies)
        sending: Reply | None = None
        try:
            while True:
                step = call.send(sending)
                sending = None
                if isinstance(step, Wait):
                    self.waits.append(step.seconds)
                    self.now_s += step.seconds
                    continue
                self.sent.append(step)
                while isinstance(left[0], float):
                    self.now_s += left.pop(0)  # type: ignore[operator]
                sending = left.pop(0)  # type: ignore[assignment]
        except StopIteration as end:
            assert not left
            return end.value

    def infer(self, *replies: Reply | float, timeout_s: float = 30.0, **asking: Any) -> Result:
        self.calls.models.pop("echo", None)
        said = Reply(200, {}, json.dumps(METADATA).encode())
        call = self.calls.infer("echo", [[1.0, 2.0]], Asking(timeout_s, **asking))
        found = self.drive(call, said, *replies)
        assert isinstance(found, Result)
        return found


def said_in(send: Send) -> tuple[dict[str, Any], bytes]:
    size = int(send.headers["inference-header-content-length"])
    return json.loads(send.body[:size]), send.body[size:]


def test_a_call_sends_arrays_in_binary_form_and_reads_them_back() -> None:
    scene = Scene()
    found = scene.infer(answer(((0.25, 0.75),)), min_accuracy=92.0, cascade=False, fresh=True)
    head, tail = said_in(scene.sent[1])
    assert scene.sent[1].path == "/v2/models/echo/infer"
    assert tail == np.array([1, 2], "<f4").tobytes()
    assert head["inputs"] == [
        {"name": "IN", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    ]
    assert head["parameters"] == {
        "binary_data_output": True,
        "timeout": 30_000_000,
        "clover_min_accuracy": 92.0,
        "clover_cascade": "off",
    }
    assert scene.sent[1].headers["cache-control"] == "no-cache"
    assert scene.sent[1].headers["a"] == "b"
    assert found["OUT"].tolist() == [[0.25, 0.75]]
    assert (found.label, found.labels("OUT"), found.version) == ("b", ["b"], "1")
    receipt = found.receipt
    assert receipt is not None
    assert (receipt.variant, receipt.accuracy, receipt.method) == ("small", 88.7, "modelled")
    assert receipt.energy_j == pytest.approx(1834211e-9)
    assert receipt.carbon_mg == pytest.approx(255249e-9)
    assert (receipt.path, receipt.feedback, receipt.cached) == ("small>xlarge", "f-1", False)
    assert receipt.members["provider"] == 'trace:"day"'
    assert receipt.intensity_method == "estimated"
    assert receipt.members["intensity"] == 334.0
    assert (receipt.members["energy-j"], receipt.members["carbon-mg"]) == (receipt.energy_j, receipt.carbon_mg)
    assert receipt.members["intensity-replayed"] is True


def test_a_full_receipt_is_asked_for() -> None:
    scene = Scene()
    scene.infer(answer(), full_receipt=True)
    head, _ = said_in(scene.sent[1])
    assert head["parameters"]["clover_receipt"] is True


def test_metadata_is_asked_for_once() -> None:
    scene = Scene()
    scene.infer(answer())
    scene.drive(scene.calls.infer("echo", np.ones((1, 2)), Asking(1.0)), answer())
    assert [send.method for send in scene.sent] == ["GET", "POST", "POST"]


def test_a_refused_call_comes_back_when_it_was_asked_to_by_the_same_id() -> None:
    scene = Scene()
    scene.infer(failure(429, retry_after="7"), failure(503, retry_after="2"), answer())
    assert scene.waits == [7.0, 2.0]
    ids = {send.headers["x-request-id"] for send in scene.sent[1:]}
    assert len(ids) == 1
    assert [said_in(send)[0]["parameters"]["timeout"] for send in scene.sent[1:]] == [
        30_000_000,
        23_000_000,
        21_000_000,
    ]


def test_calls_at_the_same_time_have_different_ids_and_later_ones_use_them_again() -> None:
    scene = Scene()
    scene.infer(answer())
    calls = [scene.calls.infer("echo", np.ones((1, 2)), Asking(1.0)) for _ in range(2)]
    ids = [next(call).headers["x-request-id"] for call in calls]  # type: ignore[union-attr]
    assert len(set(ids)) == 2
    for call in calls:
        with pytest.raises(StopIteration):
            call.send(answer())
    scene.drive(scene.calls.infer("echo", np.ones((1, 2)), Asking(1.0)), answer())
    assert scene.sent[-1].headers["x-request-id"] in ids


def test_an_idle_id_that_another_thread_took_meanwhile_is_replaced() -> None:
    class Taken(list[str]):
        def __bool__(self) -> bool:
            return True  # it was there when it was looked for

    scene = Scene()
    scene.infer(answer())
    scene.calls.idle_ids = Taken()
    scene.drive(scene.calls.infer("echo", np.ones((1, 2)), Asking(1.0)), answer())
    assert scene.sent[-1].headers["x-request-id"]


def test_a_version_that_was_not_there_before_is_described_anew() -> None:
    scene = Scene()
    scene.infer(answer())
    text, _, tail = answer().body.partition(b'"1"')
    newer = Reply(200, dict(answer().headers), text + b'"2"' + tail)
    assert scene.drive(scene.calls.infer("echo", np.ones((1, 2)), Asking(1.0)), newer).version == "2"
    said = Reply(200, {}, json.dumps(METADATA | {"versions": ["1", "2"]}).encode())
    scene.drive(scene.calls.infer("echo", np.ones((1, 2)), Asking(1.0)), said, newer)
    scene.drive(scene.calls.infer("echo", np.ones((1, 2)), Asking(1.0)), newer)
    assert [send.method for send in scene.sent[2:]] == ["POST", "GET", "POST", "POST"]


@pytest.mark.parametrize(
    ("reply", "raised"),
    [
        (failure(400), BadRequest),
        (failure(404), NotFound),
        (failure(500), ModelFailed),
        (failure(503), Unavailable),
        (failure(504), DeadlineMissed),
        (failure(401), RequestError),
        (Reply(0, error="slow", late=True), DeadlineMissed),
    ],
)
def test_what_would_come_again_is_raised_at_once(reply: Reply, raised: type[CloverError]) -> None:
    scene = Scene()
    with pytest.raises(raised):
        scene.infer(reply)
    assert not scene.waits


@pytest.mark.parametrize("reply", [Reply(0, error="reset"), failure(502), failure(429)])
def test_tries_are_bounded_and_their_pauses_double(reply: Reply) -> None:
    scene = Scene(most=3)
    with pytest.raises((ServerUnreachable, RequestError)):
        scene.infer(reply, reply, reply, reply)
    assert scene.waits == pytest.approx([0.1, 0.2, 0.4])


def test_a_pause_that_would_end_past_the_deadline_is_not_begun() -> None:
    scene = Scene()
    with pytest.raises(Overloaded) as caught:
        scene.infer(1.0, failure(429, "later", retry_after="10"), timeout_s=10.5)
    assert (caught.value.retry_after_s, caught.value.status, scene.waits) == (10.0, 429, [])


def test_a_spent_deadline_sends_nothing() -> None:
    scene = Scene()
    scene.infer(answer())
    call = scene.calls.infer("echo", np.ones((1, 2)), Asking(0.0))
    with pytest.raises(DeadlineMissed):
        next(call)


@given(
    after=st.none() | st.integers(0, 600),
    done=st.integers(1, 6),
    left=st.floats(0, 1000),
    part=st.floats(0, 1),
    status=st.sampled_from([0, 400, 429, 500, 502, 503, 504]),
)
def test_pauses_never_undercut_retry_after_nor_pass_the_deadline(
    after: int | None, done: int, left: float, part: float, status: int
) -> None:
    fields = {} if after is None else {"retry-after": str(after)}
    retries = Retries(uniform=lambda low, high: low + part * (high - low))
    pause = retries.pause_s(done, Reply(status, fields), left)
    if pause is not None:
        assert done <= retries.most
        assert status in (0, 429, 502, 503)
        assert pause < left
        assert (after or 0) <= pause <= max(retries.longest_s * 1.5, (after or 0) + 1.0)


def test_errors_say_what_the_server_said_in_either_form() -> None:
    assert str(error_of(failure(429, "full", retry_after="3"))) == "full"
    said = Reply(404, {}, b'{"error": {"message": "none such"}}')
    assert str(error_of(said)) == "none such"
    assert str(error_of(Reply(502, {}, b"<html>"))) == "the server answered 502"


@pytest.mark.parametrize("text", ['variant="a', "=1", "a=1 b=2", 'a="x"y', "a=1;", "a=1;=2", "a;b c"])
def test_what_is_no_receipt_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="RFC 9651"):
        members_of(text)
    assert receipt_of({"clover-receipt": text}) is None
    assert receipt_of({}) is None


def test_embeddings_come_as_base64_in_their_order() -> None:
    import base64

    scene = Scene()
    rows = [np.array(row, "<f4") for row in ((1, 2), (3, 4))]
    data = [{"index": at, "embedding": base64.b64encode(rows[at].tobytes()).decode()} for at in (1, 0)]
    reply = Reply(200, {}, json.dumps({"data": data}).encode())
    found = scene.drive(scene.calls.embed("m", ["a", "b"], 2, 5.0), reply)
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert json.loads(scene.sent[0].body) == {
        "model": "m",
        "input": ["a", "b"],
        "encoding_format": "base64",
        "dimensions": 2,
    }


def test_labels_are_sent_once_under_the_id_of_the_receipt() -> None:
    scene = Scene()
    found = scene.infer(answer())
    scene.drive(scene.calls.feedback(found, [1], 5.0), Reply(200, {}, b"{}"))
    assert json.loads(scene.sent[-1].body) == {"id": "f-1", "labels": [1]}
    with pytest.raises(Overloaded):
        scene.drive(scene.calls.feedback(found, [1], 5.0), failure(429, retry_after="1"))
    assert not scene.waits


# --- tensors ----------------------------------------------------------------------------------------------------------


def info(datatype: str, *shape: int, name: str = "x") -> TensorInfo:
    return TensorInfo(name, datatype, shape)


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_arrays_of_every_type_travel_and_return(datatype: str) -> None:
    array = np.arange(6).reshape(3, 2).astype(DTYPES[datatype])
    [packed] = pack([info(datatype, 2)], array)
    said = [packed.header()]
    assert (unpack(said, memoryview(packed.data))["x"] == array).all()


def test_one_row_gets_its_axis_and_kinds_are_kept() -> None:
    assert pack([info("FP32", 2)], [1, 2])[0].shape == (1, 2)
    assert pack([info("INT8", 2)], np.array([1, 2], np.int64))[0].data == b"\1\2"
    assert pack([info("FP32", -1, 2)], np.zeros((5, 2)))[0].shape == (1, 5, 2)
    for datatype, value in (
        ("FP32", np.zeros(2, np.uint8)),
        ("INT8", np.array([1, 300])),
        ("UINT64", np.array([-1, 0])),
        ("FP16", np.array([1e9, 0.0])),
        ("INT8", [0.5, 0.5]),
        ("FP32", [[1.0], [1.0, 2.0]]),
        ("FP32", "text"),
        ("FP32", np.zeros((2, 3), np.float32)),
        ("BOOL", [0, 1]),
    ):
        with pytest.raises(BadRequest, match="'x'"):
            pack([info(datatype, 2)], value)


def test_text_and_files_become_elements(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"\0\1")
    [packed] = pack([info("BYTES", 1)], ["é", b"x", file])
    assert packed.shape == (3, 1)
    found = unpack([packed.header()], memoryview(packed.data))["x"]
    assert found.tolist() == [["é".encode()], [b"x"], [b"\0\1"]]
    assert pack([info("BYTES", 1)], "one")[0].shape == (1, 1)
    assert pack([info("BYTES")], ["a", "b"])[0].shape == (2,)
    assert pack([info("BYTES", 2)], ["a", "b"])[0].shape == (1, 2)
    assert pack([info("BYTES", 2)], [["a", "b"], ["c", "d"]])[0].shape == (2, 2)
    assert pack([info("BYTES", -1)], ["a", "b", "c"])[0].shape == (1, 3)
    for wrong in (1, [1], [["a"], ["b", "c"]], ["a", "b", "c"]):
        with pytest.raises(BadRequest):
            pack([info("BYTES", 2)], wrong)


def test_several_inputs_go_by_name() -> None:
    two = [info("FP32", 1, name="a"), info("FP32", 1, name="b")]
    assert [one.name for one in pack(two, {"b": [1.0], "a": [2.0]})] == ["a", "b"]
    for wrong in ([1.0], {"a": [1.0]}, {"a": [1.0], "b": [1.0], "c": 1}, {"a": [[1.0], [2.0]], "b": [1.0]}):
        with pytest.raises(BadRequest):
            pack(two, wrong)


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=5))
def test_bytes_elements_survive(elements: list[bytes]) -> None:
    [packed] = pack([info("BYTES", 1)], elements)
    found = unpack([packed.header()], memoryview(packed.data))["x"]
    assert found.reshape(-1).tolist() == elements


@pytest.mark.parametrize(
    "said",
    [
        {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 4}},
        {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4}},
        {"name": "x", "datatype": "FP99", "shape": [1], "data": [1]},
        {"name": "x", "datatype": "FP32", "shape": [3], "data": [1]},
    ],
)
def test_an_answer_that_contradicts_itself_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ModelFailed):
        unpack([said], memoryview(b"\xff\0\0\0"))
