"""A server is replaced under load, again and again: does a request fail, and what do the others wait?

    python -m bench.upgrade [--rounds 20] [--rate 200] [--weight 20] [--json FILE]

A server of `fashion` (one variant, pinned) serves requests over kept connections, at times of a Poisson process, and
a fifth as many over connections of their own, one each.  In each round a new server is started with `--take-over`; the
old one answers what it received and ends.  Every answer is held against what the variant said of that image before the
first round (`mismatched`), and one that is no 200, or does not come, is `failed`.

`during` are requests that were due between the start of the new process and the end of the old one, `outside` all
others: the new process imports, loads and warms on the same cores.  The ratio of their p99 is what a take-over costs.
`accepting` is the time from the start of the new
process to its banner, `ending` from there to the end of the old process.

Each server and the load generator have a session of their own, so that a kernel that schedules by session (sched(7),
"The autogroup feature") takes as much from each for other work.  On a machine that is busy with other work, latencies
are that work's, and the run says `loaded`.  `--weight N` has the kernel prefer bench and servers to all else, N to 1,
which needs the right to make a control group; within it sessions do not count, but nice values do.

The ledger of all servers together is held against the clock: the joules of idle power that they counted, divided by the
watts, must be the time from the first meter's start to the last reading.  Each server stops its account where the next
one begins.  Everything is measured, but energy, which is modelled (constant watts).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench import apart
from bench.common import ROOT, binary_bodies, fashion_rows, free_port, show, write_json
from bench.load import Body, OpenLoop, Result, Sample, quantile

VARIANT = "small"
IMAGES = 200
SHORT_PART = 0.2
SETTLE_S = 3.0
"""Between two rounds, and before the first and after the last."""
START_S = 300.0


@dataclass
class Round:
    """One take-over: monotonic times in nanoseconds, and how the old server ended."""

    begun_ns: int
    ready_ns: int = 0
    ended_ns: int = 0
    code: int | None = None
    served: int = 0


@dataclass
class Upgrades:
    """Servers that follow each other on one port."""

    port: int
    folder: Path
    options: tuple[str, ...]
    rounds: list[Round] = field(default_factory=list)
    process: asyncio.subprocess.Process | None = None
    started: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _launch(self, *more: str) -> asyncio.subprocess.Process:
        self.started += 1
        with open(self.folder / f"server-{self.started}.log", "wb") as sink:  # noqa: ASYNC230 - a small local file
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "clover.serve", *self.options, "--port", str(self.port), *more),
                stdout=asyncio.subprocess.PIPE,
                stderr=sink,
                cwd=ROOT,
                start_new_session=True,
            )
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            while b"curl" not in (line := await process.stdout.readline()):
                if not line:
                    raise RuntimeError(f"the server did not start:\n{self.log(self.started)[-2000:]}")
        return process

    def log(self, number: int) -> str:
        """Return what a server wrote to standard error."""
        return (self.folder / f"server-{number}.log").read_text()

    async def start(self) -> None:
        """Start the first server; return once it is ready."""
        self.process = await self._launch()

    async def upgrade(self) -> Round:
        """Replace the server; return once the old one has ended."""
        assert self.process is not None
        old, one = self.process, Round(time.monotonic_ns())
        self.rounds.append(one)
        self.process = await self._launch("--take-over")
        one.ready_ns = time.monotonic_ns()
        async with asyncio.timeout(60.0):
            one.code = await old.wait()
        one.ended_ns = time.monotonic_ns()
        return one

    async def stop(self) -> int | None:
        """End the last server in order; its exit code."""
        if self.process is None or self.process.returncode is not None:
            return self.process.returncode if self.process is not None else None
        self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(60.0):
                return await self.process.wait()
        except TimeoutError:
            os.killpg(self.process.pid, signal.SIGKILL)
            return await self.process.wait()


class Answers:
    """What the variant says of each image, and whether all servers say it."""

    def __init__(self) -> None:
        self.known: dict[int, list[float]] = {}
        self.wrong = 0

    def check(self, body: Body, sample: Sample, answer: bytes) -> None:
        """Judge an answer: its id, its variant and its numbers."""
        document = json.loads(answer)
        numbers = next(out["data"] for out in document["outputs"] if out["datatype"] == "FP32")
        expected = self.known.setdefault(body.row, numbers)
        same = len(numbers) == len(expected) and bool(np.allclose(numbers, expected, rtol=1e-3, atol=1e-4))
        sample.mismatch = sample.mismatch or not same or sample.variant != VARIANT


class ShortConnections:
    """Requests over connections of their own, at the times of a Poisson process."""

    def __init__(self, port: int, bodies: list[Body], rate: float, answers: Answers) -> None:
        self._port, self._bodies, self._rate, self._answers = port, bodies, rate, answers
        self.result = Result()
        self.reasons: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, ended: asyncio.Event) -> None:
        """Send until `ended`, and wait for the answers."""
        random, due_s, number = np.random.default_rng(2), time.monotonic(), 0
        while not ended.is_set():
            due_s += float(random.exponential(1.0 / self._rate))
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            task = asyncio.create_task(self._ask(self._bodies[number % len(self._bodies)], int(due_s * 1e9)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1
        await asyncio.gather(*self._tasks)

    async def _ask(self, body: Body, due_ns: int) -> None:
        self.result.sent += 1
        try:
            async with asyncio.timeout(30.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    head = b"POST /v2/models/fashion/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                    length = b"Content-Length: %d\r\n\r\n" % len(body.payload)
                    writer.write(head + body.headers + length + body.payload)
                    data = await reader.read(-1)
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
            status, (top, _, content) = int(data[9:12]), data.partition(b"\r\n\r\n")
        except (OSError, TimeoutError, ValueError) as error:
            self.reasons[type(error).__name__] = self.reasons.get(type(error).__name__, 0) + 1
            self.result.lost += 1
            return
        variant = re.search(rb'variant="([^"]*)"', top)
        sample = Sample(due_ns, time.monotonic_ns(), status, body.row, variant[1].decode() if variant else "")
        if status == 200:
            sample.mismatch = f'"id":"{body.id}"'.encode() not in content
            self._answers.check(body, sample, content)
        self.result.samples.append(sample)


def idle_seconds(ledger: Path, watts: float) -> tuple[float, float]:
    """Return the seconds of idle power in a ledger, and those of its readings of the grid."""
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        lines = "('idle', 'idle_no_request', 'unowned', 'carried')"
        ((idle_uj,),) = db.execute(f"SELECT SUM(joules_uj) FROM lines WHERE line IN {lines}")
        ((ms,),) = db.execute("SELECT SUM(seconds_ms) FROM grid")
    return idle_uj / 1e6 / watts, ms / 1e3


async def play(rounds: int, rate: float, folder: Path, cores: str = "") -> dict[str, Any]:
    """Run once and return the figures."""
    options = (
        *("fashion", "--variant", VARIANT, "--carbon", "static:300", "--energy-meter", "modelled"),
        *("--energy-idle-w", "10", "--energy-core-w", "1", *(("--cores", cores) if cores else ())),
        *("--cache-dir", str(folder / "cache"), "--state-dir", str(folder / "state"), "--ledger", "on"),
    )
    upgrades = Upgrades(free_port(), folder, tuple(word for word in options if word))
    images, _ = fashion_rows()
    bodies = binary_bodies(images, IMAGES)
    answers, ended = Answers(), asyncio.Event()
    try:
        await upgrades.start()
        loop = OpenLoop(upgrades.url, "fashion", bodies, rate, connections=16, check=answers.check)
        short = ShortConnections(upgrades.port, bodies, rate * SHORT_PART, answers)
        finished = asyncio.create_task(loop.run(math.inf, ended))
        shorts = asyncio.create_task(short.run(ended))
        begun_s = time.monotonic()
        await asyncio.sleep(SETTLE_S)
        for _ in range(rounds):
            await upgrades.upgrade()
            await asyncio.sleep(SETTLE_S)
        ended.set()
        kept = await finished
        await shorts
        seconds = time.monotonic() - begun_s
        code = await upgrades.stop()
    finally:
        ended.set()
        if upgrades.process is not None and upgrades.process.returncode is None:
            await upgrades.stop()
    (ledger,) = (folder / "state" / "ledger").glob("*.db")
    return {**figures(upgrades, kept, short, seconds, code), **_accounts(ledger, upgrades)}


def _accounts(ledger: Path, upgrades: Upgrades) -> dict[str, Any]:
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        ((runs,),) = db.execute("SELECT COUNT(*) FROM runs")
        ((requests,),) = db.execute("SELECT SUM(requests) FROM usage")
        cores = len(os.sched_getaffinity(0))
        idle_s, grid_s = idle_seconds(ledger, 10.0 * cores)
    return {
        "runs in the ledger": runs,
        "requests in the ledger": requests,
        "seconds of idle power in the ledger": round(idle_s, 2),
        "seconds of the grid in the ledger": round(grid_s, 2),
    }


def figures(
    upgrades: Upgrades, kept: Result, short: ShortConnections, seconds: float, code: int | None
) -> dict[str, Any]:
    """Return what came of the requests and the take-overs."""
    samples = [*kept.samples, *short.result.samples]
    spans = [(one.begun_ns, one.ended_ns) for one in upgrades.rounds]
    inside = [any(begin <= s.due_ns <= end for begin, end in spans) for s in samples]
    during, outside = (
        [s.latency_ms for s, here in zip(samples, inside, strict=True) if here is wanted and s.status == 200]
        for wanted in (True, False)
    )
    codes = [one.code for one in upgrades.rounds] + [code]
    p99 = quantile(outside, 0.99), quantile(during, 0.99)
    return {
        "take-overs": len(upgrades.rounds),
        "seconds": round(seconds, 1),
        "requests": kept.sent + short.result.sent,
        "over connections of their own": short.result.sent,
        "failed over kept connections": kept.failures(),
        "failed over their own": f"{short.result.failures()} {short.reasons or ''}".strip(),
        "mismatched": kept.mismatched() + short.result.mismatched(),
        "exit codes other than 0": sum(found != 0 for found in codes),
        "p50 outside, ms": quantile(outside, 0.5),
        "p50 during, ms": quantile(during, 0.5),
        "p99 outside, ms": p99[0],
        "p99 during, ms": p99[1],
        "p99 during / outside": round(p99[1] / p99[0], 2) if p99[0] > 0.0 else None,
        "largest during, ms": max(during, default=float("nan")),
        "accepting after, s (median)": quantile([(o.ready_ns - o.begun_ns) / 1e9 for o in upgrades.rounds], 0.5),
        "ending after, s (median)": quantile([(o.ended_ns - o.ready_ns) / 1e9 for o in upgrades.rounds], 0.5),
    }


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="take-overs [20]")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second over kept connections [200]")
    parser.add_argument("--cores", default="", help="cores of the servers, as 0-3 [all]")
    parser.add_argument("--weight", type=float, default=0.0, help="prefer all this to other work, so many to 1 [no]")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    apart.own_session()
    others = apart.OtherWork()
    with tempfile.TemporaryDirectory() as folder, apart.preferred(options.weight):
        found = uvloop.run(play(options.rounds, options.rate, Path(folder), options.cores))
    found |= others.report(options.weight)
    show("take-overs under load (measured)", ["figure", "value"], [[name, value] for name, value in found.items()])
    write_json(options.json, found)


if __name__ == "__main__":
    main()
