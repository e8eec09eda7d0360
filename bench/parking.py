"""Parked GPUs: a day of load on emulated GPUs, parked or all awake, beside what `simulate` says of the same day.

    python -m bench.parking [--box a100-40gb] [--gpus 3] [--day-s 480] [--json FILE]

A server with `--sleep park` and one with `--sleep off` serve the same Poisson arrivals of a diurnal load, a day in
`--day-s` seconds; the controller's times (looks, rests) shrink alike, but not what a start takes.  Workers
compute on the CPU at a slow pace, so that the machine keeps up.  Watts are means over the day, of the emulated boards'
counters; a board draws 35 W more while a process holds it.

The simulator plays the same day by the same clock (`simulated`), with the server's rests and room for gusts, with
starts of workers and changes of instances that take as long as they took here, and with the very arrivals: a controller
knows its load by counts over ten seconds, which here are half an hour of the day, so that its plans follow a shortened
day otherwise than a whole one, and chance in arrivals decides when a GPU is woken.  How much that is worth is said by
`--draws` further days of other arrivals (`drawn`: their mean and standard deviation).  And it plays the whole day as
`simulate --asleep` does (`parked row`).  `modelled of what ran`: the active watts that the queueing model has for the
workers and the routing of each second; these tell what the model is off by from what other plans make of it.

Whether wake-ups keep the SLO is said by the longest time in which each second had a late answer, beside the seconds
that the plan takes a start to last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from bench.common import ROOT, show, write_json
from clover.backends import child_environment
from clover.carbon.synthetic import StaticSource
from clover.config import CarbonConfig, ControllerConfig, FamilyConfig, ServerConfig, WorkersConfig
from clover.control import controller
from clover.devices import tables
from clover.errors import CloverError
from clover.planning.model.problem import services_of
from clover.research.simulate.families import Known
from clover.research.simulate.flow import FleetModel
from clover.research.simulate.loads import Load
from clover.research.simulate.records import RunInput
from clover.research.simulate.replay import play
from clover.research.simulate.world import Case, Rules, Scheme, SimulatedMachine, Trace, World
from clover.server.server import Server
from clover.types import Configuration, DeviceShape, FamilyProfile, Placement, Routing, configuration_of

TOY = str(ROOT / "tests" / "families" / "toy")
DAY_S = 86_400.0
SLO_MS = 3_000.0
FLOOR = 90.0
SPEED = {1: 1.0, 2: 1.9, 3: 2.57, 4: 2.86, 7: 3.06}
CONTEXT_W = 35.0
_ROW = np.array([[0.1, 0.2, 3.0, 0.4]], np.float32)


def paces(profiles: dict[str, int]) -> dict[str, Any]:
    """Return a pace file under which one compute slice serves some rows a second."""
    rows = [
        {
            "family": "toy",
            "variant": variant,
            "profile": profile,
            "batch": batch,
            "ms": ms / SPEED[n],
            "watts": 7.0 * n**0.66,
        }
        for profile, n in profiles.items()
        for variant, times in {"half": {1: 120.0, 8: 480.0}, "full": {1: 300.0, 8: 1_200.0}}.items()
        for batch, ms in times.items()
    ]
    return {"method": "analytical", "source": "bench.parking", "rows": rows}


class Times(NamedTuple):
    """Seconds of the controller."""

    interval_s: float
    verify_s: float
    sleep_after_s: float


def times_of(day_s: float) -> Times:
    """Return the controller's times in a day of `day_s` seconds: as much shorter as the day is, but .2 s between two
    looks, and a second to watch what is new, at least."""
    scale = day_s / DAY_S
    return Times(max(0.2, 60.0 * scale), max(1.0, 5.0 * scale), 300.0 * scale)


class Took(NamedTuple):
    """Mean seconds that a worker took to start, and an instance to be made and to be removed."""

    start_s: float
    create_s: float
    destroy_s: float


class Look(NamedTuple):
    """What ran at a moment."""

    configuration: Configuration
    routing: Routing
    rate: float
    words: str


class Day:
    """One server over one day."""

    def __init__(self, given: argparse.Namespace, folder: Path, sleep: Literal["park", "off"]) -> None:
        self.given, self._sleep = given, sleep
        times = times_of(given.day_s)
        controller.INTERVAL_S = times.interval_s
        config = ServerConfig(
            families=(FamilyConfig(family=TOY, slo_ms=SLO_MS, accuracy_floor=FLOOR, accuracy_margin=0.0),),
            workers=WorkersConfig(
                device=f"emulated:{given.box}:{given.gpus}",
                backends=("eager",),
                pace=str(folder / "pace.json"),
                sleep=sleep,
            ),
            carbon=CarbonConfig(source="static:300"),
            controller=ControllerConfig(
                policy="objective",
                objective="floor",
                cascade=False,
                waits=False,
                verify_s=times.verify_s,
                sleep_after_s=times.sleep_after_s,
            ),
            cache_dir=str(folder),
            state_dir=str(folder),
        )
        self._server = Server(config=config, http=False)
        self._late: set[int] = set()
        self._answers = self._late_answers = self._failed = 0
        self._awake: list[int] = []
        self._looks: list[Look] = []
        self._reasons = Counter[str]()
        self._rng = np.random.default_rng(1)
        self._tasks: set[asyncio.Future[None]] = set()
        self.arrivals_s: list[float] = []
        self._changes_s: dict[str, list[float]] = {"create": [], "destroy": []}
        self.rate = 0.0
        self.shapes: tuple[DeviceShape, ...] = ()
        self.profile: FamilyProfile | None = None

    def _rate(self, at_s: float) -> float:
        """Return the load `at_s` seconds after the day began (before it: that of the day before)."""
        hours = 24.0 * at_s / self.given.day_s
        return self.rate * (1.0 + 0.4 * math.cos(2.0 * math.pi * (hours - 14.0) / 24.0))

    async def _ask(self, began_s: float) -> None:
        asked_s = time.monotonic()
        try:
            await self._server.ainfer({"INPUT0": _ROW})
        except CloverError as error:
            self._failed += 1
            self._reasons[str(error)] += 1
        self._answers += 1
        if time.monotonic() - asked_s > SLO_MS / 1e3:
            self._late_answers += 1
            self._late.add(int(time.monotonic() - began_s))

    async def play(self) -> dict[str, Any]:
        """Serve a day; return what the boards drew and how late answers were."""
        async with self._server as running:
            family = running.engine.controller.context.families["toy"]
            self.profile = family.profile
            self.shapes = tuple(device.shape() for device in running.engine.devices.values())
            sizes = slices_of(self.shapes)
            smallest = services_of(self.profile)["full", min(sizes, key=sizes.__getitem__)]
            self.rate = self.given.load * smallest.capacity() * sum(shape.slices for shape in self.shapes)
            self._time_changes(running)
            await self._offer(-self.given.warm_s, 0.0)
            self._answers = self._late_answers = self._failed = 0
            self._late.clear()
            self._reasons.clear()
            first, lines = self._joules(running), self._lines(running)
            traffic = running.engine.pick(None).traffic
            before = dict(traffic.batch_sizes)
            began_s = time.monotonic()
            await self._offer(0.0, self.given.day_s, partial(self._look, running, family))
            seconds = time.monotonic() - began_s
            joules = self._joules(running) - first
            spent = {line: joules_ - lines.get(line, 0.0) for line, joules_ in self._lines(running).items()}
            batches = {
                n: (count - before.get(n, (0, 0))[0], (ns - before.get(n, (0, 0))[1]) / 1e9)
                for n, (count, ns) in sorted(traffic.batch_sizes.items())
            }
            model = FleetModel(self.profile, SLO_MS)
            flows = [model.flow(look.configuration, look.routing, look.rate) for look in self._looks]
            await asyncio.gather(*self._tasks)
            decisions = running.engine.controller.decisions(1000)
            return {
                "watts": joules / seconds,
                "lines_w": {line: value / seconds for line, value in spent.items()},
                "batches": batches,
                "model_w": sum(flow.active_w for flow in flows) / max(len(flows), 1),
                "looks": [f"{flow.active_w:6.1f} {look.words}" for look, flow in zip(self._looks, flows, strict=True)],
                "per_row": {" ".join(key): value for key, value in running.engine.account.per_row().items()},
                "joules": joules,
                "seconds": seconds,
                "answers": self._answers,
                "failed": self._failed,
                "reasons": dict(self._reasons.most_common(5)),
                "late_at_s": sorted(self._late),
                "awake_at_s": self._awake,
                "late_part": self._late_answers / max(self._answers, 1),
                "late_for_s": longest(self._late),
                "took": self._took(running)._asdict(),
                "awake": sum(self._awake) / len(self._awake),
                "changes": family.changes,
                "woken": sum("is woken" in item["detail"] for item in decisions),
                "parked": sum("is parked" in item["detail"] for item in decisions),
                "decisions": [
                    {key: item[key] for key in ("at", "trigger", "action", "detail", "seconds")}
                    for item in reversed(decisions)
                    if item["action"] != "kept"
                ],
            }

    async def _offer(self, from_s: float, until_s: float, look: Callable[[float], None] | None = None) -> None:
        """Ask as often as the load of the day has it from `from_s` to `until_s`; call `look` once a second."""
        began_s = time.monotonic() - from_s
        at_s, looks = from_s, float(math.ceil(from_s))
        while (now_s := time.monotonic() - began_s) < until_s:
            while at_s <= now_s:
                task = asyncio.ensure_future(self._ask(began_s))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self.arrivals_s.append(now_s)
                at_s = self._next_s(at_s, self._rng)
            if looks <= now_s:
                looks += 1
                if look is not None:
                    look(now_s)
            await asyncio.sleep(max(0.0, min(at_s, looks, until_s) + began_s - time.monotonic()))

    def _time_changes(self, running: Server) -> None:
        """Note from now on how long instances take to be made and to be removed."""

        def timed(change: Callable[[Placement], Awaitable[None]], seconds: list[float]) -> Any:
            async def noted(placement: Placement) -> None:
                began_s = time.monotonic()
                await change(placement)
                seconds.append(time.monotonic() - began_s)

            return noted

        for device in running.engine.devices.values():
            for name, seconds in self._changes_s.items():
                setattr(device, name, timed(getattr(device, name), seconds))

    def _took(self, running: Server) -> Took:
        starts = running.engine.pick(None).fleet.start_seconds().values()
        return Took(mean(starts), mean(self._changes_s["create"]), mean(self._changes_s["destroy"]))

    def _next_s(self, at_s: float, rng: np.random.Generator) -> float:
        """Return when the next row arrives after one at `at_s`."""
        return at_s + rng.exponential(1.0 / self._rate(at_s))

    def drawn_s(self, seed: int) -> list[float]:
        """Return other arrivals of the same day, in seconds from its beginning."""
        rng, at_s, found = np.random.default_rng(seed), -self.given.warm_s, []
        while at_s < self.given.day_s:
            found.append(at_s)
            at_s = self._next_s(at_s, rng)
        return found

    def _look(self, running: Server, family: Any, at_s: float) -> None:
        self._awake.append(len(family.devices))
        fleet = family.fleet
        configuration = configuration_of(fleet.routed)
        routing = fleet.routing
        rate = self._rate(at_s)
        shares = {name: round(share, 2) for name, share in routing.shares.items()}
        words = (
            f"{at_s:5.1f} {rate:5.1f} {fleet.observe().get('arrival_rate', 0.0):5.1f} {self._joules(running):8.1f} "
            + " + ".join(group.words for group in configuration)
            + f" {shares} {routing.largest} {routing.wait_ms}"
        )
        self._looks.append(Look(configuration, routing, rate, words))

    @staticmethod
    def _lines(running: Server) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, line, _, sums in running.engine.account.lines():
            if name.startswith("gpu"):
                found[line] = found.get(line, 0.0) + sums.joules
        return found

    def _joules(self, running: Server) -> float:
        return sum(
            float(line["measured_j"])
            for name, line in running.engine.account.devices().items()
            if name.startswith("gpu")
        )


def slices_of(shapes: tuple[DeviceShape, ...]) -> dict[str, int]:
    """Return the compute slices of each profile."""
    return {place.profile: place.slices for shape in shapes for layout in shape.layouts for place in layout}


def mean(values: Collection[float]) -> float:
    """Return the mean of `values`; 0 if there are none."""
    return sum(values) / len(values) if values else 0.0


def longest(seconds: set[int]) -> int:
    """Return the most seconds in a row among `seconds`."""
    best = run = 0
    for second in range(max(seconds, default=-1) + 1):
        run = run + 1 if second in seconds else 0
        best = max(best, run)
    return best


def simulated(
    day: Day, bare_w: float, asleep: bool, *, took: Took | None = None, arrivals_s: Sequence[float] = ()
) -> dict[str, Any]:
    """Play the same day in the simulator.

    With `took`, what the server's steps took: as the server did, by its clock, with its rests and its room for gusts,
    and with rows that arrive at `arrivals_s`.  Without: as `simulate --asleep` does, with a look a minute."""
    assert day.profile is not None
    rests = took is not None
    day_s, warm_s = (day.given.day_s, day.given.warm_s) if rests else (DAY_S, 0.0)
    spared = CONTEXT_W if rests and asleep else None
    shapes = tuple(msgspec.structs.replace(shape, sleep_w=spared) for shape in day.shapes)
    known = Known(
        profile=day.profile, source="bench.parking", digest="", request="a row", metric="accuracy", method="analytical"
    )
    times = times_of(day_s)
    world = World(
        SimulatedMachine(shapes, bare_w + CONTEXT_W, "emulated"),
        known,
        Rules(
            form="floor",
            slo_ms=SLO_MS,
            accuracy_floor=FLOOR,
            accuracy_margin=0.0,
            waits=False,
            look_s=times.interval_s,
            verify_s=times.verify_s,
            sleep_after_s=times.sleep_after_s,
            load_s=took.start_s if took else 0.0,
            create_s=took.create_s if took else 0.0,
            destroy_s=took.destroy_s if took else 0.0,
        ),
    )
    source = StaticSource(300.0)
    counted_s = tuple(at_s + warm_s for at_s in arrivals_s)
    load = Load("diurnal", "diurnal", day.rate, per_s=True, day_s=day_s, counted_s=counted_s)
    scheme = Scheme("objective", "objective", asleep_w=bare_w if asleep else None, cascade=False, resident=rests)
    about = RunInput(name="static", kind="trace", sha256="", about="300 g/kWh")
    trace = Trace(name="static", source=source, start_s=day_s - warm_s, hours=(warm_s + day_s) / 3600.0, about=about)
    run = play(Case(world, trace, load, scheme, 1))
    steps = [step for step in run.steps if step.at_s >= day_s]
    joules = sum(step.active_j + step.idle_j for step in steps)
    seconds = sum(step.seconds for step in steps)
    active_w = sum(step.active_j for step in steps) / seconds
    shown = [
        f"{step.at_s / day_s * 24 - 24:5.1f} {step.rate:5.1f} {step.awake} {step.active_j / step.seconds:6.1f} "
        f"{step.deployment} { {name: round(share, 2) for name, share in step.shares.items()} } {step.reason[:60]}"
        for step in steps[::5]
    ]
    return {
        "watts": joules / seconds,
        "active_w": active_w,
        "steps": shown,
        "changes": run.sums.changes,
        "awake": sum(step.awake for step in steps) / len(steps),
    }


def one(given: argparse.Namespace) -> int:
    """Play one day on a server of this process, and in the simulator; print both as JSON."""
    table = tables.table(given.box)
    sizes = {profile.name: profile.slices for profile in tables.slice_profiles(table) if profile.slices in SPEED}
    folder = Path(given.folder)
    (folder / "pace.json").write_text(json.dumps(paces(sizes)))
    day = Day(given, folder, given.one)
    found = asyncio.run(day.play())
    asleep = given.one == "park"
    took = Took(**found["took"])
    drawn = [
        simulated(day, table.idle_w, asleep, took=took, arrivals_s=day.drawn_s(seed))["watts"]
        for seed in range(2, 2 + given.draws)
    ]
    print(
        json.dumps(
            {
                "served": found,
                "simulated": simulated(day, table.idle_w, asleep, took=took, arrivals_s=day.arrivals_s),
                "drawn": drawn,
                "parked row": simulated(day, table.idle_w, asleep),
            }
        )
    )
    return 0


def figures_of(found: dict[str, Any]) -> dict[str, float]:
    """Return what a day came to, as one column of the table."""
    served, simulated_, drawn = found["served"], found["simulated"], found["drawn"]
    watts, row = served["watts"], found["parked row"]["watts"]
    return {
        "W": watts,
        "active W": served["lines_w"]["active"],
        "active W, modelled of what ran": served["model_w"],
        "simulated W": simulated_["watts"],
        "off by %": 100.0 * (watts / simulated_["watts"] - 1.0),
        "drawn W": mean(drawn),
        "drawn W, +-": float(np.std(drawn, ddof=1)) if len(drawn) > 1 else math.nan,
        "parked row W": row,
        "off that by %": 100.0 * (watts / row - 1.0),
        "GPUs awake": served["awake"],
        "GPUs awake, simulated": simulated_["awake"],
        "late %": 100.0 * served["late_part"],
        "late for s": served["late_for_s"],
        "a worker's start takes s": served["took"]["start_s"],
        "failed": served["failed"],
        "woken": served["woken"],
    }


def main(argv: list[str] | None = None) -> int:
    """Play a day parked and a day awake, and print both beside the simulator's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--box", default="a100-40gb")
    parser.add_argument("--gpus", type=int, default=3)
    parser.add_argument("--day-s", type=float, default=480.0)
    parser.add_argument("--warm-s", type=float, default=30.0, help="seconds before the day in which the load is learnt")
    parser.add_argument("--load", type=float, default=0.42, help="mean part of what all slices of one size serve")
    parser.add_argument("--draws", type=int, default=12, help="days of other arrivals that are simulated")
    parser.add_argument("--json", default="")
    parser.add_argument("--one", choices=("park", "off"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        return one(given)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for sleep in ("park", "off"):
            options = [
                f"--{name.replace('_', '-')}={getattr(given, name)}"
                for name in ("box", "gpus", "day_s", "warm_s", "load", "draws")
            ]
            done = subprocess.run(
                [sys.executable, "-m", "bench.parking", "--one", sleep, "--folder", folder, *options],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                cwd=ROOT,
                env={**os.environ, **child_environment()},
            )
            results[sleep] = json.loads(done.stdout.splitlines()[-1])
    figures = {sleep: figures_of(found) for sleep, found in results.items()}
    show(
        f"{given.gpus} x {given.box} (emulated), a day in {given.day_s:g} s",
        ["", *figures],
        [[name, *(found[name] for found in figures.values())] for name in figures["park"]],
    )
    spared = 1.0 - figures["park"]["W"] / figures["off"]["W"]
    print(f"parking spares {spared:.1%} of the boards' energy (emulated)")
    write_json(given.json, {"arguments": vars(given), "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
