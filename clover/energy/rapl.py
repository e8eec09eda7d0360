"""Energy by RAPL: the counters of Intel and AMD processors, read from Linux' powercap files.

    <root>/intel-rapl:N/            one zone a processor package ("package-N"); AMD's driver uses the same names
        name, energy_uj, max_energy_range_uj
        intel-rapl:N:M/             its parts: "core" and "uncore" lie inside the package's own figure and are left
                                    out; "dram" does not, and is added

A zone named "psys" (the whole platform) contains the packages and is never added; the "intel-rapl-mmio" zones are the
same packages once more.  The counter covers the machine, other programs included.

**Wraps.**  A counter starts again at `max_energy_range_uj` (262 kJ on most processors, 65 kJ for some DRAM).  One wrap
between two samples is seen and added.  Of two wraps one is lost, and nothing shows it.  So a sample is due at least
every `sample_within_s` (the smallest range at 1 kW, about a minute); later ones are counted in `late_samples` and
logged.

**Resets.**  If a counter is lower, it counts as a wrap only if the joules that this makes are plausible: no domain
draws more than a kilowatt, nor, over a minute or longer, ten times what all of them drew so far.  Otherwise the driver
began anew (a reset), or something else wrote the counter.  What was used since the last sample is then unknown: the
total stays, the sample's `epoch` is one higher, and `resets` counts it.

**Gaps.**  While a counter cannot be read, `sample` raises.  The first sample that can be taken again includes what the
counter rose in the meantime.  But if a counter is lower then, what was used in the meantime is unknown in any case, and
the next `epoch` begins.

Since 2020 (CVE-2020-8694) the counters are readable by root alone on most kernels, and virtual machines rarely have
them.  Both cases are a `RaplError` with the reason, and never a silent zero.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from clover.energy.cpu_power import CpuPower, published
from clover.energy.host import ReadHost, host_use
from clover.energy.idle import HostWindow, IdlePower
from clover.energy.marks import MeterMark
from clover.errors import DeviceError
from clover.types import EnergySample, Method

log = logging.getLogger("clover.energy")

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")
_MOST_W = 1000.0  # more than any domain draws: sets how often a wrap must be looked for, and what is no wrap
_GRAIN_S = 1.0  # allowed for the counter's own update interval when a leap is judged
_WINDOW_NS = 1_000_000_000
_REST_S = 2  # at the start: seconds at rest that are enough
_LONGEST_REST_S = 5
_NOTED_CHANGE = 0.1  # of the idle power, from which on the log says so
_MOST_BEYOND_MEAN = 10.0  # times the mean power so far: more than that, over a minute or longer, is no wrap
_COUNTER_ERROR = 0.05
_UNSEEN_JUMP_S = 20.0
"""For so long idle power was another one before that is seen: the two stretches of `energy.idle`."""
_MODELLED_ACTIVE = (-0.6, 3.0)
"""How far off active joules may be while a busy CPU's power is the published one: hosts with 0.4 to 4 times that under
light load are known."""


class RaplError(DeviceError):
    """RAPL cannot be read; `advice` says what to do about it."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


class Domain(NamedTuple):
    """One counter that is added: microjoules in `file`, starting again at `range_uj`."""

    name: str
    file: Path
    range_uj: int


class RaplMeter:
    """Joules of all packages and their DRAM.

    `idle_w` of a sample is what the operator set, or else what `IdlePower` found: call `rest` before there are workers.
    `power` is what the model says of a CPU, `host` reads the CPU time of the whole host.
    """

    method: Method = "measured"

    def __init__(
        self,
        *,
        now_ns: int,
        idle_w: float | None = None,
        power: CpuPower | None = None,
        host: ReadHost = host_use,
        root: Path = POWERCAP,
        device: str = "cpu0",
    ) -> None:
        self.device = device
        self.domains = find_domains(root)
        self.sample_within_s = min(domain.range_uj for domain in self.domains) / 1e6 / _MOST_W
        self.wraps = 0
        self.late_samples = 0
        self.resets = 0
        use = host()
        model = power or published()
        cpus = use.cpus if use is not None else 1
        self.idle = IdlePower(guess_w=model.idle_w * cpus, core_w=model.core_w, cpus=cpus)
        self._host = host
        self._given_idle_w = idle_w
        self._noted_idle_w = 0.0
        self._noted_jumps = 0
        try:
            self._last_uj = [_read_counter(domain) for domain in self.domains]
        except RaplError:
            raise
        except DeviceError as error:
            raise RaplError(str(error), "see whether the driver works, or use energy.meter = modelled") from error
        self._total_uj = 0
        self._active_j = self._error_j = 0.0
        """Energy above idle that the server used, and by how much that may be off since idle power may be."""
        self._epoch = 0
        self._missed = False  # whether the last sample could not be taken
        self._at_ns = now_ns
        self._known_ns = 0
        """How long the total has been counted for."""
        self._window = (now_ns, 0, use)

    @property
    def why(self) -> str:
        """Which counters are read, and how the idle power is known."""
        how = "as configured" if self._given_idle_w is not None else self.idle.why
        return f"RAPL: {', '.join(domain.name for domain in self.domains)}; idle {self.idle_w:.1f} W ({how})"

    @property
    def idle_w(self) -> float:
        """Watts of the whole host at rest, all programs included."""
        return self.idle.watts if self._given_idle_w is None else self._given_idle_w

    async def rest(
        self,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Measure the idle power for two seconds at rest; give up after five if the host does not come to rest.

        Return at once if the operator set it.  Call it before there are workers.
        """
        if self._given_idle_w is not None:
            return
        try:
            self.sample(clock())
            self._begin_window()
            for _ in range(_LONGEST_REST_S):
                await sleep(_WINDOW_NS / 1e9)
                self.sample(clock())
                if self.idle.rest_windows >= _REST_S:
                    break
        except DeviceError as error:
            log.warning("the idle power could not be measured: %s", error)
            return
        if self.idle.known_by != "rest":
            log.warning(
                "other programs kept the machine busy: its idle power, %.1f W, is %s; set energy.idle_w if you know it",
                self.idle_w,
                self.idle.why,
            )

    async def refresh(self) -> None:
        """Do nothing: a sample is cheap."""

    def sample(self, now_ns: int) -> EnergySample:
        """Return joules since the meter was made.

        Raises DeviceError if a counter cannot be read; the next sample includes what was used in the meantime.
        """
        missed, self._missed = self._missed, True
        counters = [_read_counter(domain) for domain in self.domains]
        self._missed = False
        elapsed_s = max(0, now_ns - self._at_ns) / 1e9
        if missed and any(counter < last for counter, last in zip(counters, self._last_uj, strict=True)):
            log.warning("RAPL could not be read and is lower now: the energy of the last %.0f s is unknown", elapsed_s)
            return self._begin_anew(counters, now_ns)
        late = elapsed_s > self.sample_within_s
        if late:
            self.late_samples += 1
            log.warning("RAPL was not read for %.0f s; a counter may have wrapped unseen", elapsed_s)
        most_w = _MOST_W
        if late and self._total_uj and self._known_ns > _WINDOW_NS:
            most_w = min(most_w, _MOST_BEYOND_MEAN * self._total_uj / 1e6 / (self._known_ns / 1e9))
        risen_uj, wraps = 0, 0
        for domain, counter, last in zip(self.domains, counters, self._last_uj, strict=True):
            delta_uj = counter - last
            if delta_uj < 0:
                wraps += 1
                delta_uj += domain.range_uj
            if delta_uj > most_w * 1e6 * (elapsed_s + _GRAIN_S):
                self.resets += 1
                how = f"fell from {last / 1e6:.0f} to {counter / 1e6:.0f} J" if counter < last else "leapt"
                log.warning(
                    "RAPL of %s %s within %.1f s, which is no wrap (it would be %.0f J): it began anew, and what was "
                    "used since the last sample is unknown",
                    domain.name, how, elapsed_s, delta_uj / 1e6,
                )  # fmt: skip
                return self._begin_anew(counters, now_ns)
            risen_uj += delta_uj
        self.wraps += wraps
        self._total_uj += risen_uj
        self._last_uj = counters
        self._known_ns += max(now_ns - self._at_ns, 0)
        self._at_ns = max(self._at_ns, now_ns)
        self._watch_idle(known=not (missed or late))
        return self._take_sample()

    def mark(self) -> MeterMark:
        """Return where its last sample stands."""
        return MeterMark(device=self.device, method=self.method, at_ns=self._at_ns, counters=tuple(self._last_uj))

    def take_over(self, mark: MeterMark) -> EnergySample:
        """Continue from the counters of `mark`; ValueError if they are of other domains."""
        if mark.method != self.method or len(mark.counters) != len(self.domains):
            raise ValueError("the other server read other counters")
        ranges = zip(mark.counters, self.domains, strict=True)
        if any(not 0 <= counter <= domain.range_uj for counter, domain in ranges):
            raise ValueError("its counters are beyond their range")
        self._last_uj, self._total_uj, self._at_ns = list(mark.counters), 0, mark.at_ns
        self._known_ns = 0
        self._begin_window()
        return self._take_sample()

    def _take_sample(self) -> EnergySample:
        return EnergySample(
            device=self.device,
            at_ns=self._at_ns,
            total_j=self._total_uj / 1e6,
            idle_w=self.idle_w,
            method=self.method,
            epoch=self._epoch,
            active_uncertainty=self._active_uncertainty(),
        )

    def _active_uncertainty(self) -> tuple[float, float] | None:
        """Return how far off joules above idle may be: by the counter, and by what idle power may be off."""
        if self._given_idle_w is not None:
            return None
        if not self.idle.measured:
            return _MODELLED_ACTIVE
        if self._active_j <= 0.0:
            return None
        off = math.hypot(_COUNTER_ERROR, self._error_j / self._active_j)
        return -min(off, 1.0), off

    def _begin_anew(self, counters: list[int], now_ns: int) -> EnergySample:
        self._epoch += 1
        self._last_uj = counters
        self._at_ns = max(self._at_ns, now_ns)
        self._begin_window()
        return self._take_sample()

    def _begin_window(self) -> None:
        self.idle.forget_window()
        self._window = (self._at_ns, self._total_uj, self._host())

    def _watch_idle(self, *, known: bool) -> None:
        """Give `idle` the window since the last one if it is long enough; leave it out if its energy is in doubt."""
        since_ns, since_uj, since = self._window
        if not known:
            self._error_j += self.idle.error_w * (self._at_ns - since_ns) / 1e9
            self._begin_window()
            return
        if self._at_ns - since_ns < _WINDOW_NS:
            return
        use = self._host()
        self._window = (self._at_ns, self._total_uj, use)
        joules, seconds = (self._total_uj - since_uj) / 1e6, (self._at_ns - since_ns) / 1e9
        busy_s = ours_s = None
        if use is not None and since is not None:
            busy_s = use.busy_s - since.busy_s
            if use.ours_s is not None and since.ours_s is not None:
                ours_s = use.ours_s - since.ours_s
        jumps, idle_w = self.idle.jumps, self.idle.watts
        self.idle.add(HostWindow(self._at_ns / 1e9, seconds, joules, busy_s, ours_s))
        if self.idle.jumps > jumps:
            self._error_j += abs(self.idle.watts - idle_w) * _UNSEEN_JUMP_S
        ours = min(ours_s / busy_s, 1.0) if ours_s is not None and busy_s else 1.0
        self._active_j += ours * (joules - self.idle.watts * seconds)
        self._error_j += ours * self.idle.error_w * seconds
        if self._given_idle_w is not None:
            if joules < self._given_idle_w * seconds and not self._noted_idle_w:
                self._noted_idle_w = joules / seconds
                log.warning(
                    "energy.idle_w says that this machine draws %.1f W at rest, but it drew %.1f W: set it lower",
                    self._given_idle_w, self._noted_idle_w,
                )  # fmt: skip
        elif self.idle.jumps > self._noted_jumps:
            self._noted_jumps, self._noted_idle_w = self.idle.jumps, self.idle.watts
            log.warning(
                "%s: the machine's power changed without more CPU time: idle power is %.1f W from here on, %s",
                self.device, self.idle.watts, self.idle.why,
            )  # fmt: skip
        elif abs(self.idle.watts - self._noted_idle_w) > _NOTED_CHANGE * self._noted_idle_w:
            self._noted_idle_w = self.idle.watts
            log.info("%s: idle power is %.1f W, %s", self.device, self.idle.watts, self.idle.why)


def find_domains(root: Path = POWERCAP) -> tuple[Domain, ...]:
    """Return the packages and their DRAM below `root`.  Raises RaplError if there are none or one cannot be read."""
    modelled = "use energy.meter = modelled or auto"
    try:
        zones = sorted(path for path in root.iterdir() if _PACKAGE.fullmatch(path.name))
    except OSError as error:
        raise RaplError(f"{root} cannot be listed ({error.strerror})",
                              f"load the kernel module intel_rapl_msr, or {modelled}") from error  # fmt: skip
    domains: list[Domain] = []
    for zone in zones:
        package = _read_text(zone / "name")
        if not package.startswith("package"):
            continue
        domains.append(_domain(package, zone))
        # The parts lie in the zone's folder, and as links beside it; either place may be what a container shows.
        parts = {path.name: path for place in (root, zone) for path in place.glob(f"{zone.name}:*")}
        for _, part in sorted(parts.items()):
            if _read_text(part / "name") == "dram":
                domains.append(_domain(f"{package}/dram", part))
    if not domains:
        raise RaplError(f"{root} has no package zone (a virtual machine, or no driver)", modelled)
    return tuple(domains)


def _domain(name: str, zone: Path) -> Domain:
    range_uj = _read_number(zone / "max_energy_range_uj")
    if range_uj <= 0:
        raise RaplError(f"{zone / 'max_energy_range_uj'} holds {range_uj}", "use energy.meter = modelled")
    domain = Domain(name, zone / "energy_uj", range_uj)
    _read_number(domain.file)
    return domain


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except PermissionError as error:
        advice = f"let this user read it (chmod a+r {file}, or CAP_DAC_READ_SEARCH), or use energy.meter = auto"
        raise RaplError(f"{file} is not readable by this user", advice) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise RaplError(f"{file} cannot be read ({reason})", "use energy.meter = modelled or auto") from error


def _read_number(file: Path) -> int:
    text = _read_text(file)
    if not (text.isascii() and text.isdigit()):
        raise RaplError(f"{file} holds no number", "use energy.meter = modelled or auto")
    return int(text)


def _read_counter(domain: Domain) -> int:
    value = _read_number(domain.file)
    if value > domain.range_uj:
        raise DeviceError(f"{domain.file} reads {value}, beyond its own range of {domain.range_uj}")
    return value
