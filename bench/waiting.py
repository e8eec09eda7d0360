"""Live rows beside waiting ones: latency of a steady load with and without a batch job, in rounds that take turns.

    python -m bench.waiting [--family fashion] [--rate 200] [--seconds 10] [--rounds 6] [--json FILE]
    python -m bench.waiting --family efficientnet_lite --rate 5 --lines 2000

The server has the defaults of a first start and a profile of its own.  The job has `carbon: now`, so that its rows run
whenever a worker has nothing else to do.  Every answer is checked for its id.  Rows are those of `bench.headline`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import uvloop

from bench.common import ServerProcess, cpu_seconds, served, show, tree, write_json
from bench.headline_requests import bodies_of, rows_of
from bench.headline_work import variant_work
from bench.load import Body, open_loop
from clover import families

BOUNDARY = "a-boundary-of-the-bench"
_ROWS = 512


def call(server: ServerProcess, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Any:
    """Return the JSON answer of the server."""
    request = urllib.request.Request(server.url + path, body or None, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=60.0) as answer:
        return json.load(answer)


def upload(server: ServerProcess, lines: bytes) -> str:
    """Upload a file of a batch; return its id."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'.encode(),
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'.encode(),
        lines,
        f"\r\n--{BOUNDARY}--\r\n".encode(),
    ]
    answer = call(server, "POST", "/v1/files", b"".join(parts), f"multipart/form-data; boundary={BOUNDARY}")
    return str(answer["id"])


def lines_of(family: str, bodies: list[Body], count: int, *, pictures: bool) -> bytes:
    """Return the lines of a job that asks for the rows of `bodies` again and again."""
    url = f"/v2/models/{family}/infer"
    documents = []
    for body in bodies:
        document = json.loads(body.payload)
        document.pop("id")
        if pictures:
            document["inputs"][0]["parameters"] = {"content_type": "base64"}
        documents.append(json.dumps(document, separators=(",", ":")))
    lines = [
        f'{{"custom_id":"row-{number}","method":"POST","url":"{url}","body":{documents[number % len(documents)]}}}\n'
        for number in range(count)
    ]
    return "".join(lines).encode()


class Job:
    """A batch job over the lines of a file, while the block lasts; then it is cancelled."""

    def __init__(self, server: ServerProcess, family: str, file: str) -> None:
        self._server = server
        created = {"input_file_id": file, "endpoint": f"/v2/models/{family}/infer", "completion_window": "24h"}
        document = {**created, "metadata": {"carbon": "now"}}
        self.id = call(server, "POST", "/v1/batches", json.dumps(document).encode())["id"]

    def show(self) -> dict[str, Any]:
        """Return the job as the server describes it."""
        found: dict[str, Any] = call(self._server, "GET", f"/v1/batches/{self.id}")
        return found

    def wait(self, *statuses: str) -> dict[str, Any]:
        """Return the job once it has one of these statuses."""
        while (shown := self.show())["status"] not in statuses:
            time.sleep(0.1)
        return shown

    def __enter__(self) -> Job:
        self.wait("in_progress", "completed")
        return self

    def __exit__(self, *error: object) -> None:
        if self.show()["status"] == "completed":
            raise RuntimeError("the job ended before its round did: give it more --lines")
        call(self._server, "POST", f"/v1/batches/{self.id}/cancel")
        self.wait("cancelled", "completed")


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="fashion")
    parser.add_argument("--rate", type=float, default=200.0, help="live rows a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of one round")
    parser.add_argument("--rounds", type=int, default=6, help="pairs of rounds")
    parser.add_argument("--lines", type=int, default=40_000, help="rows of the job, of which each round needs seconds")
    parser.add_argument("--settings", default="", help="further arguments of the server, separated by spaces")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    family = options.family
    work = variant_work(f"{family}:{families.load_family(family).variants[0].name}")
    rows_sent = rows_of(family)[0][:_ROWS]
    bodies, in_json = (bodies_of(work, rows_sent, binary=binary) for binary in (work.pictures, False))
    figures: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [family, "--state-dir", str(Path(folder) / "state"), *options.settings.split()]
        with served(arguments, log=Path(folder) / "serve.log", start_s=600.0) as server:
            file = upload(server, lines_of(family, in_json, options.lines, pictures=work.pictures))
            load = {"rate": options.rate, "seconds": options.seconds}
            while server.get("/v2/clover/state")["totals"]["models"][family]["unmeasured"]:
                time.sleep(1.0)
            uvloop.run(open_loop(server.url, family, bodies, rate=options.rate, seconds=20.0))  # plans follow
            for number in range(2 * options.rounds):
                kind = "with" if number % 4 in (1, 2) else "without"
                before_s = cpu_seconds(tree(server.process.pid))
                rows = 0
                if kind == "with":
                    with Job(server, family, file) as job:
                        time.sleep(1.0)
                        begin, before_s = job.show()["request_counts"], cpu_seconds(tree(server.process.pid))
                        result = uvloop.run(open_loop(server.url, family, bodies, seed=number // 2, **load))
                        rows = job.show()["request_counts"]["completed"] - begin["completed"]
                else:
                    time.sleep(1.0)
                    result = uvloop.run(open_loop(server.url, family, bodies, seed=number // 2, **load))
                figures[kind].append(
                    {
                        "p50_ms": result.latency_ms(0.5),
                        "p95_ms": result.latency_ms(0.95),
                        "p99_ms": result.latency_ms(0.99),
                        "failed": float(result.failed()),
                        "mismatched": float(result.mismatched()),
                        "waiting_rows_per_s": rows / result.seconds,
                        "cores": (cpu_seconds(tree(server.process.pid)) - before_s) / result.seconds,
                    }
                )
            state = server.get("/v2/clover/state")
    columns = list(figures["with"][0])
    table = [
        [kind, *(statistics.median(row[column] for row in rounds) for column in columns)]
        for kind, rounds in figures.items()
    ]
    show(f"{family} at {options.rate:g}/s, medians of {options.rounds} rounds (measured)", ["", *columns], table)
    for kind, rounds in figures.items():
        print(f"{kind}: p95 of each round (ms)", *(format(row["p95_ms"], ".3g") for row in rounds))
    write_json(options.json, {"rounds": figures, "state": state})


if __name__ == "__main__":
    main()
