"""/v1/embeddings and /v1/models, in the shape of OpenAI's API."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from clover.config import LimitsConfig, ListenConfig, TenantConfig
from clover.errors import Overloaded
from clover.http.api.embeddings import shorten
from clover.tenants import Tenants
from clover.types import FamilySpec, OpenAiSpec
from tests.support.http_fakes import Answer, Driver, FakeModel, FakeView, TwoVersions, echo_family, family, tensor


def vectors(inputs: list[Any]) -> list[Any]:
    """Return a vector for each text: its length, and 3 and 4 to be shortened."""
    rows = [[3.0, 4.0, float(len(row) - 4)] for row in inputs[0]]
    return [np.zeros((len(rows), 1), np.float32), np.array(rows, np.float32)]


def embedder(**openai: Any) -> FamilySpec:
    return family(
        "words",
        [tensor("TEXT", "BYTES", 1, max_bytes=64)],
        [tensor("SCORE", "FP32", 1), tensor("VECTOR", "FP32", 3)],
        openai=OpenAiSpec(**({"embeddings": True, "output": "VECTOR"} | openai)),
    )


def driver(function: Any = vectors, **settings: Any) -> Driver:
    return Driver(FakeView(FakeModel(embedder(), function), FakeModel(echo_family())), **settings)


def ask(d: Driver, *fields: str, **document: Any) -> Answer:
    return d.post("/v1/embeddings", {"model": "words", "input": "one two"} | document, *fields)


def test_texts_become_vectors_with_a_receipt() -> None:
    d = driver()
    answer = ask(d, input=["one two", "three"])
    assert answer.status == 200
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [3.0, 4.0, 7.0]},
            {"object": "embedding", "index": 1, "embedding": [3.0, 4.0, 5.0]},
        ],
        "model": "words",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    assert answer.fields["clover-receipt"].startswith("variant=")
    assert "pue=" not in answer.fields["clover-receipt"]
    whole = ask(d, input="one", clover_receipt=True)
    assert whole.fields["clover-receipt"].endswith(", state=fresh, pue=1")
    assert ask(d, input="one", clover_receipt=1).status == 400
    model: Any = d.view.by_name["words"]
    assert (model.open_tickets, model.tickets[0].inputs[0]) == (0, [b"\7\0\0\0one two", b"\5\0\0\0three"])


def test_vectors_come_as_base64_and_are_shortened_to_length_one() -> None:
    answer = ask(driver(), encoding_format="base64", dimensions=2)
    raw = base64.b64decode(answer.json()["data"][0]["embedding"])
    assert np.frombuffer(raw, "<f4").tolist() == pytest.approx([0.6, 0.8])


def test_a_vector_of_zeros_stays_one() -> None:
    assert shorten(np.zeros((1, 3), np.float32), 2).tolist() == [[0.0, 0.0]]
    whole = np.ones((1, 3), np.float32)
    assert shorten(whole, 3) is whole


@pytest.mark.parametrize(
    ("document", "status", "kind"),
    [
        ({"input": []}, 400, "invalid_request_error"),
        ({"input": [1, 2]}, 400, "invalid_request_error"),
        ({"input": [[1, 2]]}, 400, "invalid_request_error"),
        ({"input": None}, 400, "invalid_request_error"),
        ({"model": None}, 400, "invalid_request_error"),
        ({"dimensions": 4}, 400, "invalid_request_error"),
        ({"dimensions": -1}, 400, "invalid_request_error"),
        ({"dimensions": "2"}, 400, "invalid_request_error"),
        ({"encoding_format": "hex"}, 400, "invalid_request_error"),
        ({"clover_min_accuracy": "high"}, 400, "invalid_request_error"),
        ({"input": "x" * 80}, 400, "invalid_request_error"),
        ({"model": "echo"}, 404, "not_found_error"),
        ({"model": "none"}, 404, "not_found_error"),
    ],
)
def test_what_is_wrong_is_said_in_openais_form(document: dict[str, Any], status: int, kind: str) -> None:
    d = driver()
    answer = ask(d, **document)
    assert answer.status == status
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"]["type"] == kind
    assert answer.json()["error"]["message"]
    assert d.view.by_name["words"].open_tickets == 0  # type: ignore[attr-defined]


def test_errors_of_other_paths_keep_their_form() -> None:
    assert type(driver().get("/v2/models/none").json()["error"]) is str
    assert driver().get("/v1/nothing").json()["error"]["code"] == "404"
    assert driver().get("/v1/embeddings").status == 405
    assert type(driver().post("/v1/embeddings", b"[").json()["error"]) is dict


def test_overload_says_when_to_come_back() -> None:
    d = driver()
    d.view.by_name["words"].refusal = Overloaded("full", retry_after_s=4.2)  # type: ignore[attr-defined]
    answer = ask(d)
    assert (answer.status, answer.fields["retry-after"]) == (429, "5")
    assert answer.json()["error"] == {"message": "full", "type": "rate_limit_error", "param": None, "code": "429"}


def test_a_model_that_fails_is_a_server_error() -> None:
    d = driver(lambda inputs: [None, np.full((1, 3), np.nan, np.float32)])
    answer = ask(d)
    assert (answer.status, answer.json()["error"]["type"]) == (500, "server_error")
    model: Any = d.view.by_name["words"]
    model.held = True
    d.feed(b"")
    held = driver()
    model = held.view.by_name["words"]
    model.held = True
    held.feed(_raw())
    held.loop.settle()
    model.run(0, 504, "late")
    held.loop.settle()
    assert held.take()[0].status == 504
    assert model.open_tickets == 0


def _raw() -> bytes:
    body = orjson.dumps({"model": "words", "input": "a"})
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_a_client_that_leaves_gives_its_slots_back() -> None:
    d = driver()
    model: Any = d.view.by_name["words"]
    model.held = True
    d.feed(_raw())
    d.loop.settle()
    assert model.open_tickets == 1
    d.connection.connection_lost(None)
    assert model.open_tickets == 0
    model.run()


def test_models_lists_what_embeds() -> None:
    d = driver()
    one = {"id": "words", "object": "model", "created": 0, "owned_by": "clover"}
    assert d.get("/v1/models").json() == {"object": "list", "data": [one]}
    assert d.get("/v1/models/words").json() == one
    assert d.get("/v1/models/echo").status == 404
    assert d.post("/v1/models/words", b"").status == 405


def test_the_token_is_needed_and_a_tenant_is_known_by_its_own() -> None:
    tenants = Tenants([TenantConfig(name="shop", token="s" * 32, min_accuracy=91.0)])
    d = driver(listen=ListenConfig(host="0.0.0.0", token="t" * 32), tenants=tenants)
    refused = ask(d)
    assert (refused.status, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert ask(d, f"Authorization: Bearer {'t' * 32}").status == 200
    assert ask(d, f"Authorization: Bearer {'s' * 32}").status == 200
    model: Any = d.view.by_name["words"]
    assert model.senders[-1].name == "shop"
    assert model.tickets[-1].min_accuracy == 91.0


def test_the_body_is_bounded_like_json_of_inference() -> None:
    d = driver(limits=LimitsConfig(json_bytes=100))
    answer = ask(d, input="x" * 200)
    assert (answer.status, "limits.json_bytes" in answer.json()["error"]["message"]) == (413, True)
    big = driver(lambda inputs: [None, np.zeros((len(inputs[0]), 3), np.float32)])
    assert ask(big, input=["word"] * 10_000).status == 200  # more than other documents may have


def test_two_versions_of_a_model_are_one_model_that_says_which_version_answered() -> None:
    stable, new = (FakeModel(msgspec.structs.replace(embedder(), version=version), vectors) for version in ("1", "2"))
    d = Driver(FakeView(stable))
    d.view.by_name.update({"words": TwoVersions(stable, new), "words@1": stable, "words@2": new})
    assert [row["id"] for row in d.get("/v1/models").json()["data"]] == ["words"]
    for version in ("1", "2"):
        answer = ask(d)
        assert (answer.status, answer.json()["model"]) == (200, "words")
        assert f'version="{version}"' in answer.fields["clover-receipt"]
    assert (stable.open_tickets, new.open_tickets) == (0, 0)
