"""Tenants at the door: whose token it is, what that may do, and what a request takes from its tenant."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clover.config import ListenConfig, TenantConfig
from clover.http.access import Access
from clover.tenants import Tenants
from tests.support.http_fakes import Answer, Driver, FakeModel, FakeView, echo_body, echo_family, request

INFER = "/v2/models/echo/infer"
ACME = TenantConfig(name="acme", token="acme-1", min_accuracy=90.0, timeout_ms=250.0)
ADMIN = TenantConfig(name="admin", token="admin-1", may_control=True)
STATISTICS = ["/v2/models/stats", "/v2/models/echo/stats"]
SEEN = ["/v2/clover/state", "/v2/clover/decisions", "/metrics", "/dashboard", *STATISTICS]


def driver(*configs: TenantConfig, control: bool = False, peer: str = "127.0.0.1", **listen: Any) -> Driver:
    return Driver(
        FakeView(FakeModel(echo_family(), held=True)),
        listen=ListenConfig(**listen),
        control=control,
        peer=(peer, 1),
        tenants=Tenants(configs or (ACME, ADMIN)),
    )


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


def asked(d: Driver, token: str, **parameters: Any) -> Any:
    """Return the ticket of a request that waits."""
    body = echo_body(**({"parameters": parameters} if parameters else {}))
    d.feed(request("POST", INFER, json.dumps(body).encode(), [bearer(token)] if token else []))
    return model(d).waiting[-1]


def model(d: Driver) -> FakeModel:
    found = d.view.by_name["echo"]
    assert isinstance(found, FakeModel)
    return found


# --- who it is --------------------------------------------------------------------------------------------------------


def test_a_request_is_its_tenants_or_nobodys() -> None:
    d = driver(token="operator-1")
    for token in ("acme-1", "operator-1", "", "admin-1", "acme-1"):
        asked(d, token)
        model(d).run()
    assert [getattr(tenant, "name", None) for tenant in model(d).senders] == ["acme", None, None, "admin", "acme"]


@pytest.mark.parametrize("token", ["", "operator-1"])
@pytest.mark.parametrize("path", ["/v2", "/metrics", INFER])
def test_a_token_that_is_nobodys_is_refused_everywhere(token: str, path: str) -> None:
    d = driver(token=token)
    for wrong in ("acme-2", "acme", "acme-1x"):
        answer = d.get(path, bearer(wrong)) if path != INFER else d.post(path, echo_body(), bearer(wrong))
        assert (answer.status, answer.fields["www-authenticate"]) == (401, "Bearer")
    assert d.get("/v2").status == 200, "none is no tenant's"
    assert driver(control=True).get("/v2", bearer("acme-2")).status == 200, "its file mode protects the control socket"
    assert Driver(FakeView(FakeModel(echo_family()))).get("/v2", bearer("any")).status == 200, "as ever"


ODD = ("", "\t", "Bearer", "Bearer ", "acme-1", "Basic YWNtZTphY21lLTE=", "Token acme-1", "Bearer acme-1, acme-1")


@pytest.mark.parametrize("value", ODD)
def test_an_authorization_that_is_no_bearer_token_is_nobodys(value: str) -> None:
    field = f"Authorization: {value}"
    answer = driver().post(INFER, echo_body(), field)
    assert (answer.status, answer.fields["www-authenticate"]) == (401, "Bearer")
    assert driver(control=True).get("/v2", field).status == 200
    assert Driver(FakeView(FakeModel(echo_family()))).get("/v2", field).status == 200, "there is none to have"


def test_an_open_bind_needs_a_token_and_a_tenants_is_one() -> None:
    Access.check_bind(ListenConfig(host="0.0.0.0"), bearers=True)
    d = driver(host="0.0.0.0")
    assert d.get("/v2").status == 401
    assert d.get("/v2", bearer("acme-1")).status == 200
    assert driver(host="0.0.0.0", insecure=True).get("/v2").status == 401


def test_taking_the_last_tenant_away_does_not_open_a_bind() -> None:
    tenants = Tenants([ACME])
    d = Driver(FakeView(FakeModel(echo_family())), listen=ListenConfig(host="0.0.0.0"), tenants=tenants)
    tenants.use([])
    assert [d.get("/v2", *field).status for field in ((), (bearer("acme-1"),))] == [401, 401]


def test_the_first_tenant_may_come_with_a_reload() -> None:
    tenants = Tenants()
    d = Driver(FakeView(FakeModel(echo_family())), tenants=tenants)
    assert d.get("/v2", bearer("acme-2")).status == 200
    tenants.use([ACME])
    d.state.heads.memo.clear()
    assert [d.get("/v2", bearer(token)).status for token in ("acme-1", "acme-2")] == [200, 401]


def test_a_reload_is_felt_by_the_next_request_on_the_same_connection() -> None:
    tenants = Tenants([ACME])
    d = Driver(FakeView(FakeModel(echo_family())), tenants=tenants)
    assert [d.get("/v2", bearer("acme-1")).status for _ in range(2)] == [200, 200]
    tenants.use([ADMIN])
    d.state.heads.memo.clear()  # as `Frontend.forget_heads` does
    assert d.get("/v2", bearer("acme-1")).status == 401
    assert d.get("/v2", bearer("admin-1")).status == 200


# --- what it may do ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SEEN)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_tenant_sees_nothing_of_others(path: str, host: str) -> None:
    d = driver(host=host, token="operator-1")
    answer: Answer = d.get(path, bearer("acme-1"))
    assert answer.status == 403
    assert answer.json() == {"error": "a tenant's token is for models only: this needs the operator's"}
    for token in ("admin-1", "operator-1"):
        assert d.get(path, bearer(token)).status == (404 if path == "/dashboard" else 200)


@pytest.mark.parametrize("path", ["/v2/repository/models/echo/load", "/v2/clover/pin"])
@pytest.mark.parametrize("token", ["", "operator-1"])
def test_a_tenant_changes_nothing_unless_it_may(path: str, token: str) -> None:
    d = driver(token=token)
    assert d.post(path, b"", bearer("acme-1")).status == 403
    assert d.view.loads == d.view.controller.commands == []
    assert d.post(path, b"", bearer("admin-1")).status == 200
    if "clover" in path:
        assert d.view.controller.commands[-1][2] == "tenant admin"
    assert driver(peer="192.0.2.1", token=token).post(path, b"", bearer("admin-1")).status == 200
    assert d.post(path, b"", bearer("admin-1"), "Origin: http://evil.example").status == 403


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_a_request_takes_from_its_tenant_what_it_does_not_say() -> None:
    d = driver()
    own = asked(d, "acme-1")
    assert (own.min_accuracy, own.timeout_ns, own.client) == (90.0, 250_000_000, "tenant acme")
    nobodys = asked(d, "")
    assert (nobodys.min_accuracy, nobodys.timeout_ns, nobodys.client) == (0.0, 0, "127.0.0.1")


@pytest.mark.parametrize("accuracy", [95.0, 80.0])
def test_a_request_may_ask_for_more_and_for_less(accuracy: float) -> None:
    own = asked(driver(), "acme-1", clover_min_accuracy=accuracy, timeout=900_000)
    assert (own.min_accuracy, own.timeout_ns) == (accuracy, 900_000_000)
