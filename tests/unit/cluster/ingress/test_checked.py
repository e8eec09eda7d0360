"""Nodes are admitted once HAProxy finds them ready, and spare ones stand in for those that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from clover.cluster.cluster_file import parse
from clover.cluster.controller.actor import may_answer, resident
from clover.cluster.ingress.checked import CheckedIngress
from clover.cluster.ingress.config import IngressOrigin, IngressSettings
from clover.cluster.ingress.haproxy import HAProxyIngress
from clover.cluster.ingress.state import whole_weights
from clover.errors import ClusterError


@pytest.mark.parametrize(("ready_after_s", "admitted"), [(0.0, True), (1.0, True), (4.9, True), (60.0, False)])
def test_admit_waits_for_the_check(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, ready_after_s: float, admitted: bool
) -> None:
    now_s = 0.0
    added: list[str] = []

    async def admit(self: HAProxyIngress, name: str, url: str, grpc_url: str) -> None:
        added.append(name)

    async def healthy(self: HAProxyIngress, name: str) -> bool:
        return now_s >= ready_after_s

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(HAProxyIngress, "admit", admit)
    monkeypatch.setattr(HAProxyIngress, "healthy", healthy)
    settings = IngressSettings(
        folder=str(short_path / "ingress"), origins=(IngressOrigin(name="north", listen="127.0.0.1:1"),)
    )
    ingress = CheckedIngress(settings, monotonic=lambda: now_s, sleep=sleep)
    if admitted:
        asyncio.run(ingress.admit("a", "http://127.0.0.1:2", ""))
        assert now_s >= ready_after_s
    else:
        with pytest.raises(ClusterError, match="does not find the node a ready"):
            asyncio.run(ingress.admit("a", "http://127.0.0.1:2", ""))
    assert added == ["a"]


def test_spare_nodes_get_the_least_weight_of_the_origins_that_they_may_answer(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"a": True, "b": True}
    given: list[tuple[str, str, dict[str, int]]] = []

    async def admit(self: HAProxyIngress, name: str, url: str, grpc_url: str) -> None:
        here[name] = True

    async def nodes(self: HAProxyIngress) -> dict[str, bool]:
        return here

    async def weigh(self: HAProxyIngress, origin: str, weights: Mapping[str, float]) -> None:
        given.append((origin, "", whole_weights(weights)))

    async def weigh_family(self: HAProxyIngress, origin: str, family: str, weights: Mapping[str, float]) -> None:
        given.append((origin, family, whole_weights(weights)))

    for method in (admit, nodes, weigh, weigh_family):
        monkeypatch.setattr(HAProxyIngress, method.__name__, method)
    settings = IngressSettings(
        folder=str(short_path / "ingress"), origins=(IngressOrigin(name="north", listen="127.0.0.1:1"),)
    )
    allowed = {("north", ""): frozenset("abc"), ("north", "toy"): frozenset("a"), ("south", ""): frozenset("ac")}
    ingress = CheckedIngress(settings, allowed, {"south": frozenset("ac")})

    async def story() -> None:
        await ingress.weigh("north", {"a": 3.0})
        assert given[-1] == ("north", "", {"a": 256, "b": 1})  # c is not there yet
        await ingress.weigh_family("north", "toy", {"a": 3.0})
        assert given[-1] == ("north", "toy", {"a": 256})
        await ingress.weigh("south", {"a": 1.0, "c": 0.0})
        assert given[-1] == ("south", "", {"a": 256, "c": 0})
        await ingress.admit("c", "http://127.0.0.1:2", "")
        assert given[-2:] == [("north", "", {"a": 256, "b": 1, "c": 1}), ("south", "", {"a": 256, "c": 1})]
        await ingress.weigh("north", {})
        assert given[-1] == ("north", "", {})
        # A request whose family HAProxy cannot see goes to no node at which the data of one of them may not be.
        await ingress.weigh("south", {"a": 1.0, "b": 3.0})
        assert given[-1] == ("south", "", {"a": 256, "c": 1})
        await ingress.weigh("south", {"b": 3.0})
        assert given[-1] == ("south", "", {"a": 256, "c": 256})

    asyncio.run(story())


def test_rows_stay_where_they_may_be_answered_also_if_a_node_fails() -> None:
    file = parse("""
[[region]]
name = "north"
latency_ms = { far = 60 }
[[region]]
name = "south"
[[region]]
name = "far"
[[node]]
name = "n"
region = "north"
[[node]]
name = "s"
region = "south"
port = 1
[[node]]
name = "f"
region = "far"
port = 2
[[family]]
family = "toy"
accuracy_floor = 90
slo_ms = 50
[family.regions]
south = ["south"]
[[family]]
family = "slow"
accuracy_floor = 90
slo_ms = 500
""")
    assert resident(file) == {"south": frozenset("s")}
    assert may_answer(file) == {
        ("north", "toy"): frozenset("ns"),  # the way to `far` takes longer than its SLO
        ("north", "slow"): frozenset("nsf"),
        ("north", ""): frozenset("ns"),
        ("south", "toy"): frozenset("s"),
        ("south", "slow"): frozenset("nsf"),
        ("south", ""): frozenset("s"),
        ("far", "toy"): frozenset("nsf"),
        ("far", "slow"): frozenset("nsf"),
        ("far", ""): frozenset("nsf"),
    }
