"""The table of stalled connections in docs/protocol.md: its seconds are the code's, and so is what happens then."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clover.config import FamilyConfig, LimitsConfig
from clover.http.connection import _LINGER_S
from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_family, request

DOCS = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"
ROW = re.compile(r"\| (?P<client>[^|]+) \| (?P<seconds>[0-9.]+) \| (?:`(?P<setting>[a-z_.]+)`)? ?\| (?P<then>[^|]+) \|")


def table() -> list[dict[str, str]]:
    section = DOCS.read_text(encoding="utf-8").partition("**A connection that stalls**")[2].partition("\n\nThere is")[0]
    rows = [found.groupdict() for line in section.splitlines() if (found := ROW.fullmatch(line))]
    assert len(rows) == section.count("\n|") - 2, "every line but the head is read"
    return rows


def test_the_seconds_are_those_of_the_settings() -> None:
    limits, family = LimitsConfig(), FamilyConfig(family="x")
    known = {f"limits.{name}": getattr(limits, name) for name in LimitsConfig.__struct_fields__ if name.endswith("_s")}
    known["families.timeout_ms"] = family.timeout_ms / 1e3
    told = set()
    for row in table():
        expected = known[row["setting"]] if row["setting"] else _LINGER_S
        assert float(row["seconds"]) == expected, row
        told.add(row["setting"])
    assert set(known) - told == {"limits.drain_delay_s"}, (
        "every time of the settings that a client can meet is in the table"
    )


def stalled(d: Driver, kind: str) -> None:
    """Bring a connection into one of the states of the table."""
    if kind == "head":
        d.feed(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n")
    elif kind == "body":
        d.feed(b"POST /v2/clover/pin HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf")
    elif kind == "chunks":
        d.feed(b"POST /v2/clover/pin HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha")
    elif kind == "lingering":
        d.feed(b"NONSENSE\r\n\r\n")
        d.loop.settle()
        d.take()
    else:
        d.feed(request("GET", "/v2"))
        d.loop.settle()
        d.take()


@pytest.mark.parametrize(
    ("kind", "setting", "status"),
    [
        ("head", "head_s", 408),
        ("body", "body_s", 408),
        ("chunks", "body_s", 408),
        ("idle", "idle_s", None),
        ("lingering", "", None),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_it_happens_then_and_not_before(kind: str, setting: str, status: int | None, factor: float) -> None:
    usual = getattr(LimitsConfig(), setting) if setting else _LINGER_S
    seconds = usual * factor if setting else usual
    limits = LimitsConfig(**{setting: seconds}) if setting else LimitsConfig()
    d = Driver(FakeView(FakeModel(echo_family())), limits=limits)
    stalled(d, kind)
    for _ in range(int(seconds * 2)):  # as often as the front end looks
        d.sweep(0.5)
    d.loop.settle()
    assert not d.transport.closed
    assert not d.transport.sent
    for _ in range(2):
        d.sweep(0.5)
        d.loop.settle()
    if status is None:
        assert d.transport.closed
    else:
        assert [answer.status for answer in d.take()] == [status]
