"""Every endpoint, and who may call it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from clover.config import ListenConfig
from clover.errors import BadRequest, ConfigError, Conflict, PlanError, Unavailable, WorkerError
from clover.http.trust import Trust, binds_loopback
from tests.unit.http_fakes import Driver, FakeModel, FakeView, echo_body, echo_family, family, request, tensor


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
        assert set(answer.json()) == {"name", "version", "extensions"}
    assert "statistics" in answer.json()["extensions"]


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
    "/v2/clover/state", "/v2/clover/decisions",
]  # fmt: skip
POSTS = [
    "/v2/models/echo/infer", "/v2/models/echo/versions/1/infer", "/v2/repository/index",
    "/v2/repository/models/echo/load",
    "/v2/repository/models/echo/unload", "/v2/clover/pin", "/v2/clover/freeze", "/v2/clover/plan", "/v2/clover/apply",
    "/v2/clover/base", "/v2/clover/set", "/v2/clover/guard", "/v2/models/echo/feedback",
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


def test_labels_come_by_the_id_that_the_answer_carried() -> None:
    d = driver()
    assert d.post("/v2/models/echo/infer", {**echo_body(), "id": "mine"}).json()["id"] == "mine"
    answer = d.post("/v2/models/echo/feedback", {"id": "mine", "labels": [1]})
    assert (answer.status, answer.json()["right"]) == (200, 1)
    given = d.post("/v2/models/echo/infer", echo_body()).fields["x-request-id"]
    assert d.post("/v2/models/echo/versions/1/feedback", {"id": given, "labels": [1]}).status == 200
    assert d.post("/v2/models/echo/infer", echo_body(), "X-Request-Id: theirs").status == 200
    assert d.post("/v2/models/echo/feedback", {"id": "theirs", "labels": [1]}).status == 200


def test_an_id_that_is_not_remembered_is_told_so() -> None:
    answer = driver().post("/v2/models/echo/feedback", {"id": "never", "labels": [1]})
    assert answer.status == 404
    assert answer.json() == {"error": "no answer of that id is remembered"}
    assert driver().post("/v2/models/other/feedback", {"id": "never", "labels": [1]}).status == 404


@pytest.mark.parametrize(
    "body",
    [b"{", [], {}, {"id": "x"}, {"labels": [1]}, {"id": 1, "labels": [1]}, {"id": "", "labels": [1]},
     {"id": "x", "labels": []}, {"id": "x", "labels": 1}, {"id": "x", "labels": [1], "more": 1},
     {"id": "x", "labels": [1, 2]}],
)  # fmt: skip
def test_feedback_that_makes_no_sense_is_refused(body: Any) -> None:
    d = driver()
    assert d.post("/v2/models/echo/infer", {**echo_body(), "id": "x"}).status == 200
    assert d.post("/v2/models/echo/feedback", body).status == 400


def test_who_may_infer_may_give_labels_but_no_foreign_page() -> None:
    d = driver(peer=("192.0.2.1", 1))
    assert d.post("/v2/models/echo/infer", {**echo_body(), "id": "x"}).status == 200
    foreign = d.post("/v2/models/echo/feedback", {"id": "x", "labels": [1]}, "Origin: http://evil.example")
    assert foreign.status == 403
    assert d.post("/v2/models/echo/feedback", {"id": "x", "labels": [1]}).status == 200


# --- trust ------------------------------------------------------------------------------------------------------------

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
        Trust.check_bind(ListenConfig(host=host))
    for host in ("0.0.0.0", "::", "", "192.0.2.1", "example.com"):
        with pytest.raises(ConfigError, match="token"):
            Trust.check_bind(ListenConfig(host=host))
        Trust.check_bind(ListenConfig(host=host, token="t"))
        Trust.check_bind(ListenConfig(host=host, insecure=True))


def test_the_memo_does_not_confuse_heads() -> None:
    d = driver(token="secret-1")
    for _ in range(3):
        assert d.post("/v2/clover/pin", b"", "Authorization: Bearer secret-1").status == 200
        assert d.post("/v2/clover/pin", b"", "Authorization: Bearer secret-2").status == 401
    for number in range(3000):  # more heads than are remembered
        assert d.get("/v2", f"X-Request-Id: {number}").fields["x-request-id"] == str(number)
    assert len(d.hub.heads.memo) <= 1024
