"""A real Prometheus scrapes a real server, and answers every query of the dashboard and evaluates every rule."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clover
from clover.telemetry import dashboards
from tests.support import manifests
from tests.support.dashboards import ALERTS, RECORDINGS, queries
from tests.support.servers import run
from tests.support.toy_family import TOY, settings

pytestmark = [
    pytest.mark.timeout(240),  # with the profile, if no other test has measured it yet
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed (Debian's package prometheus)"
    ),
]

WITHIN_S = 90.0
"""The longest wait is for a window of 10 s, of which the SLO is judged."""
SILENT = {"clover_log_dropped_lines_total", "clover_profile_correction"}
"""What this server has no sample of: no log of its own, and a profile that was not corrected yet."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **arguments: str) -> Any:
        query = f"?{urllib.parse.urlencode(arguments)}" if arguments else ""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, expression: str) -> list[Any]:
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def up(self) -> bool:
        try:
            self.get("status/buildinfo")
        except OSError:
            return False
        return True


@contextmanager
def prometheus(folder: Path, *targets: str) -> Iterator[Prometheus]:
    """Run Prometheus with the rules that are exported, evaluated each second, and these targets."""
    rules_file = dashboards.export(folder)[1]
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 1s}}\n"
        f"rule_files: [{rules_file.name}]\n"
        f"scrape_configs: [{{job_name: clover, static_configs: [{{targets: {json.dumps(targets)}}}]}}]\n"
    )
    port = free_port()
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def missing(found: Prometheus) -> set[str]:
    """Return the queries and the recorded names without data."""
    wanted = {*queries(), *RECORDINGS}
    unanswered = set()
    for query in wanted:
        expression = query
        for name, value in (("$__rate_interval", "1m"), ("$instance", ".+"), ("$model", ".+")):
            expression = expression.replace(name, value)
        if not any(name in query for name in SILENT) and not found.ask(expression):
            unanswered.add(query)
    return unanswered


@pytest.mark.usefixtures("forked_zygotes")
def test_every_query_is_answered_and_every_rule_evaluated(toy_cache: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)

    async def main() -> None:
        collector = f"http://127.0.0.1:{free_port()}"  # where none listens
        chosen = settings(toy_cache) | {"http": True, "port": 0, "policy": "budget", "otel": collector}
        async with clover.Server(TOY, **chosen) as server:
            with prometheus(tmp_path / "prometheus", server.url.removeprefix("http://")) as found:
                end_s = time.monotonic() + WITHIN_S
                unanswered = {"all"}
                while unanswered:
                    assert time.monotonic() < end_s, "\n".join(unanswered)
                    for _ in range(20):
                        await server.ainfer({"INPUT0": rows})
                    if await asyncio.to_thread(found.up):
                        unanswered = await asyncio.to_thread(missing, found)
                groups = (await asyncio.to_thread(found.get, "rules"))["groups"]
                evaluated = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
                every = {*RECORDINGS, *ALERTS}
                assert evaluated == dict.fromkeys(every, "ok")

    run(main())


@contextmanager
def exposing(*texts: str) -> Iterator[list[str]]:
    """Expose each text as the metrics of a target of its own."""
    servers = []
    for text in texts:

        class Metrics(BaseHTTPRequestHandler):
            body = text.encode()

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(self.body)

            def log_message(self, *words: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    try:
        yield [f"127.0.0.1:{server.server_address[1]}" for server in servers]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def test_the_query_of_keda_says_how_many_pods_the_load_takes(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="reading the manifest needs PyYAML")
    (scaled,) = manifests.documents(manifests.FOLDER / "keda.yaml")
    rate, capacity = "clover_arrival_rows_per_second", "clover_capacity_rows_per_second"
    busy = f'{rate}{{model="fashion"}} 900\n{capacity}{{model="fashion",of="floor"}} 1000\n'
    other = f'{rate}{{model="another"}} 7000\n{capacity}{{model="fashion",of="running"}} 10\n'
    second = f'{rate}{{model="fashion"}} 500\n{capacity}{{model="fashion",of="floor"}} 1000\n'
    measures = f'{rate}{{model="fashion"}} 0\n{capacity}{{model="fashion",of="floor"}} 0\n'  # its family, at its start
    with exposing(busy + other, second, measures) as targets, prometheus(tmp_path, *targets) as found:
        end = time.monotonic() + WITHIN_S
        while not found.up() or len(found.ask(f'{rate}{{model="fashion"}}')) < 3:
            assert time.monotonic() < end
            time.sleep(0.1)
        (answer,) = found.ask(scaled["spec"]["triggers"][0]["metadata"]["query"])
    assert float(answer["value"][1]) == pytest.approx(1.4)
