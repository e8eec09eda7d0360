"""Rows of batch jobs get the bodies that clients' requests get."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from clover.config import LimitsConfig, TenantConfig
from clover.http.waiting import RowRequests
from clover.planning.model.queueing import Service
from clover.runtime.router.waiting import SpareTime
from clover.tenants import Tenants
from clover.types import JobView, OpenAiSpec, Receipt, TensorSpec
from tests.support.http_fakes import Driver, FakeView
from tests.support.router_fixture import MS, House, family

INFER, EMBED = "/v2/models/toy/infer", "/v1/embeddings"
WORDS = {
    "inputs": (TensorSpec(name="t", datatype="BYTES", shape=(1,), max_bytes=64),),
    "openai": OpenAiSpec(embeddings=True),
}


class Rows:
    """Rows of batch jobs of a family whose one worker answers 3 and 4 for everything."""

    def __init__(self, **spec: Any) -> None:
        self.house = House(family(version="7", **spec), slots=64)
        self.house.router.account.add_family("toy")
        (self.worker,) = self.house.route(0)
        service = Service((1, 4), (1.0, 4.0), (1.0, 1.0))
        loop: Any = self.house.loop
        self.spare: SpareTime | None = SpareTime(self.house.router, lambda *_: service, lambda: 100.0, loop)
        tenants = Tenants([TenantConfig(name="acme", token="a-token-of-sixteen", min_accuracy=85.0)])
        self.requests = RowRequests(lambda name: self.spare if name == "toy" else None, LimitsConfig(), tenants)
        self.answers: list[tuple[int, Any, Receipt | None, str, float | None]] = []

    def run(self, body: Any, endpoint: str = INFER, tenant: str = "", model: str = "toy") -> Any:
        """Return the answer to a row: status, decoded body, receipt, version, seconds until it is tried again."""
        job = JobView("batch_1", model, tenant, 1, 0.0, "wait", 0.0, endpoint)
        self.requests.start(job, orjson.dumps(body), lambda *answer: self.answers.append(answer))
        self.settle()
        status, text, *rest = self.answers.pop()
        assert not self.answers
        return status, orjson.loads(text) if text else None, *rest

    def settle(self) -> None:
        house = self.house
        for _ in range(20):
            house.loop.turn()
            if self.worker.ring.batches:
                for slot in self.worker.ring.batches[0][1]:
                    house.slab.output(0)[slot] = (3.0, 4.0)
                house.loop.now_ns += MS
                house.complete(self.worker)

    def live(self, path: str, body: Any) -> Any:
        """Return the body of a client's answer."""
        model: Any = self.house.router
        driver = Driver(FakeView(model))
        driver.send(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode(), orjson.dumps(body))
        self.settle()
        return driver.answers()[0]


def row(*values: float, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": list(values or (1.0, 2.0))}], **more}


def test_a_row_of_infer_is_answered_as_a_client_is() -> None:
    rows = Rows()
    status, body, receipt, version, again_s = rows.run(row(id="a"))
    assert (status, version, again_s) == (200, "7", None)
    assert body == {
        "model_name": "toy",
        "model_version": "7",
        "id": "a",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 4.0]}],
    }
    assert (receipt.variant, receipt.accuracy) == ("small", 80.0)
    _, body, _, _, _ = rows.run(row(parameters={"clover_receipt": True}))
    assert body["parameters"]["clover_receipt"]["variant"] == "small"


def test_texts_are_embedded() -> None:
    rows = Rows(**WORDS)
    body = {"model": "toy", "input": ["a b", "c"], "dimensions": 1}
    status, body, receipt, _, _ = rows.run(body, EMBED)
    assert status == 200
    assert [item["embedding"] for item in body["data"]] == [[1.0], [1.0]]
    assert (body["model"], body["usage"]["total_tokens"]) == ("toy", 3)
    assert receipt.energy_j > 0.0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (row(parameters={"clover_min_accuracy": 0.9}), "in percent"),
        (row(parameters={"clover_min_accuracy": 99}), "no variant"),
        ({"inputs": []}, ""),
        ([1], ""),
        (row(parameters={"binary_data_output": True}), "binary"),
    ],
)
def test_what_is_wrong_with_a_row_is_its_answer(body: Any, said: str) -> None:
    rows = Rows()
    status, answer, receipt, version, again_s = rows.run(body)
    assert (status, receipt, version, again_s) == (400, None, "7", None)
    assert said in answer["error"]
    state = rows.house.router.state
    assert state.table.free.free == 64
    assert rows.house.router.traffic.codes == {}


def test_errors_below_v1_are_openais() -> None:
    rows = Rows()
    status, answer, *_ = rows.run({"model": "toy", "input": "a"}, EMBED)
    assert status == 400
    assert "embeds" in answer["error"]["message"]


def test_a_tenants_settings_hold_and_it_pays() -> None:
    rows = Rows()
    house = rows.house
    worker, _, _, meter = house.entry(1)
    house.router.join((worker, 1, 4, meter))
    rows.worker = worker
    _, _, receipt, _, _ = rows.run(row(), tenant="acme")
    assert receipt.variant == "medium"
    assert house.account.receipts_j == {("toy", "acme"): receipt.energy_j}


def test_a_row_that_cannot_run_now_comes_again() -> None:
    rows = Rows()
    assert rows.run(row(), model="other")[4] == 1.0
    rows.house.router.closed_reason = "the model is unloaded"
    status, body, receipt, _, again_s = rows.run(row())
    assert (status, body, receipt, again_s) == (503, None, None, 1.0)


def test_every_method_that_reading_a_request_calls_is_there() -> None:
    """Every method that reading a request calls is there."""
    rows = Rows()
    assert rows.spare is not None
    rows.spare.take_late(True)
    rows.spare.remember(0, None)
    assert rows.spare.ready
