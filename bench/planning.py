"""What planning costs the event loop that serves meanwhile, and how long it takes.

    python -m bench.planning [--device emulated:a100-40gb:10] [--changes 12] [--rounds 5] [--rate 50] [--json FILE]

An embedded server on an emulated box, under light open-loop load from a process of its own.  Stretches of equal length
take turns: `with` planning (changes one after another, each with a plan to wait for) and `without`.  The changes are
dry runs, so that solving is exercised and nothing is repartitioned: of the intensity at the rate that is observed, and
of the rate, in turn, none of them twice.  Afterwards the source of the intensity is stepped for real, and the
controller notices, plans and applies by itself: those changes are reported apart.

`lag`             by how much the event loop ran something later than it was due: a timer of a millisecond is set again
                  and again, and every millisecond that it is late counts as one more that was due then.  Timers of the
                  loop are good to a millisecond; that much is in `without` too
`Plan.seconds`    arithmetic alone, as the solver process (of low priority) counts it
`round trip`      `Decision.seconds`: what the controller waited, with the message there and back and the bookkeeping
`first`           the plan at the start, whose round trip holds the deployment of all workers too; `cold` is the first
                  plan of a solver process that was ended and started again (interpreter, imports and empty memories)
`applied`         round trips with the transition in them

Paces of the slices are emulated, and every worker, the solver and the load share the cores of this machine: lag and
seconds are measured here, and are no figures of a box with GPUs.  This judges nothing and always exits with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

import clover
from bench.common import ROOT, binary_bodies, fashion_rows, provenance, show, write_json
from bench.load import OpenLoop, quantile
from clover.control import controller as control
from clover.errors import CloverError

TICK_NS = 1_000_000
TARGET_S = 0.2
INTENSITIES = (80.0, 500.0)
STEPS = (60.0, 600.0)
FOREVER_S = 1e6
LONGEST_STEP_S = 120.0

# --- measuring --------------------------------------------------------------------------------------------------------


class Lag:
    """Milliseconds by which a loop runs late, one for each millisecond of the time that it is entered for."""

    def __init__(self) -> None:
        self.ms: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._since_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Lag:
        self._again()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        self._since_ns = time.monotonic_ns()
        self._timer = self._loop.call_at(self._loop.time() + TICK_NS / 1e9, self._ran)

    def _ran(self) -> None:
        late_ns = time.monotonic_ns() - self._since_ns - TICK_NS
        self.ms.append(max(0, late_ns) / 1e6)
        while late_ns >= TICK_NS:  # what was due meanwhile waited as well
            late_ns -= TICK_NS
            self.ms.append(late_ns / 1e6)
        self._again()


@dataclass
class Stretch:
    """A time of one kind: its window in monotonic nanoseconds, the lag within it, the decisions made in it."""

    begin_ns: int = 0
    end_ns: int = 0
    lag_ms: list[float] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9

    def lag(self) -> dict[str, float]:
        """Return p50, p99 and the largest, milliseconds."""
        return {"p50": quantile(self.lag_ms, 0.5), "p99": quantile(self.lag_ms, 0.99), "max": max(self.lag_ms)}


@contextlib.asynccontextmanager
async def stretch() -> AsyncIterator[Stretch]:
    """Measure the lag of the block."""
    own = Stretch(begin_ns=time.monotonic_ns())
    with Lag() as lag:
        yield own
    own.lag_ms, own.end_ns = lag.ms, time.monotonic_ns()


# --- load -------------------------------------------------------------------------------------------------------------


def drive(url: str, rate: float, family: str) -> None:
    """Be the load of `family`, which takes the images of the default one, until standard input ends, with one request
    more at every line of it; then print [due ns, latency ms, status, variant] of every request, and how many were
    lost."""
    images, _ = fashion_rows()
    bodies = binary_bodies(images, 512)
    ended = False

    async def main() -> None:
        nonlocal ended

        def now(_: float) -> float:
            return 1e-9 if ended else rate  # the next request would be due after the end

        async def wait() -> None:
            nonlocal ended
            lines = asyncio.StreamReader()
            loop = asyncio.get_running_loop()
            try:
                await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
                while await lines.readline():
                    requests.send_one()
            finally:
                ended = True

        requests = OpenLoop(url, family, bodies, rate=now)
        waiting = asyncio.create_task(wait())
        result = await requests.run(FOREVER_S)
        await waiting
        samples = [[s.due_ns, s.latency_ms, s.status, s.variant] for s in result.samples]
        print(json.dumps({"samples": samples, "lost": result.lost}))

    uvloop.run(main())


@contextlib.asynccontextmanager
async def load(
    url: str, rate: float, into: dict[str, Any], family: str = "fashion"
) -> AsyncIterator[Callable[[], None]]:
    """Load on `url` from a process of its own; what it saw goes to `into` at the end.  Gives what has it send one
    request more at once."""
    arguments = ("-m", "bench.planning", "--drive", url, "--rate", str(rate), "--family", family)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments), cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdin is not None
        yield partial(process.stdin.write, b"\n")
        out, _ = await process.communicate(b"")  # nothing, which closes its input
        into.update(json.loads(out))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# --- changes ----------------------------------------------------------------------------------------------------------


class Changes:
    """Inputs of plans, in turn an intensity and a rate, none of them twice."""

    def __init__(self, rate: float, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._rate = rate
        self._number = 0

    def next(self) -> dict[str, float]:
        """Return arguments of one `plan` command."""
        self._number += 1
        if self._number % 2:
            return {"intensity_g_per_kwh": self._rng.uniform(*INTENSITIES)}
        return {"arrival_rate": self._rate * self._rng.uniform(0.5, 3.0)}


async def planning(server: clover.Server, changes: Changes, number: int) -> Stretch:
    """Plan `number` changes, one after another, as dry runs."""
    async with stretch() as own:
        for _ in range(number):
            arguments = changes.next()
            try:
                answer = await server.engine.controller.command("plan", dict(arguments), "bench")
            except CloverError:
                own.failed += 1
                continue
            own.decisions.append({"kind": next(iter(arguments)), **answer["decision"]})
    return own


async def idle(seconds: float) -> Stretch:
    """Wait as long, without planning."""
    async with stretch() as own:
        await asyncio.sleep(seconds)
    return own


async def applying(server: clover.Server, number: int) -> Stretch:
    """Follow `number` steps of the intensity, as the controller does by itself, each to its end."""
    engine = server.engine
    source: Any = engine.chain.links[0].source  # a constant, until somebody changes it
    async with stretch() as own:
        for step in range(number):
            g_per_kwh = source.g_per_kwh = STEPS[step % len(STEPS)] + step  # none of them twice
            found = await until(partial(made_at, server, g_per_kwh), LONGEST_STEP_S)
            if found is None:
                own.failed += 1
                continue
            own.decisions.append(found)
            await asyncio.sleep(1.0)
    return own


def made_at(server: clover.Server, g_per_kwh: float) -> dict[str, Any] | None:
    """Return the first decision with a plan at that intensity, whatever else was a reason for it."""
    plans = [d for d in server.engine.controller.decisions(100) if d["plan"] is not None]
    return next((d for d in reversed(plans) if d["inputs"]["intensity_g_per_kwh"] == g_per_kwh), None)


async def until(found: Callable[[], dict[str, Any] | None], seconds: float) -> dict[str, Any] | None:
    """Return what `found` gives once it gives something; None if it does not in time."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if (what := found()) is not None:
            return what
        await asyncio.sleep(0.05)
    return None


# --- the run ----------------------------------------------------------------------------------------------------------


async def run(options: argparse.Namespace, cache: str) -> dict[str, Any]:
    """Run the whole bench on one server."""
    control.INTERVAL_S = 0.2
    server = clover.Server(
        "fashion",
        port=0,
        device=options.device,
        cache_dir=cache,
        carbon=f"static:{STEPS[1]:g}",
        trace_speed=3000.0,  # a constant is read again every five minutes of grid time: ten times a second
        verify_s=0.5,
        energy_meter="modelled",
        log_level="error",
    )
    seen: dict[str, Any] = {}
    pairs: list[tuple[Stretch, Stretch]] = []
    async with server:
        controller = server.engine.controller
        first = controller.decisions(1)[0]
        async with load(server.url, options.rate, seen):
            family = controller.context.families["fashion"]
            if await until(lambda: {} if family.observed.get("rows") else None, 60.0) is None:
                print("no load arrived", file=sys.stderr)
            await asyncio.sleep(options.settle_s)
            await controller.command("freeze", {"on": True}, "bench")  # nothing but our own changes is planned
            await controller._solver.close()
            changes = Changes(options.rate)
            cold = await planning(server, changes, 1)
            await planning(server, changes, 2)  # warm
            for _ in range(options.rounds):
                busy = await planning(server, changes, options.changes)
                pairs.append((await idle(busy.seconds), busy))
                print(f"round {len(pairs)} of {options.rounds}: twice {busy.seconds:.1f} s", file=sys.stderr)
            workers = len(server.engine.served["fashion"].fleet.ready_assignments())
            await controller.command("freeze", {"on": False}, "bench")
            await asyncio.sleep(1.0)
            applied = await applying(server, options.applied) if options.applied else None
    return report(options, seen, pairs, first, cold, applied, workers)


def report(
    options: argparse.Namespace,
    seen: dict[str, Any],
    pairs: list[tuple[Stretch, Stretch]],
    first: dict[str, Any],
    cold: Stretch,
    applied: Stretch | None,
    workers: int,
) -> dict[str, Any]:
    """Print the tables; the figures."""
    where = f"{options.device}: paces emulated; {provenance()['cores']} cores, {workers} workers, solver niced"
    rows = []
    for number, (without, busy) in enumerate(pairs, 1):
        still, solving = without.lag(), busy.lag()
        rows.append([number, without.seconds, len(busy.decisions), *still.values(), *solving.values(),
                     solving["p99"] / max(still["p99"], 1e-9)])  # fmt: skip
    median = [statistics.median(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    columns = ["round", "s each", "plans", *(f"{kind} {name}" for kind in ("without", "with") for name in LAGS)]
    title = f"event loop lag in ms, without and with planning (measured)\n{where}"
    show(title, [*columns, "p99 with / without"], [*rows, ["median", *median]])

    decisions = [decision for _, busy in pairs for decision in busy.decisions]
    plans = {
        "all": decisions,
        "intensity": [d for d in decisions if d["kind"] == "intensity_g_per_kwh"],
        "rate": [d for d in decisions if d["kind"] == "arrival_rate"],
        "cold": cold.decisions,
        "first": [first],
        "applied": applied.decisions if applied is not None else [],
    }
    table = {name: seconds_of(own) for name, own in plans.items() if own}
    show(
        f"plans in seconds (measured)\n{where}",
        ["changes", *next(iter(table.values()))],
        [[name, *figures.values()] for name, figures in table.items()],
    )

    kinds = {"without": [a for a, _ in pairs], "with": [b for _, b in pairs], "applied": [applied] if applied else []}
    asked = {name: requests_in(seen, own) for name, own in kinds.items() if own}
    if applied is not None:
        asked["applied"] |= {f"lag {name}": value for name, value in applied.lag().items()}
        asked["applied"]["changed"] = sum(d["action"] == "applied" for d in applied.decisions)
    names = sorted({name for figures in asked.values() for name in figures})
    show(
        f"requests in ms by when they were due; changes that were applied (measured)\n{where}",
        ["figure", *asked],
        [[name, *(figures.get(name, "-") for figures in asked.values())] for name in names],
    )
    failed = sum(busy.failed for _, busy in pairs) + cold.failed + (applied.failed if applied is not None else 0)
    print(f"changes without a plan: {failed}; requests lost: {seen.get('lost', '-')}")
    return {
        "device": options.device,
        "workers": workers,
        "lag": [
            {"without": a.lag(), "with": b.lag(), "seconds": a.seconds, "plans": len(b.decisions)} for a, b in pairs
        ],
        "plans": table,
        "requests": asked,
        "without_plan": failed,
        "lost": seen.get("lost"),
    }


LAGS = ("p50", "p99", "max")


def seconds_of(decisions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return how long plans took, in the solver and for the controller, and how many of them more than `TARGET_S`."""
    solver = [d["plan"]["seconds"] for d in decisions]
    waited = [d["seconds"] for d in decisions]
    return {
        "plans": len(decisions),
        "Plan.seconds p50": quantile(solver, 0.5),
        "max": max(solver),
        "round trip p50": quantile(waited, 0.5),
        "max ": max(waited),
        f"round trips > {TARGET_S:g} s": sum(seconds > TARGET_S for seconds in waited),
    }


def requests_in(seen: dict[str, Any], stretches: Sequence[Stretch]) -> dict[str, float]:
    """Return the requests that were due in one of `stretches`."""
    samples = [
        (ms, status)
        for due_ns, ms, status, _ in seen.get("samples", ())
        if any(own.begin_ns <= due_ns < own.end_ns for own in stretches)
    ]
    good = [ms for ms, status in samples if status == 200]
    return {
        "requests": len(samples),
        "not answered with 200": len(samples) - len(good),
        "request p50": quantile(good, 0.5),
        "request p99": quantile(good, 0.99),
        "request max": max(good, default=float("nan")),
    }


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="emulated:a100-40gb:10", help="the box")
    parser.add_argument("--changes", type=int, default=12, help="changes to plan for in each stretch with planning")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of stretches, whose median counts")
    parser.add_argument("--applied", type=int, default=4, help="steps of the intensity that are followed for real")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--settle-s", type=float, default=12.0, help="seconds of load before anything is measured")
    parser.add_argument("--cache-dir", default="", help="profiles and the emulated box; a temporary folder otherwise")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    parser.add_argument("--drive", default="", help=argparse.SUPPRESS)
    parser.add_argument("--family", default="fashion", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive, options.rate, options.family)
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = uvloop.run(run(options, options.cache_dir or str(Path(folder) / "cache")))
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
