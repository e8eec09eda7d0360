"""Energy by RAPL: the counters of Intel and AMD processors, read from Linux' powercap files.

    <root>/intel-rapl:N/            one zone a processor package ("package-N"); AMD's driver uses the same names
        name, energy_uj, max_energy_range_uj
        intel-rapl:N:M/             its parts: "core" and "uncore" lie inside the package's own figure and are left
                                    out; "dram" does not, and is added

A zone named "psys" (the whole platform) contains the packages and is never added; the "intel-rapl-mmio" zones are the
same packages once more.  The counter covers the machine, other programs included.

A counter starts again at `max_energy_range_uj` (262 kJ on most processors, 65 kJ for some DRAM).  One wrap between two
samples is seen and added; of two wraps one is lost, and nothing shows it.  So a sample is due at least every
`sample_within_s` (the smallest range at 1 kW, about a minute); later ones are counted in `late_samples` and logged.

While a counter cannot be read, `sample` raises.  The first sample that can be taken again includes what it rose in the
meantime.  But if a counter is lower then, it is unknown whether it wrapped or the driver began anew: what was used in
the meantime is unknown, the total stays, and the sample's `epoch` is one higher.

Since 2020 (CVE-2020-8694) the counters are readable by root alone on most kernels, and virtual machines rarely have
them.  Either is a `RaplError` with the reason, and never a silent zero.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

from clover.errors import DeviceError
from clover.types import EnergySample, Method

log = logging.getLogger("clover.energy")

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")
_MOST_W = 1000.0  # more than any domain draws: sets how often a wrap must be looked for
_WINDOW_NS = 1_000_000_000


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

    `idle_w` of a sample is the configured idle power, or the least average power seen over a second if that is less:
    a machine cannot idle at more than it ever drew.
    """

    method: Method = "measured"

    def __init__(self, *, idle_w: float, now_ns: int, root: Path = POWERCAP, device: str = "cpu0") -> None:
        self.device = device
        self.domains = find_domains(root)
        self.why = f"RAPL: {', '.join(domain.name for domain in self.domains)}"
        self.sample_within_s = min(domain.range_uj for domain in self.domains) / 1e6 / _MOST_W
        self.wraps = 0
        self.late_samples = 0
        self._idle_w = idle_w
        try:
            self._last_uj = [_read_counter(domain) for domain in self.domains]
        except RaplError:
            raise
        except DeviceError as error:
            raise RaplError(str(error), "see whether the driver works, or use energy.meter = modelled") from error
        self._total_uj = 0
        self._epoch = 0
        self._missed = False  # whether the last sample could not be taken
        self._at_ns = now_ns
        self._window = (now_ns, 0)

    async def refresh(self) -> None:
        """Do nothing: a sample is cheap."""

    def sample(self, now_ns: int) -> EnergySample:
        """Return joules since the meter was made.

        Raises DeviceError if a counter cannot be read; the next sample includes what was used in the meantime.
        """
        missed, self._missed = self._missed, True
        counters = [_read_counter(domain) for domain in self.domains]
        self._missed = False
        if missed and any(counter < last for counter, last in zip(counters, self._last_uj, strict=True)):
            self._begin_anew(counters, now_ns)
            return self._sampled()
        if now_ns - self._at_ns > self.sample_within_s * 1e9:
            self.late_samples += 1
            log.warning("RAPL was not read for %.0f s; a counter may have wrapped unseen", (now_ns - self._at_ns) / 1e9)
        for index, domain in enumerate(self.domains):
            delta_uj = counters[index] - self._last_uj[index]
            if delta_uj < 0:
                self.wraps += 1
                delta_uj += domain.range_uj
            self._total_uj += delta_uj
        self._last_uj = counters
        self._at_ns = max(self._at_ns, now_ns)
        self._lower_idle()
        return self._sampled()

    def _sampled(self) -> EnergySample:
        return EnergySample(
            device=self.device,
            at_ns=self._at_ns,
            total_j=self._total_uj / 1e6,
            idle_w=self._idle_w,
            method=self.method,
            epoch=self._epoch,
        )

    def _begin_anew(self, counters: list[int], now_ns: int) -> None:
        seconds = (now_ns - self._at_ns) / 1e9
        log.warning("RAPL was lower after it could not be read: what was used for %.0f s is unknown", seconds)
        self._epoch += 1
        self._last_uj = counters
        self._at_ns = max(self._at_ns, now_ns)
        self._window = (self._at_ns, self._total_uj)

    def _lower_idle(self) -> None:
        since_ns, since_uj = self._window
        if self._at_ns - since_ns >= _WINDOW_NS:
            self._idle_w = min(self._idle_w, (self._total_uj - since_uj) * 1e3 / (self._at_ns - since_ns))
            self._window = (self._at_ns, self._total_uj)


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
