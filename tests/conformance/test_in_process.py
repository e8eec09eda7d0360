"""The conformance suite through the front ends of HTTP and gRPC, on a transport that records."""

from __future__ import annotations

from collections import Counter

import pytest

from clover import families
from tests.conformance import http_cases, oip_cases
from tests.conformance.answers import GOOD, fits
from tests.conformance.http_cases import HttpCase
from tests.conformance.oip_cases import FAMILIES, OipCase
from tests.support.family_folder import FIXTURES
from tests.support.http_fakes import Driver, FakeModel, FakeView, request
from tests.support.http_streams import parse


def models() -> list[FakeModel]:
    """Return models that do what the families of the suite do."""
    found = []
    for name in FAMILIES:
        spec = families.load_family(str(FIXTURES / name))
        sums = (lambda rows: [rows[0] + rows[1], rows[0] - rows[1]]) if name == "simple" else (lambda rows: list(rows))
        found.append(FakeModel(spec, sums))
    return found


def statuses(d: Driver) -> list[int]:
    """Return the statuses of all answers of the last connection but interim ones."""
    return [answer.status for answer in parse(d.transport.sent) if answer.status != 100]


class InProcess:
    """One front end; each case has a connection of its own, and after it a good request has one."""

    def __init__(self) -> None:
        self.models = models()
        self.driver = Driver(FakeView(*self.models))
        self.driver.connection.connection_lost(None)
        self.wrong: list[str] = []

    def play(self, name: str, sent: bytes, right: tuple[tuple[int, ...], ...], source: str) -> None:
        """Send a case, half-close, and note what is wrong."""
        d = self.driver
        for what, data, wanted in ((name, sent, right), (f"a good request after {name}", GOOD, ((200,),))):
            d.connect()
            d.feed(data)
            d.loop.settle()
            if not d.transport.closed and not d.connection.eof_received():
                d.transport.close()
            d.loop.settle()
            found = statuses(d)
            if not fits(found, wanted):
                self.wrong.append(f"{what}: {found} instead of {wanted} ({source})")
            d.connection.connection_lost(None)
            for model in self.models:
                if model.open_tickets:
                    self.wrong.append(f"{what}: {model.open_tickets} tickets stay open")
        assert not d.connections


def test_http() -> None:
    suite = InProcess()
    for case in http_cases.cases():
        suite.play(*case)
    assert suite.wrong == []


def test_inference_over_http() -> None:
    suite = InProcess()
    for case in oip_cases.cases():
        sent = request("POST", f"/v2/models/{case.path}", case.body, case.fields)
        suite.play(case.name, sent, (case.statuses,), case.source)
    assert suite.wrong == []


def test_inference_over_grpc() -> None:
    pytest.importorskip("grpc", reason="the extra grpc is not installed")
    from tests.conformance import grpc_cases
    from tests.support.grpc_fakes import GrpcDriver

    served = models()
    driver = GrpcDriver(FakeView(*served))
    good = grpc_cases.asked().SerializeToString()
    wrong = []
    for case in grpc_cases.cases():
        for name, call, message, codes in (case[:4], (f"good after {case.name}", "ModelInfer", good, ("OK",))):
            said = driver.ask(call, message)
            if said.status.name not in codes or not said.details.isprintable():
                wrong.append(f"{name}: {said.status.name} {said.details!r} instead of {codes} ({case.source})")
        assert not any(model.open_tickets for model in served), case.name
    assert wrong == []


def test_the_suite_is_as_large_as_it_says_and_each_case_has_a_name_and_a_source() -> None:
    http, oip = http_cases.cases(), oip_cases.cases()
    assert len(http) >= 400
    assert len(oip) >= 300
    listed: list[HttpCase | OipCase] = [*http, *oip]
    for suite in (http, oip):
        assert [name for name, count in Counter(case.name for case in suite).items() if count > 1] == []
    assert all(case.source for case in listed)
    assert not any(500 <= status < 505 for case in http for some in case.statuses for status in some if status != 501)
    assert not any(status >= 500 for case in oip for status in case.statuses)


def test_a_wrong_answer_is_noted() -> None:
    suite = InProcess()
    suite.play("good", GOOD, ((400,),), "nobody")
    suite.play("two", GOOD * 2, ((200,),), "nobody")
    suite.play("none", b"", ((200,),), "nobody")
    assert [line.partition(":")[0] for line in suite.wrong] == ["good", "two", "none"]
