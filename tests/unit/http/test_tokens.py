"""Tokens with names and scopes at the door, and what the audit log says of those who came with one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.config import ListenConfig, TenantConfig, TokenConfig
from clover.errors import PlanError
from clover.grants import SCOPES, Grants
from clover.http.access import scope_of
from clover.http.audit import RECORDS, AuditLog, Operators
from clover.tenants import Tenants
from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_body, echo_family, request

TOKENS = (
    TokenConfig(name="app", token="app-1", scopes=("infer",)),
    TokenConfig(name="grafana", token="grafana-1", scopes=("read",)),
    TokenConfig(name="ops", token="ops-1", scopes=SCOPES),
    TokenConfig(name="deploy", token="deploy-1", scopes=("control",)),
)
CLUSTER, INFER = "/v2/clover/cluster", "/v2/models/echo/infer"
STATE, METRICS, PIN, UNLOAD = "/v2/clover/state", "/metrics", "/v2/clover/pin", "/v2/repository/models/echo/unload"


def driver(
    *tokens: TokenConfig, own: str = "", tenants: Tenants | None = None, peer: str = "127.0.0.1", **listen: Any
) -> Driver:
    return Driver(
        FakeView(FakeModel(echo_family())),
        listen=ListenConfig(token=own, **listen),
        operators=Operators(Grants(own, tokens or TOKENS)),
        tenants=tenants,
        peer=(peer, 1),
        control=listen.get("control", "") == "unix:x",
    )


def bearer(token: str) -> list[str]:
    return [f"Authorization: Bearer {token}"] if token else []


def status(d: Driver, path: str, token: str = "") -> int:
    method = "GET" if path in (STATE, METRICS, "/v2", "/v2/models/echo", "/v2/models/stats") else "POST"
    body = json.dumps(echo_body()).encode() if path == INFER else b""
    d.connect()
    (answer,) = d.send(request(method, path, body, bearer(token)))
    return answer.status


# --- scopes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("open_bind", [False, True])
@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("app-1", {INFER: 200, STATE: 403, METRICS: 403, "/v2/models/stats": 403, PIN: 403, UNLOAD: 403}),
        ("grafana-1", {INFER: 403, STATE: 200, METRICS: 200, "/v2/models/stats": 200, PIN: 403, UNLOAD: 403}),
        ("ops-1", {INFER: 200, STATE: 200, METRICS: 200, "/v2/models/stats": 200, PIN: 200, UNLOAD: 200}),
        ("deploy-1", {INFER: 403, STATE: 403, METRICS: 403, "/v2/models/stats": 403, PIN: 200, UNLOAD: 200}),
        ("operator-1", {INFER: 200, STATE: 200, METRICS: 200, "/v2/models/stats": 200, PIN: 200, UNLOAD: 200}),
        ("nobody-1", dict.fromkeys((INFER, STATE, METRICS, "/v2/models/stats", PIN, UNLOAD), 401)),
    ],
)
def test_a_token_permits_what_its_scopes_say(token: str, expected: dict[str, int], open_bind: bool) -> None:
    d = driver(own="operator-1", host="0.0.0.0" if open_bind else "127.0.0.1")
    assert {path: status(d, path, token) for path in expected} == expected
    if token != "nobody-1":
        assert status(d, "/v2/models/echo", token) == 200, "what a model is, every token may ask"


def test_without_a_token_nothing_is_changed_once_one_may_control() -> None:
    assert status(driver(), PIN) == 401
    assert status(driver(TOKENS[0], TOKENS[1]), PIN) == 200, "a loopback peer, as without tokens"
    assert status(driver(TOKENS[0], TOKENS[1], peer="10.0.0.1"), PIN) == 403
    assert status(driver(), INFER) == status(driver(), STATE) == 200, "open on loopback, as before"
    assert status(driver(TOKENS[0], host="0.0.0.0"), INFER) == 401


def test_the_control_socket_asks_for_no_scope() -> None:
    d = driver(control="unix:x")
    assert status(d, PIN) == status(d, PIN, "app-1") == 200
    assert [record.who for record in d.operators.audit.records] == ["control socket"] * 2


def test_every_path_of_the_document_has_the_scope_of_what_it_does() -> None:
    paths = Driver(FakeView(FakeModel(echo_family()))).get("/openapi.json").json()["paths"]
    found = {path: scope_of(path.replace("{model}", "echo")) for path in paths}
    asking = {path for path in paths if path.endswith(("/infer", "/feedback"))}
    assert {path for path, scope in found.items() if scope == "infer"} == asking
    changing = {path for path, scope in found.items() if scope == "control"}
    posted = {path for path, methods in paths.items() if "post" in methods}
    assert changing == posted - asking - {"/v2/repository/index"}
    assert {path for path, scope in found.items() if scope == "read"} >= {STATE, METRICS, "/v2/clover/audit"}


# --- several tokens, and other ones -----------------------------------------------------------------------------------


def test_a_token_is_replaced_without_a_moment_in_which_neither_is_valid() -> None:
    d = driver(own="old")
    new = TokenConfig(name="new", token="new-1", scopes=SCOPES)
    seen = []
    for own, tokens in (("old", ()), ("old", (new,)), ("", (new,)), ("new-1", ())):
        d.operators.grants.use(own, tokens)
        d.state.heads.memo.clear()  # as `Frontend.forget_heads`
        seen.append((status(d, PIN, "old"), status(d, PIN, "new-1")))
    assert seen == [(200, 401), (200, 200), (401, 200), (401, 200)]


@given(
    given=st.binary(max_size=40),
    tokens=st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), unique=True, max_size=8),
)
def test_a_token_is_found_if_and_only_if_it_is_there(given: bytes, tokens: list[str]) -> None:
    grants = Grants("", [TokenConfig(name=f"t{at}", token=token) for at, token in enumerate(tokens)])
    for at, token in enumerate(tokens):
        found = grants.find(token.encode())
        assert found is not None
        assert found.name == f"t{at}"
    assert (grants.find(given) is not None) == (given in [token.encode() for token in tokens])
    assert grants.find(b"") is None


# --- the audit log ----------------------------------------------------------------------------------------------------


def test_each_change_is_noted_with_who_what_and_what_came_of_it() -> None:
    d = driver(own="operator-1", tenants=Tenants((TenantConfig(name="acme", token="acme-1"),)))
    d.connect()
    d.send(request("POST", PIN, b'{"model": "echo", "variant": "small"}', bearer("ops-1")))
    status(d, UNLOAD, "operator-1")
    status(d, PIN, "app-1")
    status(d, PIN, "acme-1")
    status(d, PIN, "nobody-1")
    d.send(request("POST", PIN, b"[]", bearer("operator-1")))
    d.view.control().error = PlanError("no")
    status(d, PIN, "deploy-1")
    found = [(one.who, one.call, one.model, one.status) for one in d.operators.audit.records]
    assert found == [
        ("token ops", "pin", "echo", 200),
        ("token", "unload", "echo", 200),
        ("token app", "pin", "", 403),
        ("tenant acme", "pin", "", 403),
        ("unknown", "pin", "", 401),
        ("token", "pin", "", 400),
        ("token deploy", "pin", "", 409),
    ]
    first = d.operators.audit.records[0]
    assert json.loads(first.arguments) == {"model": "echo", "variant": "small"}
    assert (first.door, first.error) == ("http", "")
    shown = d.get("/v2/clover/audit?limit=2", *bearer("ops-1")).json()
    assert [one["who"] for one in shown] == ["token deploy", "token"]
    assert "ops-1" not in json.dumps(d.get("/v2/clover/audit", *bearer("ops-1")).json())


def test_reading_and_asking_are_not_noted() -> None:
    d = driver()
    for path in (STATE, METRICS, INFER, "/v2"):
        status(d, path, "ops-1")
        status(d, path, "nobody-1")
    # A cluster's controller asks every few seconds, which would leave room for nothing else.
    for action in ("status", "profiles"):
        d.send(request("POST", CLUSTER, b'{"action": "%s"}' % action.encode(), bearer("ops-1")))
    assert not d.operators.audit.records
    d.send(request("POST", CLUSTER, b'{"action": "leave"}', bearer("ops-1")))
    status(d, CLUSTER, "nobody-1")
    assert [one.status for one in d.operators.audit.records] == [200, 401]


def test_a_flood_of_refused_calls_leaves_room_for_the_others() -> None:
    now = 0.0
    audit = AuditLog(wall=lambda: now)
    for _ in range(500):
        audit.record("", "http", "pin", status=401)
    audit.record("token ops", "http", "pin")
    assert len(audit.records) == 61
    assert (audit.calls, audit.refused, audit.records[-1].unrecorded) == (501, 500, 440)
    now = 61.0
    audit.record("", "http", "pin", status=401)
    assert (len(audit.records), audit.records[-1].unrecorded) == (62, 0)


def test_what_is_kept_and_what_waits_for_the_ledger_is_bounded() -> None:
    audit = AuditLog(wall=lambda: 0.0)
    for number in range(5000):
        audit.record("token", "http", "set", arguments={"text": "x" * 10_000, "number": number})
    assert len(audit.records) == RECORDS
    assert all(len(record.arguments) < 1100 for record in audit.records)
    taken = audit.take()
    assert (len(taken), audit.left_out) == (4096, 904)
    assert taken[-1].id == 5000
    assert audit.take() == []
