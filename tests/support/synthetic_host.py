"""A machine that is not there: counters of its energy in files as the kernel has them, CPU time, and a clock."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from clover.config import EnergyConfig
from clover.energy import RaplMeter, build
from clover.energy.host import HostUse

SECOND = 1_000_000_000
RANGE_UJ = 262_143_328_850
WATTS_A_CPU = 4.5
"""What a busy CPU of a synthetic host really adds; models say otherwise."""
EPYC = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nstepping\t: 1\n"


class SyntheticHost:
    """A machine with one counter: `idle_w` and `watts_a_cpu` for each busy one of `cpus`, and what the kernel always
    does."""

    def __init__(self, folder: Path, idle_w: float, *, cpus: int = 16, watts_a_cpu: float = WATTS_A_CPU) -> None:
        self.idle_w = idle_w
        self.cpus = cpus
        self.watts_a_cpu = watts_a_cpu
        self.now_ns = 0
        self.busy_s = 0.0
        self.ours_s = 0.0
        self.joules = 0.0
        self.random = random.Random(1)
        self.root = folder / "powercap"
        self.cpuinfo = folder / "cpuinfo"
        self.cpuinfo.write_text(EPYC)
        zone = self.root / "intel-rapl:0"
        zone.mkdir(parents=True)
        (zone / "name").write_text("package-0\n")
        (zone / "max_energy_range_uj").write_text(str(RANGE_UJ))
        self.counter = zone / "energy_uj"
        self.run(0.0, 0.0)

    def meter(self, **config: float) -> RaplMeter:
        """Return a meter of it, for workers on four of its CPUs."""
        meter = build(
            EnergyConfig(**config),  # type: ignore[arg-type]
            cores=4,
            cpu_seconds=lambda: 0.0,
            clock=lambda: self.now_ns,
            powercap=self.root,
            cpuinfo=self.cpuinfo,
            host=lambda: HostUse(self.busy_s, self.cpus, self.ours_s),
        )
        assert isinstance(meter, RaplMeter)
        return meter

    def run(self, seconds: float, busy: float, *, others: float = 0.0) -> None:
        """Let time pass with so many CPUs busy by the server and by others, beside a daemon or two."""
        self.ours_s += seconds * busy
        busy += others + self.random.uniform(0.0, 0.05)
        self.now_ns += round(seconds * SECOND)
        self.busy_s += seconds * busy
        self.joules += seconds * (self.idle_w * self.random.uniform(0.99, 1.01) + self.watts_a_cpu * busy)
        self.counter.write_text(str(round(self.joules * 1e6) % RANGE_UJ))

    async def sleep(self, seconds: float) -> None:
        """Let time pass in which nothing runs."""
        self.run(seconds, 0.0)

    def rest(self, meter: RaplMeter, *busy: float) -> None:
        """Have the meter measure idle power while other programs keep so many CPUs busy, second by second."""
        beside = iter(busy)

        async def sleep(seconds: float) -> None:
            self.run(seconds, 0.0, others=next(beside, 0.0))

        asyncio.run(meter.rest(clock=lambda: self.now_ns, sleep=sleep))
