"""A day of a carbon-intensity trace replayed against live traffic, schemes one after the other at equal load.

    python -m bench.day TRACE.csv [--schemes base,clover] [--hour-s 10] [--hours 24] [--peak RATE] [--json FILE]
    python -m bench.day TRACE.csv --schemes base,budget,static+cascade,budget+cascade --accuracy-budget 0.5
    python -m bench.day TRACE.csv --schemes budget+cascade/now,budget+cascade/wait --hours 48 --waiting-share 0.33
    python -m bench.day TRACE.csv --simulated [--family fashion]

`base` is BASE and `clover` the server's objective; the others are policies by their names, `budget`, `static` and
`budget:flat`, over mixes, or over cascades with `+cascade`.  A budget runs over the hours replayed, its floor twice the
budget below the best variant, without a margin.

For every grid hour: intensity, deployment and chain, how often thresholds were turned and the configuration changed,
accuracy scored by labels and as the profile expects it of what was served, p95, worker CPU seconds and joules a
request, grams a thousand requests.  Every hour walks the labelled images in an order of its own; its accuracy is that
of the whole passes it served (of all its requests, with their 95 % interval, where it served less than one), so that
hours differ by what answered and not by which images happened to come.  All get the same requests at the same times.
CPU seconds are measured (the workers' own CPU clocks); joules are measured or modelled as the energy meter of the box
allows, and labelled.  The images are held out: thresholds were chosen on others.

`/wait` or `/now` behind a scheme sends `--waiting-share` of the rows as batch jobs instead of requests: one in each
hour but the last 24, due within a day of the grid, which waits for clean hours or starts at once.

`--simulated` plays the day on the virtual clock instead (`python -m clover simulate --scenario day`), and prints what
every hour ran: all of that is modelled, but for accuracies, which were counted on the same held-out images.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop

from bench.common import ServerProcess, binary_bodies, fashion_rows, json_bodies, served, show, write_json
from bench.load import Body, Check, Result, Sample, open_loop, quantile
from bench.oracle import expected, scorer
from bench.waiting import call, lines_of, upload
from clover.research.simulate import day, families, loads, world
from clover.research.simulate.work import summaries

HOURS = 24
_TRIAL_ROWS = 8000


class Walk:
    """The body of each request: in every hour all of them in a fresh order, again and again."""

    def __init__(self, bodies: list[Body], hour_s: float, seed: int) -> None:
        self._bodies, self._hour_s, self._seed = bodies, hour_s, seed
        self._hour = -1
        self._order: list[int] = []
        self._next = 0

    def __call__(self, due_s: float) -> Body:
        hour = int(due_s / self._hour_s)
        if hour != self._hour:
            self._hour, self._next = hour, 0
            self._order = np.random.default_rng((self._seed, hour)).permutation(len(self._bodies)).tolist()
        body = self._bodies[self._order[self._next % len(self._order)]]
        self._next += 1
        return body


def demand(peak: float, hour_s: float, mean: float = 0.8, swing: float = 0.2) -> Any:
    """Return requests a second by elapsed seconds: a diurnal curve with its peak in the afternoon."""
    return lambda t: peak * (mean + swing * math.cos(2 * math.pi * (t / hour_s - 15) / 24))


class BatchJobs:
    """The part of a day's rows that are batch jobs, one an hour.

    A first job is from before the day, so that the server knows how many rows a second it spares."""

    def __init__(self, server: ServerProcess, carbon: str, options: argparse.Namespace) -> None:
        self._server, self._carbon = server, carbon
        self._bodies = json_bodies(fashion_rows()[0], 512)
        hour_s, rate = options.hour_s, demand(options.waiting_share * options.peak, options.hour_s)
        self._rows = [round(hour_s * rate((hour + 0.5) * hour_s)) for hour in range(options.hours - HOURS)]
        self.send(_TRIAL_ROWS, "now")
        while self.counts()["rows"] < _TRIAL_ROWS:
            time.sleep(0.1)
        self._before = self.counts()

    def send_hour(self, hour: int) -> None:
        """Send the rows of an hour, if it has some."""
        if hour < len(self._rows):
            self.send(self._rows[hour], self._carbon)

    def send(self, rows: int, carbon: str) -> None:
        """Send a job of as many rows."""
        file = upload(self._server, lines_of("fashion", self._bodies, rows, pictures=False))
        job = {"input_file_id": file, "endpoint": "/v2/models/fashion/infer", "completion_window": "24h"}
        call(self._server, "POST", "/v1/batches", json.dumps({**job, "metadata": {"carbon": carbon}}).encode())

    def counts(self) -> dict[str, float]:
        """Return rows, joules and grams that were answered so far, and how many jobs are late."""
        jobs = call(self._server, "GET", "/v1/batches?limit=100")["data"]
        return {
            "rows": sum(job["request_counts"]["completed"] for job in jobs),
            "joules": sum(job["clover"]["energy_j"] for job in jobs),
            "grams": sum(job["clover"]["carbon_g"] for job in jobs),
            "late": sum((job["completed_at"] or 0) > job["expires_at"] or bool(job["expired_at"]) for job in jobs),
        }

    def of_day(self) -> dict[str, float]:
        """Return the same of the day alone."""
        return {key: value - self._before[key] for key, value in self.counts().items()}


@dataclass(slots=True)
class Marks:
    """Cumulative worker CPU seconds, the state of the server, and what waited, at every hour's end."""

    cpu_s: list[float] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    waited: list[dict[str, float]] = field(default_factory=list)


def worker_cpu_s(metrics: dict[str, float]) -> float:
    """Return CPU seconds all workers have used on batches."""
    return sum(value for name, value in metrics.items() if name.startswith("clover_worker_cpu_seconds_total"))


def run(
    server: ServerProcess, bodies: list[Body], check: Check, options: argparse.Namespace, carbon: str
) -> tuple[Result, Marks]:
    """Drive one day; a thread reads the server's state in the middle and its counters at the end of each hour."""
    marks = Marks()
    jobs = BatchJobs(server, carbon, options) if carbon else None
    peak = options.peak * (1.0 - options.waiting_share if jobs else 1.0)
    stop = threading.Event()
    begin = time.monotonic()

    def watch() -> None:
        marks.cpu_s.append(worker_cpu_s(server.metrics()))
        for hour in range(options.hours):
            if jobs is not None:
                jobs.send_hour(hour)
            if stop.wait(max(0.0, begin + (hour + 0.5) * options.hour_s - time.monotonic())):
                return
            marks.states.append(server.get("/v2/clover/state"))
            if stop.wait(max(0.0, begin + (hour + 1) * options.hour_s - time.monotonic())):
                return
            marks.cpu_s.append(worker_cpu_s(server.metrics()))
            marks.waited += [jobs.of_day()] if jobs is not None else []

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = uvloop.run(
            open_loop(
                server.url,
                "fashion",
                Walk(bodies, options.hour_s, options.seed),
                rate=demand(peak, options.hour_s),
                seconds=options.hours * options.hour_s,
                seed=options.seed,
                check=check,
            )
        )
    except BaseException:
        stop.set()
        raise
    finally:
        thread.join()
    return result, marks


def whole_passes(samples: list[Sample], rows: int) -> list[Sample]:
    """Return the samples, in the order they were due, of as many whole passes over `rows` images as there are; all of
    them where there is not one."""
    whole = len(samples) // rows * rows
    return sorted(samples, key=lambda sample: sample.due_ns)[: whole or len(samples)]


def by_hour(result: Result, marks: Marks, hour_s: float, rows_of_set: int) -> list[dict[str, Any]]:
    """Return the table's rows."""
    first = result.begin_ns
    hours: list[list[Sample]] = [[] for _ in marks.states]
    for sample in result.samples:
        hours[min(len(hours) - 1, int((sample.due_ns - first) / 1e9 / hour_s))].append(sample)
    rows = []
    for hour, samples in enumerate(hours):
        good = [s for s in samples if s.status == 200]
        mix = Counter(s.variant for s in good)
        scored = [s for s in whole_passes(samples, rows_of_set) if s.status == 200]
        right, tried = sum(bool(s.correct) for s in scored), max(1, len(scored))
        state = marks.states[hour]
        model, before = (of["models"]["fashion"] for of in (state, marks.states[max(0, hour - 1)]))
        rows.append(
            {
                "hour": hour,
                "g_per_kwh": state["intensity"]["g_per_kwh"],
                "deployment": deployment_text(state),
                "chain": chain_text(model["routing"]),
                "turned": model["thresholds_moved"] - (before["thresholds_moved"] if hour else 0),
                "changed": model["changes"] - (before["changes"] if hour else 1),
                "served": " ".join(f"{name} {n / len(good):.0%}" for name, n in mix.most_common()),
                "requests": len(samples),
                "failed": len(samples) - len(good),
                "scored": len(scored),
                "accuracy": 100 * right / tried,
                "+-": 0.0 if tried % rows_of_set == 0 else 196 * math.sqrt(right * (tried - right) / tried**3),
                "expected": sum(s.accuracy for s in good) / max(1, len(good)),
                "p95_ms": quantile([s.latency_ms for s in good], 0.95),
                "cpu_ms_per_req": 1e3 * (marks.cpu_s[hour + 1] - marks.cpu_s[hour]) / max(1, len(good)),
                "j_per_req": sum(s.energy_j for s in good) / max(1, len(good)),
                "g_per_1000": sum(s.carbon_mg for s in good) / max(1, len(good)),
                "cores": (marks.cpu_s[hour + 1] - marks.cpu_s[hour]) / hour_s,
                "waiting": _rise(marks.waited, "rows", hour),
            }
        )
    return rows


def _rise(counted: list[dict[str, float]], key: str, hour: int) -> float:
    """Return by how much a count rose in an hour."""
    return counted[hour][key] - (counted[hour - 1][key] if hour else 0.0) if counted else 0.0


def deployment_text(state: dict[str, Any]) -> str:
    """Return what runs, as `2 x large@1c`."""
    counts = Counter(f"{worker['variant']}@{worker['profile']}" for worker in state["models"]["fashion"]["deployment"])
    return " + ".join(f"{n} x {name}" for name, n in sorted(counts.items()))


def chain_text(routing: dict[str, Any]) -> str:
    """Return a cascade as `small<0.705>large`; nothing without one."""
    goes_on = [f"{name}<{at:.3f}" for name, at in zip(routing["chain"], routing["thresholds"], strict=False)]
    return ">".join([*goes_on, routing["chain"][-1]]) if routing["chain"] else ""


def totals(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the day's sums, weighted by requests."""
    requests = sum(row["requests"] for row in rows)
    scored = sum(row["scored"] for row in rows)
    weighted = ("expected", "cpu_ms_per_req", "j_per_req", "g_per_1000")
    return {
        "requests": requests,
        "failed": sum(row["failed"] for row in rows),
        "worst_p95_ms": max(row["p95_ms"] for row in rows),
        "accuracy": sum(row["accuracy"] * row["scored"] for row in rows) / max(1, scored),
        "least_accuracy": min(row["accuracy"] for row in rows),
        "turned": sum(row["turned"] for row in rows),
        "changed": sum(row["changed"] for row in rows),
        **{key: sum(row[key] * row["requests"] for row in rows) / requests for key in weighted},
    }


def words_of(scheme: str, options: argparse.Namespace, best: float) -> list[str]:
    """Return what a server is started with for a scheme."""
    policy, plus, _ = scheme.partition("+")
    words = ["--policy", "objective" if policy == "clover" else policy]
    if policy in ("budget", "static", "budget:flat"):
        lost = options.accuracy_budget
        words += ["--accuracy-budget", str(lost), "--budget-horizon", str(3600.0 * max(1, options.hours))]
        words += ["--accuracy-margin", "0"]
        if not options.accuracy_floor:
            words += ["--accuracy-floor", str(round(best - 2.0 * lost, 4))]
    return [*words, "--cascade" if plus else "--no-cascade", "--no-waits", "--reference-g-per-kwh", "250"]


def simulated(options: argparse.Namespace) -> dict[str, Any]:
    """Return the day on the virtual clock: a table of the schemes, and the hours under the budget with cascades."""
    machine = world.cpu()
    known = families.load(options.family, machine.shapes)
    rules = world.Rules(accuracy_budget=options.accuracy_budget, slo_ms=float(options.slo_ms or 0.0) or None)
    load = loads.parse(f"diurnal:{0.8 * options.peak:g}/s")
    traces = world.traces([options.trace], options.start, float(options.hours))
    scenario = day.Day(day.DayOptions(machine=machine, known=[known], traces=traces, load=load, rules=rules, seeds=1))
    runs = scenario.play(lambda own, trace, number: None)
    found = summaries(runs)
    target = max(item.value for item in known.profile.accuracy) - options.accuracy_budget
    show(
        f"{traces[0].name}, {load.name}, budget {target:.2f} %: modelled; accuracies counted on held-out images",
        ["scheme", "saves", "active", "accuracy", "off", "turned", "changes", "still", "p95 ms", "above"],
        [
            [
                item.policy, f"{item.saving:.1%}", f"{item.active_saving:.1%}", f"{item.accuracy:.3f}",
                f"{item.accuracy - target:+.3f}", item.turned, item.changes, f"{item.still:.1%}", item.p95_ms,
                f"{item.above:.1%}",
            ]
            for item in found
        ],
    )  # fmt: skip
    run = next(run for run in runs if run.policy == day.STEERED)
    per_hour = round(3600.0 / run.steps[0].seconds)
    hours = [run.steps[at : at + per_hour] for at in range(0, len(run.steps), per_hour)]
    show(
        f"{day.STEERED}, hour by hour",
        ["hour", "g/kWh", "rows/s", "deployment", "chains", "accuracy", "turned", "changes"],
        [
            [
                at, sum(step.g_per_kwh for step in steps) / len(steps), steps[0].rate, steps[-1].deployment,
                ", ".join(dict.fromkeys(step.chain or "alone" for step in steps)),
                f"{sum(step.rows * step.accuracy for step in steps) / sum(step.rows for step in steps):.3f}",
                sum(step.turned for step in steps), sum(step.changes for step in steps),
            ]
            for at, steps in enumerate(hours)
        ],
    )  # fmt: skip
    return {"simulated": [msgspec.to_builtins(item) for item in found], "target": target}


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help="CSV of a carbon-intensity trace; its first hours from --start are replayed")
    parser.add_argument("--schemes", default="clover,base", help="names above, the last one is what is compared with")
    parser.add_argument("--start", default="", help="grid time to start at (ISO 8601)")
    parser.add_argument("--hour-s", type=float, default=20.0, help="wall seconds of one grid hour")
    parser.add_argument("--hours", type=int, default=HOURS, help="grid hours to replay")
    parser.add_argument("--peak", type=float, default=450.0, help="requests a second at the daily peak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--waiting-share", type=float, default=0.33, help="part of the rows that are batch jobs")
    parser.add_argument("--accuracy-budget", type=float, default=0.5, help="points below the best variant")
    parser.add_argument("--accuracy-floor", default="", help="percent; the default of the server otherwise")
    parser.add_argument("--slo-ms", default="", help="p95 target; the default of the server otherwise")
    parser.add_argument("--objective", default="", help="form of the objective: paper or floor; the default otherwise")
    parser.add_argument("--simulated", action="store_true", help="on the virtual clock, without a server")
    parser.add_argument("--family", default="fashion", help="with --simulated: a name, or a profile.json")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    if options.simulated:
        write_json(options.json, simulated(options))
        return
    images, labels = fashion_rows()
    bodies = binary_bodies(images, len(images))
    answers = expected(images)
    check = scorer(answers, labels)
    best = max(100.0 * float(np.mean(own.argmax(axis=1) == labels)) for own in answers.values())
    shared = ["fashion", "--carbon", f"trace:{Path(options.trace).resolve()}"]
    shared += ["--trace-speed", str(3600 / options.hour_s)]
    if options.start:
        shared += ["--trace-start", options.start]
    for flag in ("accuracy_floor", "slo_ms", "objective"):
        if value := getattr(options, flag):
            shared += [f"--{flag.replace('_', '-')}", value]
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.schemes.split(","):
            scheme, _, carbon = name.partition("/")
            words = [*shared, *words_of(scheme, options, best), "--state-dir", f"{folder}/{name.replace('/', '-')}"]
            with served(words, log=Path(folder) / "server.log") as server:
                result, marks = run(server, bodies, check, options, carbon)
            rows = by_hour(result, marks, options.hour_s, len(images))
            targets = marks.states[-1]["models"]["fashion"]["targets"]
            waited = {f"waiting_{key}": value for key, value in marks.waited[-1].items()} if marks.waited else {}
            day = {**totals(rows), **waited}
            report[name] = {"hours": rows, "day": day, "targets": targets, "mismatched": result.mismatched()}
            show(f"{name}: targets {targets}", list(rows[0]), [list(row.values()) for row in rows])
    days = {name: part["day"] for name, part in report.items()}
    base = days["base"] if "base" in days else next(reversed(days.values()))
    show(
        f"the day; the best variant alone is right on {best:.2f} % of these images",
        ["figure", *(f"{name} (/ base)" for name in days)],
        [
            [key, *(f"{of[key]:.4g}" + (f" ({of[key] / base[key]:.3f})" if base[key] else "") for of in days.values())]
            for key in base
        ],
    )
    write_json(options.json, report)


if __name__ == "__main__":
    main()
