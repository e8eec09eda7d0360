"""Does the interval of "saved" hold the truth?  The production code against hidden truth, in virtual time.

    python -m bench.truth [--draws 40] [--only NAME ...] [--seed 1] [--jobs 1] [--json FILE]

A machine that is not there (counters in files as the kernel has them, CPU times) serves half an hour, second by
second: fake RAPL -> meter -> account -> shadows -> `saved`, profiles corrected on the way.  Rows come at random; three
fifths are answered by `small`, the others by `medium`; half a percent (`--audit`'s default) is asked of `large` again,
on BASE's own slice.  Neither torch nor a server is there, and nothing sleeps.

Hidden are, anew in each draw: the counter's gain (2.5 % standard deviation, half of what `METER_ERROR` states), the
noise of idle power (1 % up and down, each second), each variant's joules beside its profile, and what a situation says.
What BASE would truly have taken is its profile at its true factor, at the load of each second: that the queueing model
has the right shape is taken for granted.

Printed for each situation: joules of the server's work that were counted, as a part of the true ones; in how many
draws the interval held the truth, in grams and in percent of BASE; the mean half width of the interval; the least one
that is the same multiple of it in all draws and holds 95 % of them; how many times that the half width is; and the mean
error with its standard deviation.  Grams are in percent of what BASE truly would have emitted, percent in points.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import starmap
from pathlib import Path

from msgspec.structs import replace

from bench.common import show, write_json
from clover.accounting import Account, WorkerMeter
from clover.accounting.host import HostCpu
from clover.accounting.meters import HostProcess, profiled_energy
from clover.config import EnergyConfig
from clover.control.baselines.saved import saved
from clover.energy import RaplMeter, build
from clover.energy.cpu_power import cpu_power
from clover.energy.host import HostUse
from clover.planning.budget.counterfactual import base
from clover.planning.model.problem import services_of
from clover.types import CpuTimes, Reading
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import cpu, profile, worker

SECOND = 1_000_000_000
SECONDS, SUSPENDED_S = 1800, 300
CPUS, CORES = 16, 4
IDLE_W, CPU_W = 60.0, 4.5
"""What the machine truly draws at rest, and for a busy CPU more."""
GAIN, NOISE = 0.025, 0.01
RANGE_UJ = 262_143_328_850
EPYC = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nstepping\t: 1\n"
RATE = 30.0
VARIANTS = {"small": (88.0, 8.0), "medium": (90.0, 16.0), "large": (92.0, 32.0)}
SHARES = {"small": 0.6, "medium": 0.4}
AUDITS = 0.005
FRONT_END_S, CONTROL_CPUS = 0.001, 0.005
"""CPU seconds of a row in the front end, and busy CPUs of control."""


@dataclass(frozen=True)
class Situation:
    """What is hidden.  `off`: standard deviation of the logarithm of each variant's factor; `factors`: of some, as
    (least, most); `idle_w`: by how much idle power jumps half way, up or down; `others`: busy CPUs of other programs
    from a third of the time on, another number each minute; `watts`: standard deviation of the logarithm of true
    watts."""

    name: str
    off: float = 0.0
    factors: tuple[tuple[str, float, float], ...] = ()
    either: bool = False
    """Factors are one of both ends, and not between them."""
    idle_w: float = 0.0
    others: tuple[float, float] = (0.0, 0.0)
    suspended: bool = False
    modelled: bool = False
    watts: float = 0.0
    audits: float = AUDITS


SITUATIONS = (
    Situation("profiles right"),
    Situation("each 30 % off", off=0.3),
    Situation("each 50 % off", off=0.5),
    Situation("BASE off", factors=(("large", 0.7, 1.3),), either=True),
    Situation("cheap 2 to 3 x", factors=(("small", 2.0, 3.0), ("medium", 2.0, 3.0))),
    Situation("idle moves", off=0.3, idle_w=20.0),
    Situation("foreign load", off=0.3, others=(2.0, 6.0)),
    Situation("suspended", off=0.3, suspended=True),
    Situation("modelled watts", off=0.3, modelled=True, watts=0.25),
    Situation("no audits", off=0.5, audits=0.0),
)


@dataclass(frozen=True)
class Draw:
    """What was true and what was said, in one draw: grams and the part of BASE, with both ends of their intervals."""

    counted: float
    base_g: float
    true_g: float
    said_g: tuple[float, float, float]
    true_part: float
    said_part: tuple[float, float, float]
    errors_g: dict[str, float]


class Machine:
    """The hidden machine: what it uses, as its counter and its kernel show it."""

    def __init__(self, folder: Path, situation: Situation, luck: random.Random) -> None:
        self.luck = luck
        self.now_ns = 0
        self.idle_w = IDLE_W
        self.gain = math.exp(luck.gauss(0.0, GAIN)) if not situation.modelled else 1.0
        self.cpu_w = CPU_W
        if situation.modelled:
            known = cpu_power(EnergyConfig(), _cpuinfo(folder))
            self.idle_w = known.idle_w * CPUS * math.exp(luck.gauss(0.0, situation.watts))
            self.cpu_w = known.core_w * math.exp(luck.gauss(0.0, situation.watts))
        self.workers = dict.fromkeys(VARIANTS, 0)
        self.front_end_ns = self.control_ns = self.others_ns = 0
        self.joules = 0.0
        self.zone = folder / "powercap" / "intel-rapl:0"
        self.zone.mkdir(parents=True)
        (self.zone / "name").write_text("package-0\n")
        (self.zone / "max_energy_range_uj").write_text(str(RANGE_UJ))
        self.pass_s(0.0, 0)

    @property
    def ours_ns(self) -> int:
        """CPU time of the server."""
        return sum(self.workers.values()) + self.front_end_ns + self.control_ns

    def pass_s(self, seconds: float, ours_ns: int, others: float = 0.0) -> tuple[float, float]:
        """Let time pass in which the server used `ours_ns` of CPU time; return its joules and those at rest."""
        others += self.luck.uniform(0.0, 0.05)
        self.others_ns += round(seconds * others * SECOND)
        self.now_ns += round(seconds * SECOND)
        noise = NOISE / math.sqrt(max(seconds, 1.0))
        idle_j = seconds * self.idle_w * self.luck.uniform(1.0 - noise, 1.0 + noise)
        ours_j = self.cpu_w * ours_ns / SECOND
        self.joules += self.gain * (idle_j + ours_j + self.cpu_w * seconds * others)
        (self.zone / "energy_uj").write_text(str(round(self.joules * 1e6) % RANGE_UJ))
        return ours_j, idle_j

    def times(self, _: object) -> CpuTimes:
        """CPU times as the kernel has them."""
        return CpuTimes(
            tree_ns=self.ours_ns,
            server_ns=self.front_end_ns + self.control_ns,
            control_ns=self.control_ns,
            machine_ns=self.ours_ns + self.others_ns,
        )

    def use(self) -> HostUse:
        """The same, as the meter reads them."""
        return HostUse((self.ours_ns + self.others_ns) / SECOND, CPUS, self.ours_ns / SECOND)

    async def sleep(self, seconds: float) -> None:
        """Rest."""
        self.pass_s(seconds, 0)


def _cpuinfo(folder: Path) -> Path:
    path = folder / "cpuinfo"
    path.write_text(EPYC)
    return path


def played(situation: Situation, seed: int) -> Draw:
    """Play one draw."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        return asyncio.run(_play(situation, random.Random(f"{situation.name} {seed}"), folder))
    finally:
        shutil.rmtree(folder)


async def _play(situation: Situation, luck: random.Random, folder: Path) -> Draw:
    cpuinfo = _cpuinfo(folder)
    machine = Machine(folder, situation, luck)
    factors = {name: math.exp(luck.gauss(0.0, situation.off)) for name in VARIANTS}
    for name, least, most in situation.factors:
        factors[name] = luck.choice((least, most)) if situation.either else luck.uniform(least, most)
    account = Account(pue=1.0)
    host = HostCpu(machine.times, lambda pid: machine.workers[list(VARIANTS)[pid - 1]])
    meter = build(
        EnergyConfig(meter="modelled" if situation.modelled else "rapl"),
        cores=CPUS if situation.modelled else CORES,
        cpu_seconds=host.own_seconds,
        clock=lambda: machine.now_ns,
        powercap=folder / "powercap",
        cpuinfo=cpuinfo,
        host=machine.use,
    )
    if isinstance(meter, RaplMeter):
        await meter.rest(clock=lambda: machine.now_ns, sleep=machine.sleep)
        profiled_w = CPU_W * machine.gain  # profiles are measured by the same counter
    else:
        profiled_w = cpu_power(EnergyConfig(), cpuinfo).core_w
    known = profile((1, CORES), VARIANTS)
    latency = [replace(item, energy_j_per_row=item.cpu_s_per_row * profiled_w) for item in known.latency]
    known = replace(known, latency=tuple(latency))
    account.add_device("cpu0", CORES, foreign=CPUS - CORES)
    account.add_host("cpu0", host)
    account.add_family("toy")
    shape = f"{CORES}c"
    meters = {}
    for pid, name in enumerate(VARIANTS, 1):
        meters[name] = account.attach(
            WorkerMeter(
                family="toy",
                variant=name,
                device="cpu0",
                placement=f"cpu0:{shape}@0",
                slices=CORES,
                profiled=profiled_energy(known, name, shape, "eager", 8),
                process=HostProcess(pid, CORES),
            )
        )
    rig = Rig(shape=cpu(CORES), measured=known, family={"accuracy_floor": 88.0})
    await rig.deploy()
    assert rig.family.deployed is not None
    deployment = tuple(worker(name, 0, CORES) for name in VARIANTS)
    rig.family.deployed = dataclasses.replace(rig.family.deployed, deployment=deployment)
    on_base = base(known, (cpu(CORES),))
    assert on_base is not None
    seconds_of = {name: services_of(known)[name, shape].seconds(1) for name in VARIANTS}
    active_j = served_g = base_g = 0.0
    others = 0.0
    account.close_window(meter.sample(machine.now_ns), Reading(g_per_kwh=350.0, at_s=0.0, provider="truth"))
    for second in range(SECONDS):
        lasted_s = float(SUSPENDED_S) if situation.suspended and second == SECONDS // 3 else 1.0
        if lasted_s > 1.0:  # nothing runs meanwhile, and nobody looks
            _, idle_j = machine.pass_s(lasted_s, 0)
            rig.clock.now_s += lasted_s
        else:
            idle_j = 0.0
        if situation.idle_w and second == SECONDS // 2:
            machine.idle_w += luck.choice((-1.0, 1.0)) * situation.idle_w
        if second >= SECONDS // 3 and second % 60 == 0:
            others = luck.uniform(*situation.others)
        before_ns, rows = machine.ours_ns, _poisson(luck, RATE)
        served = luck.choices(list(SHARES), list(SHARES.values()), k=rows)
        audits = sum(luck.random() < situation.audits for _ in range(rows))
        for number, name in enumerate([*served, *["large"] * audits]):
            busy_s = seconds_of[name] * factors[name] * max(luck.gauss(1.0, 0.1), 0.1)
            used_ns = round(busy_s * CORES * SECOND)
            machine.workers[name] += used_ns
            meters[name].add(1, used_ns // CORES, used_ns)
            if number >= rows:
                meters[name].record_passed_on(0, 1, 0.0)
        machine.front_end_ns += round(rows * FRONT_END_S * SECOND)
        control_ns = round(CONTROL_CPUS * SECOND)
        machine.control_ns += control_ns
        account.count_answered("toy", rows)
        used_j, rested_j = machine.pass_s(1.0, machine.ours_ns - before_ns, others)
        idle_j = (idle_j + rested_j) * CORES / CPUS
        grams_per_j = (350.0 + 150.0 * math.sin(second / SECONDS * 2.0 * math.pi)) / 3.6e6
        # The same on both sides: idle power and the front end.  BASE has neither control nor audits.
        both_j = idle_j + machine.cpu_w * rows * FRONT_END_S
        base_j = rows * on_base.joules(RATE) * machine.cpu_w / profiled_w * factors["large"]
        active_j += used_j
        served_g += grams_per_j * (idle_j + used_j)
        base_g += grams_per_j * (both_j + base_j)
        host.poll()
        account.close_window(
            meter.sample(machine.now_ns), Reading(g_per_kwh=grams_per_j * 3.6e6, at_s=0.0, provider="truth")
        )
        rig.clock.now_s += 1.0
        rig.controller.shadows.compare(account.collect_spans())
        rig.fleet.work, before = account.work_report("toy"), rig.fleet.energy_factors
        rig.controller.learner.poll(rig.family)
        if rig.fleet.energy_factors is not before:
            account.correct("toy", rig.fleet.energy_factors)
        rig.controller.shadows.poll()
    devices = account.devices()
    counted_j = sum(float(devices["cpu0"][f"{line}_j"]) for line in ("active", "front_end", "control"))
    found = saved(rig.controller.shadows.by_family["toy"], devices)
    assert found is not None
    told = found["base"]
    return Draw(
        counted=counted_j / active_j,
        base_g=base_g,
        true_g=base_g - served_g,
        said_g=(told["low"], told["grams"], told["high"]),
        true_part=(base_g - served_g) / base_g,
        said_part=(told["part_low"], told["part"], told["part_high"]),
        errors_g=told["errors_g"],
    )


def _poisson(luck: random.Random, mean: float) -> int:
    return max(0, round(luck.gauss(mean, math.sqrt(mean))))


@dataclass(frozen=True)
class Judged:
    """One situation: `said` and `true` of one quantity over all draws, in percent of `unit` each."""

    cover: float
    half: float
    least: float
    bias: float
    spread: float

    @classmethod
    def of(cls, draws: Sequence[tuple[float, tuple[float, float, float], float]]) -> Judged:
        """Return how well intervals of (truth, what was said with both ends, unit) hold."""
        inside = [said[0] <= true <= said[2] for true, said, _ in draws]
        halves = [50.0 * (said[2] - said[0]) / unit for _, said, unit in draws]
        errors = [100.0 * (said[1] - true) / unit for true, said, unit in draws]
        # Each end by itself: an interval need not lie evenly around what is said.
        times = sorted(_times(true, said) for true, said, _ in draws)
        reached = times[math.ceil(0.95 * len(times)) - 1]
        mean, half = sum(errors) / len(errors), sum(halves) / len(halves)
        spread = math.sqrt(sum((error - mean) ** 2 for error in errors) / len(errors))
        return cls(100.0 * sum(inside) / len(inside), half, reached * half, mean, spread)


def _times(true: float, said: tuple[float, float, float]) -> float:
    """Return by how much the interval must be stretched to reach the truth."""
    room = said[2] - said[1] if true > said[1] else said[1] - said[0]
    return abs(true - said[1]) / max(room, 1e-300)


def answers(
    situations: Sequence[Situation], draws: int, seed: int, jobs: int
) -> Iterator[tuple[Situation, list[Draw]]]:
    """Yield the draws of each situation."""
    if jobs <= 1:
        for situation in situations:
            yield situation, list(starmap(played, [(situation, seed * 1000 + at) for at in range(draws)]))
        return
    with ProcessPoolExecutor(jobs) as pool:
        for situation in situations:
            yield situation, list(pool.map(played, [situation] * draws, [seed * 1000 + at for at in range(draws)]))


def main(argv: Sequence[str] | None = None) -> int:
    """Play the situations; print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.truth", description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=40, help="draws of each situation [40]")
    parser.add_argument("--only", nargs="+", default=[], help="situations whose names have one of these in them")
    parser.add_argument("--seed", type=int, default=1, help="of all draws [1]")
    parser.add_argument("--jobs", type=int, default=1, help="processes [1]")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    wanted = [one for one in SITUATIONS if not given.only or any(name in one.name for name in given.only)]
    rows, kept, began_s = [], {}, time.monotonic()
    for situation, draws in answers(wanted, given.draws, given.seed, given.jobs):
        kept[situation.name] = [asdict(draw) for draw in draws]
        counted = [draw.counted for draw in draws]
        of_grams = Judged.of([(draw.true_g, draw.said_g, draw.base_g) for draw in draws])
        of_parts = Judged.of([(draw.true_part, draw.said_part, 1.0) for draw in draws])
        rows.append(
            (
                situation.name,
                f"{sum(counted) / len(counted):.2f} ({min(counted):.2f} to {max(counted):.2f})",
                *(
                    cell
                    for judged in (of_grams, of_parts)
                    for cell in (
                        f"{judged.cover:.0f}", f"{judged.half:.1f}", f"{judged.least:.1f}",
                        f"{judged.half / judged.least:.2f}", f"{judged.bias:+.1f} +-{judged.spread:.1f}",
                    )
                ),
            )
        )  # fmt: skip
        print(*rows[-1], f"{time.monotonic() - began_s:.0f} s", sep=" | ", file=sys.stderr, flush=True)
    columns = ("situation", "counted/true", "grams: cover %", "half", "least", "x", "error",
               "percent: cover %", "half", "least", "x", "error")  # fmt: skip
    show(f"{given.draws} draws of {SECONDS} s each, virtual time, seed {given.seed}", columns, rows)
    write_json(given.json, {"arguments": vars(given), "draws": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
