"""Hours of load with every fault that we can make: is anything lost, doubled or mixed up, does anything grow?

    python -m bench.soak [--minutes 15] [--rate 500] [--every-s 15] [--faults swap clock ...] [--out build/soak]
    make soak ARGS="--minutes 240"

A server of three echo variants (`bench.echo`) is asked at the times of a Poisson process, each request with a number
of its own, while dashboards are open.  Every `--every-s` seconds one fault is made, in turn and in an order of its own
each time around (`bench.soak_faults`): swaps, workers killed, stopped and ended, the zygote or the solver killed, the
provider of carbon intensity failing, the wall clock stepped (a preloaded library), the disk under the ledger full (a
small tmpfs), the ledger's file gone, no memory (a control group), no free descriptor, a reload, a take-over, and one
that breaks off.

`lost` requests got no answer, `duplicated` numbers more than one, `mismatched` an answer that is not theirs; statuses
other than 200, 429, 503 and 504 count as `forbidden`.  `strong again` is the time from the end of a fault until the
server is ready with every worker that it shall have.  The base line, before the first fault and after the last, is
taken at rest: resident memory (of workers without what they share), descriptors, processes and zombies of the
server's process tree, and what is new in /dev/shm and nobody else's.

The folder `--out` gets `seconds.csv` (a line a second), `faults.csv` and `soak.html` (by time, with plotly).  Faults
for which a right is missing are left out, and named.  Exit code 1 if anything was lost, duplicated, mismatched or
forbidden, if the base line is left (memory: a fifth and 64 MiB more), or if it took longer than 5 s to be strong again.
Everything is measured; energy is modelled and no figure of this bench.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import random
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench import echo
from bench.common import ROOT, show, write_json
from bench.load import Body, OpenLoop, Sample, quantile
from bench.soak_faults import FAULTS
from bench.soak_server import Server
from clover.charts import ChartSheet, lines

ALLOWED = frozenset({200, 429, 503, 504})
STRONG_S = 5.0
LONGEST_S = 60.0
PAGES = 3
REST_S = 8.0
LOOKS = 6
"""So many looks in a row, a tenth of a second apart, have to find the server at full strength."""
COLUMNS = (
    *("second", "requests", "p50_ms", "p99_ms", "refused", "lost"),
    *("rss_bytes", "fds", "shm", "zombies", "processes", "fault"),
)


@dataclass
class FaultRecord:
    """One fault: when it began and ended (seconds of the run), and how long the server took to be strong again."""

    name: str
    begun_s: float
    what: str = ""
    ended_s: float = 0.0
    strong_s: float = float("nan")


@dataclass
class Answers:
    """What became of the numbers: `waiting` are under way."""

    sent: int = 0
    answered: int = 0
    mismatched: int = 0
    duplicated: int = 0
    waiting: set[int] = field(default_factory=set)
    codes: Counter[int] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def body(self, _at_s: float) -> Body:
        """Return the next request."""
        number = self.sent
        self.sent += 1
        self.waiting.add(number)
        row = {"name": "row", "shape": [1, 2], "datatype": "INT64", "data": [number, 0]}
        text = json.dumps({"id": f"n{number}", "inputs": [row]}).encode()
        return Body(text, f"n{number}", number, b"Content-Type: application/json\r\n")

    def check(self, body: Body, sample: Sample, answer: bytes) -> None:
        """Judge an answer with 200: whose it is, and whether it is what that variant says."""
        said = next(out["data"] for out in json.loads(answer)["outputs"] if out["name"] == "answer")
        number = body.row
        if sample.variant not in echo.NAMES:
            right = False
        else:
            expected = echo.answer(np.array([number]), echo.NAMES.index(sample.variant))[0]
            right = said == [number, int(expected)]
        if sample.mismatch or not right:
            self.mismatched += 1
            sample.mismatch = True
            self.examples.append(f"{body.id} by {sample.variant}: {said}")

    def note(self, sample: Sample) -> None:
        """Count an answer of any status."""
        self.codes[sample.status] += 1
        if sample.row not in self.waiting:
            self.duplicated += 1
        self.waiting.discard(sample.row)
        self.answered += 1


class Soak:
    """A run: the load, the faults, a line a second."""

    def __init__(self, server: Server, options: argparse.Namespace, out: Path) -> None:
        self.server, self.options, self.out = server, options, out
        self.rng = random.Random(options.seed)
        self.answers = Answers()
        self.faults: list[FaultRecord] = []
        self.rows: list[dict[str, Any]] = []
        self.ended = asyncio.Event()
        self.begun_s = 0.0
        self.now = ""
        self.pages_seen = 0

    # --- beside the load ----------------------------------------------------------------------------------------------

    async def watch(self, load: OpenLoop) -> None:
        """Write a line a second, and fold the samples that it is made of."""
        lost = 0
        with (self.out / "seconds.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            while not self.ended.is_set():
                await asyncio.sleep(1.0)
                samples, load.result.samples = load.result.samples, []
                for sample in samples:
                    self.answers.note(sample)
                good = [sample.latency_ms for sample in samples if sample.status == 200]
                usage = await asyncio.to_thread(self.server.usage)
                row = {
                    "second": round(time.monotonic() - self.begun_s, 1),
                    "requests": len(samples),
                    "p50_ms": round(quantile(good, 0.5), 2),
                    "p99_ms": round(quantile(good, 0.99), 2),
                    "refused": sum(sample.status != 200 for sample in samples),
                    "lost": load.result.lost - lost,
                    **usage,
                    "fault": self.now,
                }
                lost = load.result.lost
                self.rows.append(row)
                table.writerow(row)
                file.flush()

    async def page(self) -> None:
        """Keep a dashboard open, as a browser does: a stream that ends is opened anew."""
        while not self.ended.is_set():
            writer = None
            try:
                async with asyncio.timeout(30.0):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, limit=1 << 22)
                    writer.write(b"GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    while not self.ended.is_set():
                        await reader.readuntil(b"\n\n")
                        self.pages_seen += 1
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.5)
            finally:
                if writer is not None:
                    writer.close()

    async def harm(self, until_s: float) -> None:
        """Make one fault after another until then."""
        names = [name for name in self.options.faults if name not in self.server.missing]
        order: list[str] = []
        await asyncio.sleep(self.options.every_s / 2)
        while time.monotonic() < until_s:
            if not order:
                order = self.rng.sample(names, len(names))
            name = order.pop()
            record = FaultRecord(name, time.monotonic() - self.begun_s)
            self.faults.append(record)
            self.now = name
            try:
                record.what = await FAULTS[name](self.server, self.rng)
            except Exception as error:
                record.what = f"not made: {type(error).__name__} {error}"
            self.now = ""
            await self._recover(record)
            print(f"{record.begun_s:7.1f} s  {name}: {record.what}; strong after {record.strong_s:.1f} s", flush=True)
            await asyncio.sleep(self.options.every_s)

    async def _recover(self, record: FaultRecord) -> None:
        end_s = time.monotonic()
        record.ended_s = end_s - self.begun_s
        strong_s, looks = 0.0, 0
        while time.monotonic() < end_s + LONGEST_S:
            strong = await self.server.strong()
            looks = looks + 1 if strong else 0
            if looks == 1:
                strong_s = time.monotonic() - end_s
            elif looks == LOOKS:  # a death may not have been noticed at the first
                record.strong_s = strong_s
                return
            await asyncio.sleep(0.1)

    # --- all of it ----------------------------------------------------------------------------------------------------

    async def run(self) -> dict[str, Any]:
        """Run, and return the figures."""
        server, options, answers = self.server, self.options, self.answers
        server.note_shared_memory()
        await server.start()
        url = f"http://127.0.0.1:{server.port}"
        warm = OpenLoop(url, "echo", answers.body, options.rate, connections=16, check=answers.check)
        for sample in (await warm.run(8.0)).samples:
            answers.note(sample)
        await asyncio.sleep(REST_S)
        base = server.usage()
        self.begun_s = time.monotonic()
        until_s = self.begun_s + 60.0 * options.minutes
        load = OpenLoop(url, "echo", answers.body, options.rate, connections=32, check=answers.check)
        sending = asyncio.create_task(load.run(float("inf"), self.ended))
        beside = [asyncio.create_task(self.page()) for _ in range(PAGES)]
        beside.append(asyncio.create_task(self.watch(load)))
        await self.harm(until_s)
        self.ended.set()
        result = await sending
        for task in beside[:PAGES]:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        for sample in result.samples:
            answers.note(sample)
        await asyncio.sleep(REST_S)
        last = server.usage()
        return self._figures(result.lost + warm.result.lost, base, last)

    def _figures(self, lost: int, base: dict[str, int], last: dict[str, int]) -> dict[str, Any]:
        answers = self.answers
        slow = [fault for fault in self.faults if not fault.strong_s <= STRONG_S]
        allowed = {**base, "rss_bytes": int(base["rss_bytes"] * 1.2) + (64 << 20), "fds": base["fds"] + 8}
        left = [name for name in ("rss_bytes", "fds", "shm", "zombies", "processes") if last[name] > allowed[name]]
        forbidden = {code: n for code, n in answers.codes.items() if code not in ALLOWED}
        endless = len(answers.waiting) - lost
        good = [row["p99_ms"] for row in self.rows if not row["fault"] and row["requests"] > row["refused"]]
        return {
            "seconds": round(time.monotonic() - self.begun_s, 1),
            "requests": answers.sent,
            "statuses": {str(code): n for code, n in sorted(answers.codes.items())},
            "lost": lost,
            "without any end": endless,
            "duplicated": answers.duplicated,
            "mismatched": answers.mismatched,
            "forbidden statuses": {str(code): n for code, n in forbidden.items()},
            "faults": dict(Counter(fault.name for fault in self.faults)),
            "left out": dict(self.server.missing),
            "not made": [f"{fault.name}: {fault.what}" for fault in self.faults if fault.what.startswith("not made")],
            "longest until strong again, s": max((fault.strong_s for fault in self.faults), default=0.0),
            "longer than 5 s": [f"{fault.name} ({fault.what}): {fault.strong_s:.1f} s" for fault in slow],
            "p99 of a second without a fault, ms (median)": quantile(good, 0.5),
            "messages of open dashboards": self.pages_seen,
            "before": base,
            "after": last,
            "above the base line": left,
            "examples": answers.examples[:5],
            "failed": bool(lost or endless or answers.duplicated or answers.mismatched or forbidden or slow or left),
        }

    def write(self) -> None:
        """Write the faults, and the page with its charts."""
        with (self.out / "faults.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("fault", "begun_s", "ended_s", "strong_s", "what"))
            for one in self.faults:
                table.writerow((one.name, f"{one.begun_s:.1f}", f"{one.ended_s:.1f}", f"{one.strong_s:.2f}", one.what))
        sheet = ChartSheet()
        charts = {
            "latency, ms": ("p50_ms", "p99_ms"),
            "answers a second": ("requests", "refused", "lost"),
            "resident memory, MiB": ("rss_bytes",),
            "descriptors": ("fds",),
            "processes": ("processes", "zombies", "shm"),
        }
        parts = []
        for title, names in charts.items():
            scale = 1 / (1 << 20) if names == ("rss_bytes",) else 1.0
            series = {n: [(row["second"] / 3600.0, float(row[n]) * scale) for row in self.rows] for n in names}
            parts.append(sheet.add(lines(title, series)))
        faults = "".join(
            f"<tr><td>{one.begun_s:.0f} s<td>{one.name}<td>{one.what}<td>{one.strong_s:.1f} s" for one in self.faults
        )
        page = (
            "<!doctype html><meta charset=utf-8><title>soak</title><style>body{font:14px sans-serif;margin:2em}</style>"
            f"<h1>Soak</h1>{''.join(parts)}<table>{faults}</table>{sheet.scripts()}"
        )
        (self.out / "soak.html").write_text(re.sub(r"\n{3,}", "\n", page), encoding="utf-8")


async def play(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run once with a server of its own; return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), out / "cache")
        soak = Soak(server, options, out)
        try:
            figures = await soak.run()
        finally:
            code = await server.stop()
            for log in sorted(Path(folder).glob("server-*.log")):
                (out / log.name).write_bytes(log.read_bytes())
            soak.write()
        return {**figures, "exit code of the server": code}


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="how long [15]")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second [500]")
    parser.add_argument("--every-s", type=float, default=15.0, help="seconds between a mended fault and the next [15]")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), help="which [all]")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "soak", help="folder of what is found")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (options.out / "soak.html").unlink()
    figures = uvloop.run(play(options, options.out))
    rows = [[name, json.dumps(value) if isinstance(value, dict | list) else value] for name, value in figures.items()]
    show("soak (measured)", ["figure", "value"], rows)
    write_json(options.json, figures)
    return int(figures["failed"])


if __name__ == "__main__":
    raise SystemExit(main())
