"""Does the carbon report agree with what clients were billed and with the server's own counters?

    python -m bench.audit TRACE.csv                       # two days in five minutes, a restart and a kill in them
    python -m bench.audit TRACE.csv --days 7 --minutes 20

Days of TRACE.csv are replayed at speed through a server that keeps a ledger, under a diurnal load.  After half of the
time the server is restarted, after three quarters it is killed (SIGKILL) while it answers, and started again.  Then the
books are compared:

 - joules that clients found in their receipts, with those that the ledger has as billed;
 - the server's counters of each device just before each end, with the lines of the account in the ledger;
 - the lines with the sum of receipts and of what no receipt bills (idle while nobody asked, control, unattributed);
 - `clover report`, with the lines.

A kill loses what the ledger had not written, a flush interval and a second at most: the table says how much of each sum
that is.  Joules are measured or modelled as the meter of the machine allows, or emulated on an emulated device; that
they agree is shown, not that they are right.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import ServerProcess, binary_bodies, fashion_rows, served, show, write_json
from bench.load import Result, open_loop
from clover.accounting.devices import LINES
from clover.server.ledger import FLUSH_S
from clover.telemetry.ledger import LedgerReader

LOST_S = FLUSH_S + 1.0
"""Seconds that a kill may lose: since the last write, of figures that are taken once a second."""
PARTS = (("restarted", 0.5), ("killed", 0.25), ("ended", 0.25))
"""How each run of the server ends, and its part of the time."""


@dataclass
class RunBooks:
    """One run of the server: what clients were billed (joules, requests), and its counters just before its end."""

    end: str
    billed_j: float = 0.0
    answered: int = 0
    failed: int = 0
    late_j: float = 0.0
    """Of `billed_j`, what was answered within `LOST_S` of the end."""
    devices_j: float = 0.0
    lines_j: float = 0.0
    carried_j: float = 0.0
    model_j: float = 0.0
    unbilled_j: float = 0.0
    """Of `model_j`, all that is the model's, what is in no receipt."""
    watts: float = 0.0
    lines: dict[str, float] = field(default_factory=dict)


def read_counters(server: ServerProcess, books: RunBooks) -> None:
    """Note the counters of the server in `books`."""
    found = server.get("/v2/clover/state")["totals"]
    devices = found["devices"].values()
    books.devices_j = sum(device["measured_j"] for device in devices)
    books.lines = {line: sum(device[f"{line}_j"] for device in devices) for line in LINES}
    books.carried_j = books.lines.pop("carried")
    books.lines_j = sum(books.lines.values())
    totals = found["models"]["fashion"]
    books.model_j = totals["energy_j"]
    books.unbilled_j = sum(totals[f"{part}_j"] for part in ("idle_no_request", "unbilled", "control"))


def bill(result: Result, books: RunBooks, ended_ns: int) -> None:
    """Note what the answers of `result` were billed in `books`."""
    for sample in result.samples:
        if sample.status == 200:
            books.billed_j += sample.energy_j
            books.answered += 1
            if sample.done_ns > ended_ns - LOST_S * 1e9:
                books.late_j += sample.energy_j
    books.failed = result.failed()


def play(options: argparse.Namespace, folder: Path) -> list[RunBooks]:
    """Serve, restart, kill; return the books of each run."""
    images, _ = fashion_rows()
    bodies = binary_bodies(images, 512)
    total_s = 60.0 * options.minutes
    source = "synthetic" if options.trace == "synthetic" else f"trace:{options.trace}"
    speed = options.days * 86_400.0 / total_s
    arguments = [
        *("fashion", "--device", options.device, "--state-dir", str(folder), "--ledger", "on"),
        *("--carbon", source, "--trace-speed", str(speed)),
        *("--ledger-name", "audit"),
    ]
    started_s = time.monotonic()
    found = []

    def rate(elapsed_s: float) -> float:
        day = (time.monotonic() - started_s) * speed / 86_400.0
        return float(options.rate) * (0.7 + 0.3 * math.cos(2.0 * math.pi * (day - 15 / 24)))

    for end, part in PARTS:
        books = RunBooks(end)
        with served(arguments, log=folder / "server.log") as server:
            began_s = time.monotonic()

            async def load(server: ServerProcess = server, seconds: float = part * total_s) -> Result:
                return await open_loop(server.url, "fashion", bodies, rate=rate, seconds=seconds)

            if end == "killed":

                async def killed(server: ServerProcess = server, books: RunBooks = books) -> tuple[Result, int]:
                    # Connections that cannot be made any more are what is expected here.
                    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
                    loading = asyncio.create_task(load())
                    await asyncio.sleep(PARTS[1][1] * total_s - 1.0)
                    await asyncio.to_thread(read_counters, server, books)
                    server.process.kill()
                    ended_ns = time.monotonic_ns()
                    return await loading, ended_ns

                result, ended_ns = asyncio.run(killed())
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.process.wait(10)
            else:
                result = asyncio.run(load())
                time.sleep(2.5)  # the meter's windows of the last answers
                read_counters(server, books)
                ended_ns = time.monotonic_ns()
        bill(result, books, ended_ns)
        books.watts = books.devices_j / (ended_ns / 1e9 - began_s)
        found.append(books)
        print(f"{end}: {books.answered} answers, {books.failed} not, {books.devices_j:.1f} J", flush=True)
    return found


def ledger_sums(path: Path) -> dict[str, float]:
    """Return the joules of the ledger: all lines, by line, and billed."""
    with LedgerReader(path) as reader:
        lines = reader.lines()
        usage = reader.usage()
    found = {"lines": sum(row.joules for row in lines), "billed": sum(row.receipts_j for row in usage)}
    for row in lines:
        found[f"line {row.line}"] = found.get(f"line {row.line}", 0.0) + row.joules
    for part in ("active_j", "idle_j", "front_end_j", "control_j"):
        found[part] = sum(getattr(row, part) for row in usage)
    found["rows"] = sum(row.rows for row in usage)
    found["ok"] = sum(row.ok for row in usage)
    return found


def reported(path: Path) -> dict[str, Any]:
    """Return what `clover report` says, as JSON."""
    tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400.0))  # or it leaves the newest minute out
    command = [sys.executable, "-m", "clover", "report", str(path), "--format", "json", "--to", tomorrow]
    document: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return document


def main() -> int:
    """Run the bench; return 1 if the books do not agree."""
    parser = argparse.ArgumentParser(description="Compare receipts, counters, ledger and report over replayed days.")
    parser.add_argument("trace", help="a file of carbon intensities, or synthetic")
    parser.add_argument("--days", type=float, default=2.0, help="days of the trace that are replayed [2]")
    parser.add_argument("--minutes", type=float, default=5.0, help="minutes in which [5]")
    parser.add_argument("--rate", type=float, default=60.0, help="most requests a second [60]")
    parser.add_argument("--device", default="cpu", help="as --device of clover serve [cpu]")
    parser.add_argument("--keep", default="", metavar="DIR", help="keep ledger and log in this folder")
    parser.add_argument("--json", default="", metavar="FILE", help="write figures there")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(options.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        runs = play(options, folder)
        (path,) = folder.rglob("*.db")
        sums, report = ledger_sums(path), reported(path)
    return judge(options, runs, sums, report)


def judge(options: argparse.Namespace, runs: list[RunBooks], sums: dict[str, float], report: dict[str, Any]) -> int:
    """Print how the books agree; return 1 if they do not, within the bounds that the columns name."""
    killed = next(run for run in runs if run.end == "killed")
    may_lose = LOST_S * killed.watts
    billed, devices = sum(run.billed_j for run in runs), sum(run.devices_j for run in runs)
    counted, carried = sum(run.lines_j for run in runs), sum(run.carried_j for run in runs)
    boundary = report_joules(report)
    modelled = sum(sums[f"line {line}"] for line in ("active", "idle", "idle_no_request", "control"))
    by_model = sums["active_j"] + sums["idle_j"] + sums["control_j"]
    rows = [
        ("receipts of clients, and as billed in the ledger", billed, sums["billed"], 0.001, killed.late_j),
        ("counters of devices, and lines in the ledger", devices, sums["lines"] - carried, 0.005, may_lose),
        ("lines of the state, and lines in the ledger", counted, sums["lines"], 0.001, may_lose),
        ("active, idle and control: lines, and by model", modelled, by_model, 0.001, 0.0),
        (
            "what the model used: receipts and the rest, and the state",
            billed + sum(run.unbilled_j for run in runs),
            sum(run.model_j for run in runs),
            0.001,
            killed.late_j,
        ),
        ("lines in the ledger, and clover report", sums["lines"], boundary, 0.001, 0.0),
    ]
    table, agree = [], True
    for what, one, two, bound, lost in rows:
        off = abs(one - two)
        good = off <= bound * max(one, two) + lost
        agree = agree and good
        table.append(
            (what, f"{one:.3f}", f"{two:.3f}", f"{off / max(one, 1e-9):.4%}", f"{bound:.1%}", f"{lost:.2f}", good)
        )
    show(
        f"{options.days:g} days of {options.trace} in {options.minutes:g} min on {options.device}",
        ("joules", "one", "other", "apart", "bound", "a kill may lose", "agree"),
        table,
    )
    print({run.end: (run.answered, run.failed) for run in runs}, "answers in the ledger:", int(sums["ok"]))
    if options.json:
        write_json(options.json, {"runs": [vars(run) for run in runs], "ledger": sums, "report": boundary})
    return 0 if agree else 1


def report_joules(report: dict[str, Any]) -> float:
    """Return the joules of all lines in a report."""
    return float(sum(line["joules"] for line in report["lines"]))


if __name__ == "__main__":
    sys.exit(main())
