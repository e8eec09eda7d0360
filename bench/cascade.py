"""Cascades live, beside BASE and the mix: accuracy by labels over HTTP, worker CPU a row, p95, at one rate.

    python -m bench.cascade [--device cpu] [--rate R] [--passes 6] [--slo-ms 10] [--waits] [--json FILE]

Servers of the default family take turns, each under open-loop load (Poisson) of whole passes over the 5,000 held-out
images, one a request, in an order of its own, at the same rate: by default 0.6 of what BASE serves in a closed loop.

`base`      the best variant on whole devices
`cascade`   `--cascade --objective floor` at several accuracy floors, without a margin
`mix`       the same without `--cascade`, its floor where the cascade before it landed

Batching rules are the same for all: as rows come, or with `--waits` fuller batches as far as the SLO allows (`base` is
the policy `static` of the best variant then: that of the paper never waits).

Accuracy is counted by labels; every answer is held against its variant's own answer to that image, so that what a
receipt says was asked is what answered (so quantised backends are left out), and (`agree`) against where scores
computed apart say that it ends.  `offline` is what the profile says of the chain on the same held-out images;
thresholds were chosen on others.  Worker CPU is the workers' own clock, `server` the CPU of the whole process tree.
Joules are modelled from CPU time on cores, and a table's on emulated devices.  CPU, joules and variants asked are a
row's; `p95` is the client's.

Every pass is a run of its own, so that figures have a mean over passes and, after +-, the half-width of its 95 %
interval (Student's).  That of accuracy is of live less offline: both are of the same images, so no luck of drawing
images is in it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from bench.common import binary_bodies, cpu_seconds, fashion_rows, served, show, tree, write_json
from bench.day import worker_cpu_s
from bench.load import Body, Result, Sample, closed_loop, open_loop
from bench.oracle import EXACT, expected, scorer
from bench.twin import active_j, mix, of_family, settled

FLOORS = (91.0, 92.0, 92.5, 93.0, 93.3)


@dataclass(frozen=True)
class Figures:
    """What one server did."""

    name: str
    plan: str
    rate: float
    accuracy: float
    accuracy_within: float
    offline: float
    worker_ms: float
    server_ms: float
    joules: float
    joules_within: float
    predicted_j: float
    p95_ms: float
    asked: float
    """Variants asked a row."""
    cut_short: float
    agree: float
    """Part of the rows that ended where their scores, computed apart, say."""
    failed: int
    mismatched: int


class Order:
    """A pass over the images, in an order of its own."""

    def __init__(self, bodies: list[Body], number: int) -> None:
        rng = np.random.default_rng(number)
        self._bodies: list[Body] = [bodies[at] for at in rng.permutation(len(bodies))]
        self._next = 0

    def __call__(self, due_s: float) -> Body:
        self._next += 1
        return self._bodies[(self._next - 1) % len(self._bodies)]


def measured(name: str, words: list[str], rate: float, passes: int, slo_ms: float, data: Any, folder: Path) -> Figures:
    """Measure one server under load."""
    bodies, check, answers = data
    words = ["fashion", "--carbon", "static:300", "--slo-ms", str(slo_ms), "--design-rate", str(rate), *words]
    with served(words, log=folder / "serve.log") as server:
        load = partial(open_loop, server.url, "fashion", rate=rate, connections=64)
        uvloop.run(load(bodies=bodies[:512], seconds=3.0))
        pids = tree(server.process.pid)
        first = before = settled(server)
        used_s, result = 0.0, Result()
        right, joules = [], []
        for number in range(passes):
            used_s -= cpu_seconds(pids)
            seconds = 1.07 * len(bodies) / rate  # by chance fewer than were due come in that time
            one = uvloop.run(load(bodies=Order(bodies, number), seconds=seconds, check=check, seed=number))
            used_s += cpu_seconds(pids)
            after = settled(server)
            joules.append((active_j(after) - active_j(before)) / max(1, len(one.samples)))
            before = after
            whole = sorted(one.samples, key=lambda sample: sample.due_ns)[: len(bodies)]
            right.append(100.0 * sum(bool(sample.correct) for sample in whole) / max(1, len(whole)))
            result.samples += one.samples
            result.lost += one.lost
        before = first
        plan = server.get("/v2/clover/state")["models"]["fashion"]
    rows = max(1, len(result.samples))
    asked = of_family(after, "clover_rows_total"), of_family(before, "clover_rows_total")
    escalated = of_family(after, "clover_escalated_rows_total"), of_family(before, "clover_escalated_rows_total")
    answered = sum(asked[0].values()) - sum(asked[1].values())
    more = sum(escalated[0].values()) - sum(escalated[1].values())
    cut = sum(of_family(after, "clover_cut_short_rows_total").values())
    routing, prediction = plan["routing"], plan["plan"]["prediction"]
    chain = [f"{v} < {t:.3f}" for v, t in zip(routing["chain"], routing["thresholds"], strict=False)]
    shares = ", ".join(f"{v} {part:.0%}" for v, part in mix(after, before).items() if part > 0.005)
    return Figures(
        name=name,
        plan=" > ".join([*chain, routing["chain"][-1]]) if chain else shares,
        rate=rate,
        accuracy=statistics.fmean(right),
        accuracy_within=half_width(right),
        offline=prediction["accuracy"],
        worker_ms=1e3 * (worker_cpu_s(after) - worker_cpu_s(before)) / rows,
        server_ms=1e3 * used_s / rows,
        joules=statistics.fmean(joules),
        joules_within=half_width(joules),
        predicted_j=prediction["energy_j_per_row"],
        p95_ms=result.latency_ms(0.95),
        asked=(answered + more) / max(1.0, answered),
        cut_short=cut / max(1.0, answered),
        agree=agreement(result.samples, routing, answers),
        failed=result.failed(),
        mismatched=result.mismatched(),
    )


STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles of Student's distribution, from one degree of freedom on."""


def half_width(values: Sequence[float]) -> float:
    """Return half the 95 % interval of the mean of `values`; NaN for one value."""
    if len(values) < 2:
        return float("nan")
    quantile = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 2.262
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def agreement(samples: list[Sample], routing: dict[str, Any], answers: dict[str, NDArray[Any]]) -> float:
    """Return part of the rows that a chain answered with the variant at which their scores end; NaN without a chain."""
    if not routing["chain"]:
        return float("nan")
    rows = len(next(iter(answers.values())))
    ends = np.array([routing["chain"][-1]] * rows, dtype=object)
    for name, threshold in reversed(list(zip(routing["chain"], routing["thresholds"], strict=False))):
        ends[answers[name].max(axis=1) >= np.float32(threshold)] = name
    good = [sample for sample in samples if sample.status == 200]
    return sum(str(ends[sample.row]) == sample.variant for sample in good) / max(1, len(good))


def capacity(words: list[str], bodies: list[Body], folder: Path) -> float:
    """Return requests a second that BASE answers in a closed loop."""
    with served(["fashion", "--policy", "base", *words], log=folder / "serve.log") as server:
        run = partial(closed_loop, server.url, "fashion", bodies[:512], connections=64)
        uvloop.run(run(seconds=2.0))
        result = uvloop.run(run(seconds=6.0))
        return len(result.samples) / result.seconds


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, or emulated:BOARD:N")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second [0.6 of BASE's closed loop]")
    parser.add_argument("--passes", type=int, default=6, help="passes over the held-out images [6]")
    parser.add_argument("--slo-ms", type=float, default=10.0, help="p95 target [10]")
    parser.add_argument("--waits", action="store_true", help="let every server's rows wait for fuller batches")
    parser.add_argument("--floors", default=",".join(map(str, FLOORS)), help="accuracy floors of the cascades")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    images, labels = fashion_rows()
    bodies = binary_bodies(images, len(images))
    answers = expected(images)
    data = bodies, scorer(answers, labels), answers
    common = ["--backends", ",".join(EXACT), "--device", options.device, "--waits" if options.waits else "--no-waits"]
    best = max(answers, key=lambda name: float((answers[name].argmax(axis=1) == labels).mean()))
    found: list[Figures] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rate = options.rate or 0.6 * capacity(common, bodies, folder)
        run = partial(measured, rate=rate, passes=options.passes, slo_ms=options.slo_ms, data=data, folder=folder)
        found.append(run("base", [*common, "--policy", f"static:{best}" if options.waits else "base"]))
        for floor in map(float, options.floors.split(",")):
            held = [*common, "--policy", "objective", "--objective", "floor"]
            held += ["--accuracy-margin", "0", "--accuracy-floor"]
            cascade = run("cascade", [*held, str(floor), "--cascade"])
            found.append(cascade)
            there = min(cascade.offline, found[0].offline)  # no mix is more accurate than BASE
            found.append(run("mix", [*held, str(int(there * 1e4) / 1e4), "--no-cascade"]))
    base = found[0]
    columns = ("", "accuracy", "offline", "CPU us", "of BASE", "server us", "mJ", "planned mJ", "p95 ms", "asked")
    table = [
        [
            f"{number} {item.name}",
            f"{item.accuracy:.2f} +-{item.accuracy_within:.2f}",
            f"{item.offline:.2f}",
            f"{1e3 * item.worker_ms:.1f}",
            f"{item.worker_ms / base.worker_ms:.1%}",
            f"{1e3 * item.server_ms:.0f}",
            f"{1e3 * item.joules:.3f} +-{item.joules_within / item.joules:.1%}",
            f"{1e3 * item.predicted_j:.3f} {item.predicted_j / item.joules - 1.0:+.1%}",
            f"{item.p95_ms:.2f}",
            f"{item.asked:.2f}",
            f"{item.cut_short:.3%}",
            f"{item.agree:.3%}",
            item.failed,
            item.mismatched,
        ]
        for number, item in enumerate(found)
    ]
    show(
        f"{options.device}{', waits' if options.waits else ''}, {rate:.0f} requests/s, {options.passes} passes over "
        f"{len(bodies)} images, SLO {options.slo_ms:g} ms (measured)",
        (*columns, "cut short", "agree", "failed", "mismatched"),
        table,
    )
    for number, item in enumerate(found):
        print(f"{number} {item.name}: {item.plan}")
    write_json(options.json, {"rate": rate, "found": [vars(item) for item in found]})


if __name__ == "__main__":
    main()
