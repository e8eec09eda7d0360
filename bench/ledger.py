"""What a ledger costs: bytes a day, and how late the event loop is with and without one.

    python -m bench.ledger size                     # two days at 1 model x 4 slices x 3 tenants, replayed at speed
    python -m bench.ledger lag --seconds 20         # the same loop with and without a ledger, in turns

`size` drives the real collector, writer and folding by a clock of its own: figures are made up, rows are real.  `lag`
measures how much later than asked for a sleep of a millisecond ends, in one process, while another coroutine takes a
snapshot of that size each second and hands it to the real thread; so it shows what the ledger adds to a loop that does
nothing else.  All numbers are measured here, but for the figures in the rows.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.collector import Collector
from clover.telemetry.ledger.files import size_bytes
from clover.telemetry.ledger.latency import BOUNDS_MS
from clover.telemetry.ledger.rows import EventRow
from clover.telemetry.ledger.schema import DAY_S
from clover.telemetry.ledger.snapshot import (
    Amount,
    CellCounts,
    CellKey,
    ComparedCounts,
    GridMoment,
    ModelCounts,
    Snapshot,
)
from clover.telemetry.ledger.store import LedgerBatch, RunStart
from clover.telemetry.ledger.writing import LedgerThread, Retention

SLICES = tuple(f"1c@{index}" for index in range(4))
TENANTS = ("", "acme", "umbrella")
LINES = ("active", "front_end", "control", "idle", "idle_no_request", "unowned", "unattributed")
KEY = ("GB", "neso", "average", "lifecycle", "live")
PUE = 1.5
START = RunStart(0.0, "bench", "bench", 0, "0", "{}")


def snapshot(at_s: float, mono_s: float) -> Snapshot:
    """Return what a server has counted after `mono_s` seconds at 100 rows/s."""
    seconds = mono_s
    spent = Amount(seconds * 2.0, seconds * 2e-4)
    rows = int(seconds * 100 / len(SLICES) / len(TENANTS))
    return Snapshot(
        at_s,
        mono_s,
        lines={("cpu0", line): ("modelled", spent) for line in LINES},
        cells={
            CellKey("fashion", "small", "cpu0", place, tenant): CellCounts(rows, {"modelled": spent})
            for place in SLICES
            for tenant in TENANTS
        },
        idle={("fashion", "small", "modelled"): spent},
        overheads={("fashion", line, "modelled"): spent for line in ("front_end", "control")},
        requests={("fashion", tenant): {200: rows, 429: rows // 100} for tenant in TENANTS},
        models={
            "fashion": ModelCounts(
                receipts_j=dict.fromkeys(TENANTS, seconds / len(TENANTS)),
                rows=rows * 12,
                accuracy_rows=rows * 1080.0,
                labelled=rows // 10,
                right=rows // 11,
                slo_ms=20.0,
                answered=rows * 12,
                violations=rows // 50,
                held=int(seconds / 10),
                missed=0,
                latency=[min(rows * 12, rows * max(0, bucket - 20)) for bucket in range(len(BOUNDS_MS))],
            )
        },
        compared={
            ("fashion", "server", against): ComparedCounts(
                "modelled", rows, spent, spent, rows * 90.0, rows * 91.0, 1e-3
            )
            for against in ("base", "fixed")
        },
        metered_s={"cpu0": mono_s, "": mono_s},
    )


def seconds_of(days: float, step_s: float) -> Iterator[float]:
    """Yield the seconds at which a ledger is written."""
    count = int(days * DAY_S / step_s)
    return (step_s * index for index in range(1, count + 1))


def size(days: float, folder: Path) -> None:
    """Replay `days` and print bytes a day, as minutes, and then folded."""
    path, began = folder / "size.db", time.perf_counter()
    clock = [0.0]
    ledger = LedgerThread(path, START, Retention(), wall=lambda: clock[0], monotonic=lambda: clock[0])
    collector = Collector(0.0, 0.0, PUE)
    for at_s in seconds_of(days, 10.0):
        clock[0] = at_s
        collector.grid(GridMoment(at_s, at_s, KEY, 200.0 + at_s % 50, 120.0, int(at_s * 12e6), int(at_s * 12e5)))
        collector.take(snapshot(at_s, at_s))
        if at_s % 3600 == 0:
            for _ in range(4):
                collector.event(
                    EventRow(at_s, "decision", "fashion", "kept: intensity changed", '{"x": "' + 800 * "y" + '"}')
                )
        if (batch := collector.flush(at_s)) is not None:
            ledger.write(batch)
    ledger.end()
    took_s = time.perf_counter() - began
    with LedgerReader(path) as found:
        sums = found.sums()
        counted = sum(amount.joules for _, amount in snapshot(days * DAY_S, days * DAY_S).lines.values())
        rows = sum(len(read()) for read in (found.usage, found.lines, found.grid, found.quality, found.saved))
    per_day = size_bytes(path) / days
    print(f"{days:g} days replayed in {took_s:.1f} s: {rows} rows, {ledger.status.flushes} flushes")
    print(f"joules in the ledger {sums.joules:.6f}, counted {counted:.6f}")
    print(f"by the minute: {per_day / 1e6:.2f} MB a day ({per_day * days / rows:.0f} bytes a row, measured)")
    for name, retention in (("hour", Retention(0.0)), ("day", Retention(0.0, 0.0))):
        clock[0] = (days + 2) * DAY_S
        folding = LedgerThread(path, START, retention, wall=lambda: clock[0], monotonic=lambda: clock[0])
        folding.write(LedgerBatch(1, clock[0]))
        folding.end()
        print(f"by the {name}: {size_bytes(path) / days / 1e3:.1f} kB a day (events included, measured)")


async def lateness(seconds: float, ledger: LedgerThread | None) -> list[float]:
    """Return by how many microseconds sleeps of a millisecond were late, sorted."""
    found: list[float] = []
    collector, began = Collector(time.time(), time.monotonic(), PUE), time.monotonic()

    async def keep() -> None:
        assert ledger is not None
        while True:
            await asyncio.sleep(1.0)  # ten times as often as a server writes
            at_s, mono_s = time.time(), time.monotonic()
            joules = int((mono_s - began) * 12e6)
            collector.grid(GridMoment(at_s, mono_s, KEY, 200.0, 120.0, joules, joules // 10))
            collector.take(snapshot(at_s, mono_s - began))
            if (batch := collector.flush(at_s)) is not None:
                ledger.put(batch)

    task = asyncio.get_running_loop().create_task(keep()) if ledger is not None else None
    while time.monotonic() < began + seconds:
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        found.append((time.perf_counter() - before - 0.001) * 1e6)
    if task is not None:
        task.cancel()
    return sorted(found)


def lag(seconds: float, rounds: int, folder: Path) -> None:
    """Print how late a loop is without and with a ledger, in turns."""
    import uvloop

    every: dict[bool, list[float]] = {False: [], True: []}
    for index in range(2 * rounds):
        kept = index % 2 == 1
        ledger = LedgerThread(folder / f"lag{index}.db", START) if kept else None
        if ledger is not None:
            ledger.start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            every[kept] += runner.run(lateness(seconds, ledger))
        if ledger is not None:
            ledger.close()
    for kept, found in every.items():
        found.sort()
        late = {name: found[int(q * len(found))] for name, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))}
        words = ", ".join(f"{name} {value:.0f} us" for name, value in late.items())
        print(f"{'with' if kept else 'without'} a ledger: loop late by {words} ({len(found)} sleeps, measured)")
    collector, times = Collector(0.0, 0.0, PUE), []
    for at_s in range(10, 3010, 10):
        before = time.thread_time()
        collector.take(snapshot(float(at_s), float(at_s)))
        collector.flush(float(at_s))
        times.append((time.thread_time() - before) * 1e6)
    times.sort()
    middle, most = times[len(times) // 2], times[int(0.99 * len(times))]
    print(f"a flush on the loop: {middle:.0f} us of CPU, p99 {most:.0f} us (measured)")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("size", "lag"))
    parser.add_argument("--days", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clover-bench-ledger-") as folder:
        if given.what == "size":
            size(given.days, Path(folder))
        else:
            lag(given.seconds, given.rounds, Path(folder))


if __name__ == "__main__":
    main()
