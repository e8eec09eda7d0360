"""Every endpoint, and who may call it."""

from __future__ import annotations

import gzip
import re
from typing import Any

import msgspec
import pytest

from clover._version import __version__
from clover.config import ListenConfig
from clover.errors import BadRequest, ConfigError, Conflict, PlanError, Unavailable, WorkerError
from clover.http.access import Access, binds_loopback
from tests.support.http_fakes import (
    Answer,
    Driver,
    FakeModel,
    FakeView,
    TwoVersions,
    echo_body,
    echo_family,
    family,
    request,
    tensor,
)


def driver(**listen: Any) -> Driver:
    extra = {key: listen.pop(key) for key in ("peer", "control_socket") if key in listen}
    return Driver(
        FakeView(FakeModel(echo_family())),
        listen=ListenConfig(**listen),
        control=extra.get("control_socket", False),
        peer=extra.get("peer", ("127.0.0.1", 1)),
    )


def test_server_metadata() -> None:
    d = driver()
    for path in ("/v2", "/v2/", "/v2?x=1"):
        answer = d.get(path)
        assert answer.status == 200
        assert answer.fields["content-type"] == "application/json"
        assert set(answer.json()) == {"name", "version", "extensions", "openapi"}
    assert "statistics" in answer.json()["extensions"]
    described = d.get(answer.json()["openapi"]).json()["info"]
    assert described["version"] == answer.json()["version"] == __version__


def test_health() -> None:
    d = driver()
    assert d.get("/v2/health/live").json() == {"live": True}
    assert d.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert d.get("/v2/models/echo/ready").json() == {"name": "echo", "ready": True}
    d.view.is_ready = False
    d.view.by_name["echo"].ready = False
    answer = d.get("/v2/health/ready")
    assert (answer.status, answer.json()) == (503, {"live": True, "ready": False})
    answer = d.get("/v2/models/echo/versions/1/ready")
    assert (answer.status, answer.json()) == (503, {"name": "echo", "ready": False})
    d.view.is_live = False
    answer = d.get("/v2/health/live")
    assert (answer.status, answer.json()) == (503, {"live": False})


def test_model_documents() -> None:
    spec = family("m.1", [tensor("I", "BYTES", -1, max_bytes=9)], [tensor("O", "BF16", 2, 3)], max_batch=7)
    d = Driver(FakeView(FakeModel(spec)))
    assert d.get("/v2/models/m.1").json() == {
        "name": "m.1",
        "versions": ["1"],
        "platform": "clover",
        "inputs": [{"name": "I", "datatype": "BYTES", "shape": [-1, -1]}],
        "outputs": [{"name": "O", "datatype": "BF16", "shape": [-1, 2, 3]}],
    }
    assert d.get("/v2/models/m.1/versions/1/config").json() == {
        "name": "m.1",
        "platform": "clover",
        "backend": "clover",
        "max_batch_size": 7,
        "input": [{"name": "I", "data_type": "TYPE_STRING", "dims": [-1]}],
        "output": [{"name": "O", "data_type": "TYPE_BF16", "dims": [2, 3]}],
    }


def test_statistics() -> None:
    d = driver()
    for path in ("/v2/models/stats", "/v2/models/echo/stats", "/v2/models/echo/versions/1/stats"):
        stats = d.get(path).json()["model_stats"]
        assert [one["name"] for one in stats] == ["echo"]


def test_unknown_paths_and_models() -> None:
    d = driver()
    for path in (
        "/x", "/v2/x", "/v2/models", "/v2/models/", "/v2/models/nope", "/v2/models/nope/ready",
        "/v2/models/echo/", "/v2/models/echo/x", "/v2/models/echo/versions/2", "/v2/models/echo/versions/2/ready",
        "/v2/models/echo/versions", "/v2/models/echo/infer/x",
        "//v2", "/v2//models/echo", "/v2/models/../v2", "/v2/models/%2e%2e", "/v2/models/%00",
        "/v2/repository", "/v2/repository/models/echo", "/v2/repository/models/echo/x", "/v2/clover/nope", "/V2",
    ):  # fmt: skip
        answer = d.get(path)
        assert answer.status == 404, path
        assert answer.json()["error"].startswith("Request for unknown model")
    assert d.post("/v2/models/nope/infer", echo_body()).status == 404


GETS = [
    "/", "/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/echo", "/v2/models/echo/ready", "/metrics",
    "/v2/models/echo/config", "/v2/models/echo/stats", "/v2/models/stats", "/v2/models/echo/versions/1",
    "/openapi.json",
    "/v2/clover/state", "/v2/clover/decisions", "/v2/clover/audit",
]  # fmt: skip
POSTS = [
    "/v2/models/echo/infer", "/v2/models/echo/versions/1/infer", "/v2/repository/index",
    "/v2/repository/models/echo/load",
    "/v2/repository/models/echo/unload", "/v2/clover/pin", "/v2/clover/freeze", "/v2/clover/plan", "/v2/clover/apply",
    "/v2/clover/base", "/v2/clover/set", "/v2/clover/guard", "/v2/clover/roll-out", "/v2/clover/cluster",
    "/v2/models/echo/feedback",
    "/v2/models/echo/versions/1/feedback",
]  # fmt: skip


@pytest.mark.parametrize("path", GETS + POSTS)
def test_wrong_methods(path: str) -> None:
    d = driver()
    allowed = ("GET", "HEAD") if path in GETS else ("POST",)
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY", "BREW", "get"):
        if method in allowed:
            continue
        answer = d.send(request(method, path, b""))[0]
        assert answer.status == 405, method
        assert answer.fields["allow"] == ", ".join(allowed)
        assert set(answer.json()) == {"error"}
    for method in allowed:
        assert not d.transport.closed
        d.feed(request(method, path, b""))
        d.loop.settle()
        assert d.take(heads_only=method == "HEAD")[0].status != 405 if method == "HEAD" else d.take()[0].status != 405
        d.connect()


def test_root_metrics_openapi() -> None:
    d = driver()
    assert d.get("/").json()["openapi"] == "/openapi.json"
    metrics = d.get("/metrics")
    assert metrics.body == b"# EOF\n"
    assert metrics.fields["content-type"].startswith("text/plain; version=0.0.4")
    document = d.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    described = {path: {method.upper() for method in item} for path, item in document["paths"].items()}

    def concrete(path: str) -> str:
        path = path.replace("/v2/models/{model}", "/v2/models/echo").replace("/versions/{version}", "/versions/1")
        return path.replace("{model}", "echo")

    methods = {concrete(path): methods for path, methods in described.items()}
    assert methods == {path: {"GET"} for path in GETS if path != "/v2/"} | {
        "/v2/models/echo/versions/1/ready": {"GET"},
        "/v2/models/echo/versions/1/config": {"GET"},
        "/v2/models/echo/versions/1/stats": {"GET"},
    } | {path: {"POST"} for path in POSTS}
    text = d.get("/openapi.json").body.decode()
    names = set(re.findall(r'"#/components/(\w+)/([^"]+)"', text))
    assert all(name in document["components"][kind] for kind, name in names)


def test_the_documents_own_example_works() -> None:
    d = driver()
    document = d.get("/openapi.json").json()
    example = document["paths"]["/v2/models/echo/infer"]["post"]["requestBody"]["content"]["application/json"][
        "example"
    ]
    assert d.post("/v2/models/echo/infer", example).status == 200


# --- two versions of a model ------------------------------------------------------------------------------------------


def test_a_name_with_two_versions_answers_by_both_and_says_by_which() -> None:
    stable, new = (FakeModel(msgspec.structs.replace(echo_family(), version=version)) for version in ("1", "2"))
    d = Driver(FakeView(stable))
    assert d.post("/v2/models/echo/infer", echo_body()).json()["model_version"] == "1"
    split = TwoVersions(stable, new)
    d.view.by_name.update({"echo": split, "echo@1": stable, "echo@2": new})
    stable.closed_reason = "looked up anew"
    for version in ("1", "2", "1", "2"):
        answer = d.post("/v2/models/echo/infer", echo_body())
        assert (answer.json()["model_name"], answer.json()["model_version"]) == ("echo", version)
        assert f'version="{version}"' in answer.fields["clover-receipt"]
    answer = d.post("/v2/models/echo/versions/2/infer", echo_body())
    assert (answer.json()["model_name"], answer.json()["model_version"]) == ("echo", "2")
    assert "version=" not in answer.fields["clover-receipt"]
    answer = d.post("/v2/models/echo@2/infer", echo_body())  # its name inside means the same
    assert (answer.json()["model_name"], answer.json()["model_version"]) == ("echo", "2")
    assert d.post("/v2/models/echo@3/infer", echo_body()).status == 404
    assert d.get("/v2/models/echo").json()["versions"] == ["1", "2"]
    assert d.get("/v2/models/echo/versions/2").json()["versions"] == ["2"]
    assert [(row["name"], row["version"]) for row in d.get("/v2/models/stats").json()["model_stats"]] == [
        ("echo", "1"),
        ("echo", "2"),
    ]
    assert "/v2/models/echo@2" not in d.get("/openapi.json").json()["paths"]
    d.view.by_name = {"echo": new}
    split.closed_reason = "over"
    d.routes.forget()
    d.state.heads.memo.clear()
    assert d.post("/v2/models/echo/infer", echo_body()).json()["model_version"] == "2"
    assert d.post("/v2/models/echo/versions/1/infer", echo_body()).status == 404
    assert d.post("/v2/models/echo@2/infer", echo_body()).status == 404


# --- repository -------------------------------------------------------------------------------------------------------


def test_repository_index() -> None:
    d = driver()
    row = {"name": "echo", "version": "1", "state": "READY", "reason": ""}
    for body in (b"", {}, {"ready": False}, {"ready": True}):
        assert d.post("/v2/repository/index", body).json() == [row]
    d.view.by_name["echo"].ready = False
    assert d.post("/v2/repository/index", {"ready": True}).json() == []
    assert d.post("/v2/repository/index").json()[0]["state"] == "UNAVAILABLE"
    for bad in ({"ready": "yes"}, [], b"x", b"1"):
        assert d.post("/v2/repository/index", bad).status == 400


def test_load_and_unload() -> None:
    d = driver()
    assert d.post("/v2/repository/models/echo/load").status == 200
    assert d.post("/v2/repository/models/echo/load", {"parameters": {"config": '{"a":1}'}}).json() == {}
    assert d.post("/v2/repository/models/echo/unload", {"parameters": {"unload_dependents": True}}).status == 200
    assert d.view.loads == [("echo", ""), ("echo", '{"a":1}'), ("echo", "unload")]
    for bad in ({"parameters": {"config": {"a": 1}}}, {"parameters": []}, {"parameters": {"file:1/m.py": "x"}}, []):
        answer = d.post("/v2/repository/models/echo/load", bad)
        assert answer.status == 400


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (BadRequest("that config is no good"), 400, "failed to load: that config is no good"),
        (Unavailable("no capacity", retry_after_s=3), 503, "failed to load: no capacity"),
        (WorkerError("/secret"), 503, "failed to load: the workers could not be changed; see the log"),
        (RuntimeError("/secret"), 500, "failed to load: the server failed on this request"),
        (MemoryError(), 503, "failed to load: the server is short of memory or descriptors"),
    ],
)
def test_failed_loads(error: Exception, status: int, text: str) -> None:
    d = driver()
    d.view.load_error = error
    answer = d.post("/v2/repository/models/echo/load")
    assert (answer.status, answer.json()) == (status, {"error": text})


def test_loading_the_unknown() -> None:
    answer = driver().post("/v2/repository/models/nope/load")
    assert answer.status == 404
    assert answer.json()["error"].startswith("Request for unknown model")
    assert "failed to load" in answer.json()["error"]


# --- clover -----------------------------------------------------------------------------------------------------------


def test_state_and_decisions() -> None:
    d = driver()
    assert d.get("/v2/clover/state").json()["receipt"]["variant"] == "small"
    assert len(d.get("/v2/clover/decisions").json()) == 100
    assert len(d.get("/v2/clover/decisions?limit=3").json()) == 3
    for bad in ("0", "-1", "x", "1001", "", "1.5", "%31%30%30%30%30"):
        assert d.get(f"/v2/clover/decisions?limit={bad}").status == 400
    assert len(d.get("/v2/clover/decisions?x=1&limit=3").json()) == 3
    many = d.get(f"/v2/clover/decisions?{'a&' * 4000}")
    assert many.status == 400
    assert many.json()["error"] == "the query has more than 16 fields"


def test_commands() -> None:
    d = driver()
    assert d.post("/v2/clover/pin", {"variant": "small"}).json() == {"done": "pin"}
    assert d.post("/v2/clover/freeze").json() == {"done": "freeze"}
    assert d.view.controller.commands == [("pin", {"variant": "small"}, "local"), ("freeze", {}, "local")]
    d.view.controller.error = BadRequest("no such variant")
    assert d.post("/v2/clover/pin").json() == {"error": "no such variant"}
    d.view.controller.error = PlanError("/secret")
    answer = d.post("/v2/clover/plan")
    assert answer.status == 409
    assert "/secret" not in answer.json()["error"]
    d.view.controller.error = Conflict("it would break the SLO")  # which its sender is to read
    answer = d.post("/v2/clover/pin", {"variant": "small"})
    assert (answer.status, answer.json()) == (409, {"error": "it would break the SLO"})
    assert d.post("/v2/clover/pin", [1]).status == 400


# --- late labels ------------------------------------------------------------------------------------------------------


FEEDBACK = "/v2/models/echo/feedback"


def own_id(answer: Answer) -> str:
    """The id that an answer's receipt carries, where the client named the request itself."""
    found = re.search(r', feedback="([0-9a-f-]+)"$', answer.fields["clover-receipt"])
    assert found is not None
    return found[1]


def test_labels_come_by_the_id_that_the_server_made() -> None:
    d = driver()
    answer = d.post("/v2/models/echo/infer", {**echo_body(), "id": "mine"})
    made = answer.fields["x-request-id"]
    assert "feedback" not in answer.fields["clover-receipt"], "x-request-id says it"
    told = d.post("/v2/models/echo/versions/1/feedback", {"id": made, "labels": [1]})
    assert (told.status, told.json()) == (200, {"id": made, "rows": 1, "right": 1, "estimate": None})
    assert d.post(FEEDBACK, {"id": made, "labels": [1]}).status == 404, "once"


def test_who_names_a_request_finds_the_id_for_labels_in_its_receipt() -> None:
    d = driver()
    answer = d.post("/v2/models/echo/infer", {**echo_body(), "id": "mine"}, "X-Request-Id: theirs")
    assert answer.fields["x-request-id"] == "theirs"
    for guessed in ("theirs", "mine"):
        assert d.post(FEEDBACK, {"id": guessed, "labels": [1]}).status == 404
    assert d.post(FEEDBACK, {"id": own_id(answer), "labels": [1]}).status == 200


def test_a_receipt_in_json_has_the_id_for_labels() -> None:
    d = driver()
    asked = echo_body(parameters={"clover_receipt": True})
    answer = d.post("/v2/models/echo/infer", asked)
    shown = answer.json()["parameters"]["clover_receipt"]["feedback"]
    assert shown == answer.fields["x-request-id"]
    assert d.post(FEEDBACK, {"id": shown, "labels": [1]}).status == 200
    answer = d.post("/v2/models/echo/infer", asked, "X-Request-Id: theirs")
    shown = answer.json()["parameters"]["clover_receipt"]["feedback"]
    assert shown == own_id(answer)
    assert d.post(FEEDBACK, {"id": shown, "labels": [1]}).status == 200


def test_nobody_counts_on_from_an_own_id_to_those_of_others() -> None:
    d = driver()
    mine = d.post("/v2/models/echo/infer", echo_body()).fields["x-request-id"]
    others = [d.post("/v2/models/echo/infer", echo_body()).fields["x-request-id"] for _ in range(100)]
    prefix, number, tag = mine.split("-")
    texts = set()
    for ahead in range(1, 101):
        there = f"{int(number, 16) + ahead:x}"
        assert others[ahead - 1].startswith(f"{prefix}-{there}-")
        guesses = [f"{prefix}-{there}", there, there * 99]
        guesses += [f"{prefix}-{there}-{end}" for end in (tag, "0" * 16, f"{int(tag, 16) + ahead & 2**64 - 1:016x}")]
        for guess in guesses:
            refused = d.post(FEEDBACK, {"id": guess, "labels": [0]})
            assert refused.status == 404
            texts.add(refused.body)
    assert len(texts) == 1, "what is wrong about a guess is not told"
    assert all(d.post(FEEDBACK, {"id": other, "labels": [1]}).status == 200 for other in others)
    texts.add(d.post(FEEDBACK, {"id": mine, "labels": [1, 2]}).body)
    assert len(texts) == 2, "who has the id is told what was wrong"


def test_a_name_that_somebody_else_was_given_takes_nothing_from_them() -> None:
    d = driver()
    made = d.post("/v2/models/echo/infer", echo_body()).fields["x-request-id"]
    stolen = d.post("/v2/models/echo/infer", {**echo_body(*range(8)), "id": made}, f"X-Request-Id: {made}")
    assert stolen.fields["x-request-id"] == made
    assert d.post(FEEDBACK, {"id": made, "labels": [1]}).json()["rows"] == 1
    assert d.post(FEEDBACK, {"id": own_id(stolen), "labels": [1, 1]}).json()["rows"] == 2


def test_an_id_that_is_not_remembered_is_told_so() -> None:
    answer = driver().post(FEEDBACK, {"id": "never", "labels": [1]})
    assert answer.status == 404
    assert answer.json() == {"error": "no answer of that id is remembered"}
    assert driver().post("/v2/models/other/feedback", {"id": "never", "labels": [1]}).status == 404
    other = driver().post("/v2/models/echo/infer", echo_body()).fields["x-request-id"]
    assert driver().post(FEEDBACK, {"id": other, "labels": [1]}).status == 404, "of another server, or before a restart"


@pytest.mark.parametrize(
    "body",
    [b"{", [], {}, {"id": "x"}, {"labels": [1]}, {"id": 1, "labels": [1]}, {"id": "", "labels": [1]},
     {"id": "x", "labels": []}, {"id": "x", "labels": 1}, {"id": "x", "labels": [1], "more": 1},
     {"id": "x", "labels": [1, 2]}, {"id": "x", "labels": [[]]}, {"id": "x", "labels": [{}]},
     {"id": "x", "labels": [True]}, b'{"id":"\\ud800","labels":[1]}', b'{"id":"\xff","labels":[1]}', b"",
     b'{"id":"x","labels":[' + b"[" * 60_000],
)  # fmt: skip
def test_feedback_that_makes_no_sense_is_refused(body: Any) -> None:
    d = driver()
    made = d.post("/v2/models/echo/infer", echo_body()).fields["x-request-id"]
    if isinstance(body, dict) and body.get("id") == "x":
        body["id"] = made
    assert d.post(FEEDBACK, body).status == 400


def test_who_may_infer_may_give_labels_but_no_foreign_page() -> None:
    d = driver(peer=("192.0.2.1", 1))
    made = d.post("/v2/models/echo/infer", echo_body()).fields["x-request-id"]
    foreign = d.post(FEEDBACK, {"id": made, "labels": [1]}, "Origin: http://evil.example")
    assert foreign.status == 403
    assert d.post(FEEDBACK, {"id": made, "labels": [1]}).status == 200


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
    ],
)
def test_rows_and_labels_are_counted_by_address(peer: str, client: str) -> None:
    d = driver(peer=(peer, 1))
    made = d.post("/v2/models/echo/infer", echo_body()).fields["x-request-id"]
    assert d.post(FEEDBACK, {"id": made, "labels": [1]}).status == 200
    model = d.view.by_name["echo"]
    assert model.labellers == [client]
    assert [ticket.client for ticket in model.tickets] == [client]


def test_labels_without_end_are_refused_before_they_are_read() -> None:
    text = "a body that is no inference has at most 262144 bytes"
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" % FEEDBACK.encode()
    assert [(early.status, early.json()) for early in driver().send(head)] == [(413, {"error": text})]
    chunked = b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % FEEDBACK.encode()
    body = b"80000\r\n%b\r\n0\r\n\r\n" % bytes(0x80000)
    assert [late.status for late in driver().send(chunked + body)] == [413]
    d = driver()
    made = d.post("/v2/models/echo/infer", echo_body()).fields["x-request-id"]
    packed = gzip.compress(b'{"id":"%b","labels":[0%b]}' % (made.encode(), b",0" * 10**7))
    assert len(packed) < 1 << 16
    assert d.post(FEEDBACK, packed, "Content-Encoding: gzip").status == 413
    assert d.post(FEEDBACK, {"id": made, "labels": [1]}).status == 200
    for path in ("/v2/repository/index", "/v2/clover/pin", "/v2/repository/models/echo/load"):
        assert driver().post(path, b'{"a":[0%b]}' % (b",0" * 10**6)).status == 413


# --- access -----------------------------------------------------------------------------------------------------------

CHANGES = ["/v2/clover/pin", "/v2/repository/models/echo/load", "/v2/repository/models/echo/unload"]


@pytest.mark.parametrize("path", CHANGES)
def test_without_a_token_changes_need_a_loopback_peer(path: str) -> None:
    assert driver().post(path).status == 200
    for local in ("127.8.0.1", "::1", "::ffff:127.0.0.1"):
        assert driver(peer=(local, 1)).post(path).status == 200
    d = driver(peer=("192.0.2.1", 1))
    answer = d.post(path)
    assert answer.status == 403
    assert d.view.loads == d.view.controller.commands == []
    for read in ("/v2", "/v2/clover/state", "/metrics"):
        assert d.get(read).status == 200
    assert d.post("/v2/models/echo/infer", echo_body()).status == 200
    assert d.post("/v2/repository/index").status == 200


@pytest.mark.parametrize("path", CHANGES)
def test_with_a_token_changes_need_it(path: str) -> None:
    d = driver(token="secret-1")
    for fields in ([], ["Authorization: Bearer wrong"], ["Authorization: Basic secret-1"], ["Authorization: secret-1"]):
        answer = d.post(path, b"", *fields)
        assert answer.status == 401
        assert answer.fields["www-authenticate"] == "Bearer"
    assert d.post(path, b"", "Authorization: Bearer secret-1").status == 200
    assert d.post(path, b"", "authorization: bearer secret-1").status == 200
    assert d.get("/v2").status == 200
    assert (
        driver(token="secret-1", peer=("192.0.2.1", 1)).post(path, b"", "Authorization: Bearer secret-1").status == 200
    )


def test_an_open_bind_needs_the_token_for_everything() -> None:
    d = driver(host="0.0.0.0", token="secret-1")
    answer = d.get("/v2")
    assert answer.status == 401
    assert answer.fields["www-authenticate"] == "Bearer"
    assert d.get("/v2", "Authorization: Bearer secret-1").status == 200
    assert d.post("/v2/models/echo/infer", echo_body(), "Authorization: Bearer secret-1").status == 200


@pytest.mark.parametrize("path", CHANGES)
def test_a_foreign_origin_changes_nothing(path: str) -> None:
    d = driver()
    for origin in ("http://evil.example", "null", "http://localhost:3000", "https://localhost.evil.example", "file://"):
        assert d.post(path, b"", f"Origin: {origin}").status == 403
    assert d.view.loads == d.view.controller.commands == []
    assert d.post(path, b"", "Origin: http://localhost").status == 200
    assert driver(token="t").post(path, b"", "Origin: http://evil.example", "Authorization: Bearer t").status == 403


@pytest.mark.parametrize("path", CHANGES)
def test_a_control_socket_takes_the_changes(path: str) -> None:
    assert driver(control="unix:/x").post(path).status == 403
    assert driver(control="unix:/x", token="t").post(path, b"", "Authorization: Bearer t").status == 403
    d = driver(control="unix:/x", control_socket=True)
    assert d.post(path).status == 200
    if "clover" in path:
        assert d.view.controller.commands[0][2] == "control socket"


@pytest.mark.parametrize(
    ("listen", "host", "status"),
    [
        ({}, "localhost", 200),
        ({}, "127.0.0.1:8080", 200),
        ({}, "[::1]:1", 200),
        ({}, "LOCALHOST", 200),
        ({}, "evil.example", 403),
        ({}, "localhost.evil.example", 403),
        ({}, "192.0.2.7", 403),
        ({"allowed_hosts": ("Good.example",)}, "good.example:80", 200),
        ({"host": "192.0.2.7", "insecure": True}, "192.0.2.7", 200),
        ({"host": "192.0.2.7", "insecure": True}, "192.0.2.8", 403),
        ({"host": "0.0.0.0", "insecure": True}, "192.0.2.8", 200),
        ({"host": "::", "insecure": True}, "[2001:db8::1]:8080", 200),
        ({"host": "0.0.0.0", "insecure": True}, "evil.example", 403),
    ],
)
def test_hosts(listen: dict[str, Any], host: str, status: int) -> None:
    data = f"GET /v2 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    assert driver(**listen).send(data)[0].status == status


def test_open_binds_need_protection() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        assert binds_loopback(host)
        Access.check_bind(ListenConfig(host=host))
    for host in ("0.0.0.0", "::", "", "192.0.2.1", "example.com"):
        with pytest.raises(ConfigError, match="token"):
            Access.check_bind(ListenConfig(host=host))
        Access.check_bind(ListenConfig(host=host, token="t"))
        Access.check_bind(ListenConfig(host=host, insecure=True))


def test_the_memo_does_not_confuse_heads() -> None:
    d = driver(token="secret-1")
    for _ in range(3):
        assert d.post("/v2/clover/pin", b"", "Authorization: Bearer secret-1").status == 200
        assert d.post("/v2/clover/pin", b"", "Authorization: Bearer secret-2").status == 401
    for number in range(3000):  # more heads than are remembered
        assert d.get("/v2", f"X-Request-Id: {number}").fields["x-request-id"] == str(number)
    assert len(d.state.heads.memo) <= 1024
