"""A node is admitted once HAProxy finds it ready."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clover.cluster.checked_ingress import CheckedIngress
from clover.cluster.haproxy import HAProxyIngress
from clover.cluster.haproxy_config import IngressOrigin, IngressSettings
from clover.errors import ClusterError


@pytest.mark.parametrize(("ready_after_s", "admitted"), [(0.0, True), (1.0, True), (4.9, True), (60.0, False)])
def test_admit_waits_for_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready_after_s: float, admitted: bool
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
        folder=str(tmp_path / "ingress"), origins=(IngressOrigin(name="north", listen="127.0.0.1:1"),)
    )
    ingress = CheckedIngress(settings, monotonic=lambda: now_s, sleep=sleep)
    if admitted:
        asyncio.run(ingress.admit("a", "http://127.0.0.1:2", ""))
        assert now_s >= ready_after_s
    else:
        with pytest.raises(ClusterError, match="does not find the node a ready"):
            asyncio.run(ingress.admit("a", "http://127.0.0.1:2", ""))
    assert added == ["a"]
