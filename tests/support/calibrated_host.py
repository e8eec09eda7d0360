"""A machine for calibration that is not there: its power is a function of its load, its clock passes when it sleeps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clover.energy.calibrate import Instruments
from clover.energy.rapl import RaplMeter


class CalibratedHost:
    """One package with RAPL below `root` that draws `watts(busy CPUs)`; other programs keep `others` CPUs busy."""

    def __init__(
        self, root: Path, watts: Callable[[float], float], *, cpus: float = math.inf, others: float = 0.0
    ) -> None:
        self.root = root
        self.watts = watts
        self.cpus = cpus
        self.others = others
        self.now_ns = 0
        self.busy_s = 0.0
        self.spun: list[tuple[int, ...]] = []
        self._joules = 0.0
        self.busy = others
        folder = root / "intel-rapl:0"
        folder.mkdir(parents=True)
        (folder / "name").write_text("package-0\n")
        (folder / "max_energy_range_uj").write_text("4000000000\n")
        self._counter = folder / "energy_uj"
        self._show()

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        self.busy_s += self.busy * seconds
        self._joules += self.watts(self.busy) * seconds
        self._show()

    @contextlib.contextmanager
    def spin(self, cpus: Sequence[int]) -> Iterator[None]:
        self.spun.append(tuple(cpus))
        self.busy = min(self.others + len(cpus), self.cpus)
        try:
            yield
        finally:
            self.busy = self.others

    def instruments(self) -> Instruments:
        meter = RaplMeter(idle_w=0.0, now_ns=0, root=self.root)
        return Instruments(
            joules=lambda now_ns: meter.sample(now_ns).total_j,
            busy_s=lambda: self.busy_s,
            now_ns=lambda: self.now_ns,
            sleep=self.sleep,
            spin=self.spin,
        )

    def _show(self) -> None:
        self._counter.write_text(f"{int(self._joules * 1e6) % 4_000_000_000}\n")
