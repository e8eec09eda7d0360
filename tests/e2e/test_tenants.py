"""A whole server with tenants: over HTTP and embedded, through a real worker, to metrics and the account."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clover
from clover.config import ServerConfig, TenantConfig
from tests.support.servers import run, serve

SECRET = "secret-of-acme"
ROWS = np.arange(16, dtype=np.int32)[np.newaxis]
CONFIG = ServerConfig(
    tenants=(
        TenantConfig(name="acme", token=SECRET, priority=4, timeout_ms=20_000.0),
        TenantConfig(name="slow", token="secret-of-slow", rate=0.5, burst=2),
        TenantConfig(name="admin", token="secret-of-admin", may_control=True),
    )
)


def http(url: str, path: str, token: str = "", body: Any = None) -> tuple[int, dict[str, str], str]:
    """Return status, header and text of an answer."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url + path, data)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, dict(reply.headers), reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def body(rows: int = 1) -> dict[str, Any]:
    data = np.tile(ROWS, (rows, 1)).ravel().tolist()
    return {
        "inputs": [
            {"name": name, "shape": [rows, 16], "datatype": "INT32", "data": data} for name in ("INPUT0", "INPUT1")
        ]
    }


@pytest.mark.usefixtures("forked_zygotes")
def test_tenants_from_the_token_to_the_account(tmp_path: Path) -> None:
    infer = "/v2/models/simple/infer"

    async def main() -> None:
        async with serve("simple", tmp_path, variant="exact", http=True, config=CONFIG) as server:
            url, engine = server.url, server.engine

            async def ask(path: str, token: str = "", given: Any = None) -> tuple[int, dict[str, str], str]:
                return await asyncio.to_thread(http, url, path, token, given)

            # Over HTTP and embedded, by tenants and by nobody.
            assert [(await ask(infer, token, body(2)))[0] for token in (SECRET, SECRET, "")] == [200, 200, 200]
            await server.ainfer({"INPUT0": ROWS, "INPUT1": ROWS}, tenant="acme")
            with pytest.raises(clover.BadRequest, match="no tenant is called 'other'"):
                await server.ainfer({"INPUT0": ROWS, "INPUT1": ROWS}, tenant="other")

            # Over its rate: how long to wait, and by what.
            assert (await ask(infer, "secret-of-slow", body(2)))[0] == 200
            status, fields, text = await ask(infer, "secret-of-slow", body(1))
            assert (status, fields["Retry-After"]) == (429, "2")
            assert "tenant slow is over its limit of 0.5 rows a second" in text
            assert (await ask(infer, "secret-of-slow", body(3)))[0] == 413
            with pytest.raises(clover.Overloaded, match="over its limit"):
                await server.ainfer({"INPUT0": ROWS, "INPUT1": ROWS}, tenant="slow")

            # What is counted: sums are the model's.
            await engine.parts.windows.close()
            found = engine.served["simple"].tenants
            assert {name: dict(totals.requests) for name, totals in found.items()} == {
                "": {200: 1},
                "acme": {200: 3},
                "slow": {200: 1, 429: 2, 413: 1},
                "admin": {},
            }
            assert {name: totals.rows["exact"] for name, totals in found.items()} == {
                "": 2,
                "acme": 5,
                "slow": 2,
                "admin": 0,
            }
            account = engine.account
            assert sum(usage.rows for usage in account.usage.values()) == 9
            active_j = sum(line.joules for line in account.by_variant("active").values())
            assert sum(totals.active_j for totals in found.values()) == pytest.approx(active_j, rel=1e-9)
            assert found["acme"].active_j > found["slow"].active_j > 0.0
            assert found["acme"].active_g > 0.0

            # Who sees it, and that no token is in it.
            assert (await ask("/metrics", SECRET))[0] == 403
            _, _, metrics = await ask("/metrics", "secret-of-admin")
            assert 'clover_rows_total{model="simple",tenant="acme",variant="exact"} 5.0' in metrics
            assert 'clover_requests_total{code="429",model="simple",tenant="slow"} 2.0' in metrics
            _, _, state = await ask("/v2/clover/state", "secret-of-admin")
            totals = json.loads(state)["totals"]
            assert totals["tenants"]["acme"]["priority"] == 4
            assert totals["models"]["simple"]["tenants"]["acme"]["rows"] == {"exact": 5}
            assert "secret" not in metrics + state

            # A reload: one goes, and the rest keep their counts.
            engine.use_tenants(CONFIG.tenants[1:])
            assert (await ask(infer, SECRET, body()))[0] == 401
            assert (await ask("/v2", "secret-of-admin"))[0] == 200
            assert engine.served["simple"].tenants["acme"].rows["exact"] == 5

    run(main())
