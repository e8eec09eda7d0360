"""The account of one device: its windows, and how each is split over the workers on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clover.accounting.host import HostParts
from clover.accounting.labels import METER_ERROR, grams_method, join_labels
from clover.accounting.meters import WorkerMeter
from clover.accounting.prices import Mark, Price, Prices
from clover.types import EnergySample, Method

_SECOND_NS = 1_000_000_000
_RATIO_MEMORY = 0.95
"""Weight of earlier windows in the measured/modelled ratio: about twenty windows count."""

LINES = (
    *("active", "waiting", "front_end", "control", "idle", "idle_no_request", "awake"),
    *("unowned", "foreign", "unattributed", "carried"),
)
"""The lines of a device, whose joules sum to what its meter showed, and whose grams sum to what that cost."""
IDLE = ("idle", "idle_no_request", "awake")
"""The lines of the idle energy that workers hold."""

Parts = list[tuple[WorkerMeter, float]]


@dataclass
class Share:
    """Joules and grams of a family; active and idle apart."""

    active_j: float = 0.0
    idle_j: float = 0.0
    active_g: float = 0.0
    idle_g: float = 0.0

    @property
    def total_j(self) -> float:
        return self.active_j + self.idle_j

    @property
    def total_g(self) -> float:
        return self.active_g + self.idle_g

    def add_active(self, joules: float, prices: Sequence[Price]) -> None:
        """Add active energy that cost `prices`."""
        self.active_j += joules
        self.active_g += sum(joules * price.part * price.grams_per_j for price in prices)

    def add_idle(self, joules: float, prices: Sequence[Price]) -> None:
        """Add idle energy that cost `prices`."""
        self.idle_j += joules
        self.idle_g += sum(joules * price.part * price.grams_per_j for price in prices)


@dataclass
class Line:
    """Joules and grams of one line of a device, the grams also by how the intensity was known."""

    joules: float = 0.0
    grams: float = 0.0
    grids: dict[str, float] = field(default_factory=dict)

    def add(self, joules: float, prices: Sequence[Price]) -> None:
        """Add energy that cost `prices`."""
        self.joules += joules
        for price in prices:
            grams = joules * price.part * price.grams_per_j
            self.grams += grams
            self.grids[price.method] = self.grids.get(price.method, 0.0) + grams


class BookKey(NamedTuple):
    """Whose joules they are: the line of a device, with family, variant and placement, which are empty where joules
    belong to none."""

    device: str
    line: str
    family: str
    variant: str
    placement: str
    method: Method


class WorkerRows(NamedTuple):
    """What a worker did in a window: rows that were of use to a client; how many of them a cascade passed on; by how
    many rows x percent the others are right more often than the variant is over all of them; the joules that its
    profile expects of everything that it computed; and how many rows that was."""

    meter: WorkerMeter
    rows: int
    gone_on: int
    right: float
    expected_j: float
    computed: int


class Learnable(NamedTuple):
    """Active joules of some workers together, and what their profiles expect of the batches that they ended.  `shared`:
    of all that worked on the device; else of one worker.  The batches began up to `reach_s` seconds before the window.
    The joules are as read: noise of the meter may make them negative."""

    joules: float
    expected: Parts
    shared: bool
    reach_s: float


class ClosedWindow(NamedTuple):
    """A window of a device, split over its workers.

    `active` and `idle` are the joules of each worker, `audits` those that it spent on rows that answer no client, and
    `waiting` by tenant those that it spent on rows of batch jobs;
    `kept` is the part of `idle` that its slice drew while it computed, `awake_j` that which contexts on a GPU draw.
    `unowned_j` are the idle joules of slices without a
    worker, `foreign_j` those of slices that are not the server's,
    `control_j` what control used beside audits, `carried_j` idle joules beyond what was measured (below zero) or that
    make up for such, `seconds` the length of the window, `prices` what a joule of it cost.  `learnable`: active joules
    of workers as far as these can be told apart.
    """

    active: Parts
    audits: Parts
    waiting: list[tuple[WorkerMeter, str, float]]
    idle: Parts
    kept: Parts
    rows: list[WorkerRows]
    awake_j: float
    unowned_j: float
    foreign_j: float
    front_end_j: float
    control_j: float
    unattributed_j: float
    carried_j: float
    seconds: float
    prices: tuple[Price, ...]
    learnable: list[Learnable]

    def idle_lines(self) -> Iterator[tuple[WorkerMeter, str, float]]:
        """Yield worker, line and joules of `idle`, by the lines to which it belongs.  No part is below 0, and the sums
        are those of the device's lines.  A worker's part of the line `idle` is what it kept.  If that is more than all
        its idle energy (its batch began before the window, or it has ended), the others' parts make up for it."""
        held_j = sum(part_j for _, part_j in self.idle)
        if held_j <= 0.0:
            return
        awake = min(self.awake_j / held_j, 1.0)
        left, kept = dict(self.kept), []
        for meter, part_j in self.idle:
            rest_j = part_j * (1.0 - awake)
            kept.append(min(left.get(meter, 0.0), rest_j))
            left[meter] = left.get(meter, 0.0) - kept[-1]
        free_j = held_j * (1.0 - awake) - sum(kept)
        more = min(sum(left.values()) / free_j, 1.0) if free_j > 0.0 else 0.0
        for (meter, part_j), kept_j in zip(self.idle, kept, strict=True):
            kept_j += (part_j * (1.0 - awake) - kept_j) * more
            yield meter, "idle", kept_j
            yield meter, "idle_no_request", max(part_j * (1.0 - awake) - kept_j, 0.0)
            if awake:
                yield meter, "awake", part_j * awake


NOTHING = ClosedWindow([], [], [], [], [], [], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (), [])


@dataclass
class Ratio:
    """Measured over modelled active energy, recent windows weighing most; 1 until something was measured."""

    measured_j: float = 0.0
    modelled_j: float = 0.0

    @property
    def value(self) -> float:
        return self.measured_j / self.modelled_j if self.modelled_j > 0.0 else 1.0

    def add(self, measured_j: float, modelled_j: float) -> None:
        """Add a window."""
        self.measured_j = self.measured_j * _RATIO_MEMORY + measured_j
        self.modelled_j = self.modelled_j * _RATIO_MEMORY + modelled_j


@dataclass
class DeviceAccount:
    """The running state of one device with `slices` compute slices, and `foreign` ones that are metered and not the
    server's."""

    slices: int
    foreign: float = 0.0
    rest_j: float = 0.0
    """Idle energy, whatever it is billed to."""
    last: EnergySample | None = None
    lines: dict[str, Line] = field(default_factory=lambda: {line: Line() for line in LINES})
    total: Line = field(default_factory=Line)
    """What the meter showed."""
    overall: Ratio = field(default_factory=Ratio)
    ratios: dict[tuple[str, str, int], Ratio] = field(default_factory=dict)
    """Of each (family, variant, slices) whose energy is known by its own CPU time."""
    method: Method = "none"
    watts: float = 0.0
    """Of the last window."""
    idle_w: float = 0.0
    awake_w: float = 0.0
    """What a GPU draws beyond `idle_w` for the contexts on it."""
    shared: tuple[str, ...] = ()
    """Others that computed on the GPU in the last window, or may have."""
    shared_s: float = 0.0
    shared_active_j: float = 0.0
    """Active energy of windows in which others computed on it, too."""
    frozen: bool = True
    """Whether the last sample brought nothing new, or there was none yet."""
    restarts: int = 0
    """Times that the meter began anew."""
    unmetered_s: float = 0.0
    """Seconds in which the meter gave no reading."""
    unknown_s: float = 0.0
    """Seconds whose energy is not counted and never will be: before the meter began anew."""
    uncertainty: tuple[float, float] | None = None
    active_uncertainty: tuple[float, float] | None = None
    retired_busy_ns: int = 0
    _looks: int = 0
    _held: dict[WorkerMeter, float] = field(default_factory=dict)
    _foreign: float = 0.0
    _mark: Mark = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Measured over modelled active energy of all its workers, modelled with what was learned of their profiles."""
        return self.overall.value

    @property
    def carried_j(self) -> float:
        """Idle energy beyond what was measured, at most 0."""
        return self.lines["carried"].joules

    def uncertainties(self) -> dict[str, float]:
        """Return how far off its joules may be, and the active ones: both ends of each, as far as these are known."""
        ranges = (("uncertainty", self.uncertainty), ("active_uncertainty", self._active_uncertainty()))
        known = [(name, bounds) for name, bounds in ranges if bounds is not None]
        return {f"{name}_{end}": bounds[i] for name, bounds in known for i, end in enumerate(("low", "high"))}

    def _active_uncertainty(self) -> tuple[float, float] | None:
        """Return how far off active joules may be; of those while others computed, all may be theirs."""
        ours_j = sum(self.lines[line].joules for line in ("active", "waiting", "front_end", "control", "unattributed"))
        if self.shared_active_j <= 0.0 or ours_j <= 0.0:
            return self.active_uncertainty
        low, high = self.active_uncertainty or (-METER_ERROR.get(self.method, 0.0), METER_ERROR.get(self.method, 0.0))
        return max(low - self.shared_active_j / ours_j, -1.0), high

    def report(self) -> dict[str, float | str]:
        """Return its lines and figures, as `Account.devices` describes them."""
        return {
            "measured_j": self.total.joules,
            "total_g": self.total.grams,
            **{f"{line}_j": self.lines[line].joules for line in LINES},
            **{f"{line}_g": self.lines[line].grams for line in LINES},
            "rest_j": self.rest_j,
            **({} if self.frozen else {"watts": self.watts}),
            "idle_w": self.idle_w,
            "awake_w": self.awake_w,
            "shared": ", ".join(self.shared),
            "shared_s": self.shared_s,
            "ratio": self.ratio,
            "frozen": float(self.frozen),
            "restarts": float(self.restarts),
            "unmetered_s": self.unmetered_s,
            "unknown_s": self.unknown_s,
            **self.uncertainties(),
            "method": self.method,
            "intensity": join_labels(self.total.grids),
            "grams_method": join_labels(grams_method(self.method, known) for known in self.total.grids),
        }

    def ratio_of(self, meter: WorkerMeter) -> float:
        """Return measured over profiled active energy of workers like that of `meter`.  If their own CPU time tells it,
        it is that; else it is what was learned of them times the ratio of all."""
        own = self.ratios.get((meter.family, meter.variant, meter.slices))
        return own.value if own is not None else self.ratio * meter.factor

    def idle_w_of(self, meter: WorkerMeter) -> float:
        """Return the idle power of the slice of a worker, in watts."""
        return self.idle_w * meter.slices / max(self.slices + self.foreign, meter.slices)

    def rescale_modelled(self, part: float) -> None:
        """Record that modelled energies of its workers are `part` times what they were, as their factors changed."""
        self.overall.modelled_j *= part

    def close_window(
        self,
        sample: EnergySample,
        here: Sequence[WorkerMeter],
        gone: Sequence[WorkerMeter],
        prices: Prices,
        host: HostParts | None = None,
    ) -> ClosedWindow | None:
        """Close the window at `sample` and return it; None if it stays open.  `here` are the workers that hold slices
        now, `gone` those that worked in the window and have ended.  If `host` is given, active energy is split by its
        CPU times."""
        self.method, self.idle_w, self.awake_w = sample.method, sample.idle_w, sample.awake_w
        self.shared = sample.shared
        self.uncertainty, self.active_uncertainty = sample.uncertainty, sample.active_uncertainty
        self._observe_slices(here)
        last = self.last
        if last is not None and sample.epoch == last.epoch and sample.at_ns <= last.at_ns:
            self.frozen = True
            return None
        self.frozen = False
        self.last = sample
        before, self._mark = self._mark, prices.at(sample.at_ns)
        # On the host of GPUs the workers hold its idle power and use its CPU time; what they do is the GPUs' account.
        worked = [meter for meter in (*here, *gone) if meter.device == sample.device]
        rows = [
            WorkerRows(
                meter,
                meter.window_useful,
                meter.window_gone_on,
                meter.window_right,
                meter.window_modelled_j,
                meter.window_rows,
            )
            for meter in worked
            if meter.window_rows or meter.window_gone_on
        ]
        modelled = [(meter, meter.window_modelled_j) for meter in worked]
        busy = [(meter, float(meter.window_busy_ns)) for meter in worked]
        kept = [(meter, meter.window_idle_j) for meter in worked if meter.window_idle_j]
        waited = {meter: meter.waiting_parts() for meter in worked if meter.window_waiting}
        audited = {
            meter: meter.window_audits / (meter.window_rows - meter.waiting_rows)
            for meter in worked
            if meter.window_audits
        }
        held = {meter: share / self._looks for meter, share in self._held.items()}
        foreign_part = self._foreign / self._looks
        was_frozen = self._looks > 1
        self._looks, self._held, self._foreign = 0, {}, 0.0
        for meter in worked:
            meter.forget_window()
            meter.idle_w = self.idle_w_of(meter)
        if last is None:
            return NOTHING
        if sample.epoch != last.epoch or sample.total_j < last.total_j:
            self.restarts += 1
            self.unknown_s += max(sample.at_ns - last.at_ns, 0) / _SECOND_NS
            return NOTHING
        measured_j = sample.total_j - last.total_j
        seconds = (sample.at_ns - last.at_ns) / _SECOND_NS
        idle_j = sample.idle_w * seconds
        awake_j = max(sample.awake_j - last.awake_j, 0.0)
        if was_frozen:
            idle_j = min(idle_j, measured_j)
            awake_j = min(awake_j, measured_j - idle_j)
        self.watts = measured_j / seconds
        carried_j = self.carried_j
        active_j = measured_j - idle_j - awake_j + carried_j
        left_j = max(active_j, 0.0)
        if sample.shared or last.shared:
            self.shared_s += seconds
            self.shared_active_j += left_j
        front_end_j = control_j = 0.0
        if host is None:
            active = self._split_by_model(modelled, busy, left_j)
        else:
            # A model integrates the server's CPU time; a counter also what other programs and the emulator use.
            total_ns = host.own_ns
            if sample.method != "modelled":
                total_ns += host.emulator_ns + host.others_ns
            per_ns = left_j / total_ns if total_ns > 0 else 0.0
            active = self._split_by_cpu(host, dict(modelled), per_ns)
            front_end_j, control_j = per_ns * host.front_end_ns, per_ns * host.control_ns
        expected, used_ns = dict(modelled), dict(busy)
        if host is None:
            # What was carried here from windows in which nobody worked is none of this one's joules.
            read_j = measured_j - idle_j - awake_j
            longest_ns = max((busy_ns for _, busy_ns in busy), default=0.0)
            learnable = [Learnable(read_j, modelled, True, longest_ns / _SECOND_NS)]
        else:
            learnable = [
                Learnable(part_j, [(meter, expected[meter])], False, used_ns[meter] / _SECOND_NS)
                for meter, part_j in active
                if meter in expected
            ]
        unattributed_j = max(left_j - front_end_j - control_j - sum(part_j for _, part_j in active), 0.0)
        waiting = [
            (meter, tenant, part_j * part)
            for meter, part_j in active
            for tenant, part in waited.get(meter, {}).items()
        ]
        if waited:
            active = [(meter, part_j * (1.0 - sum(waited.get(meter, {}).values()))) for meter, part_j in active]
        audits = [(meter, part_j * audited[meter]) for meter, part_j in active if meter in audited]
        active = [(meter, part_j * (1.0 - audited.get(meter, 0.0))) for meter, part_j in active]
        idle = [(meter, idle_j * share) for meter, share in held.items()]
        held_j, kept_j = sum(part_j for _, part_j in idle), sum(part_j for _, part_j in kept)
        if kept_j > held_j:  # batches that began before the window: what is too much for it is the next one's
            for meter, part_j in kept:
                meter.window_idle_j = part_j * (1.0 - held_j / kept_j)
            kept = [(meter, part_j * held_j / kept_j) for meter, part_j in kept]
        foreign_j = idle_j * foreign_part
        unowned_j = max(idle_j - foreign_j - held_j, 0.0)
        others_j = awake_j * foreign_part
        foreign_j, awake_j = foreign_j + others_j, awake_j - others_j
        if (whole := sum(held.values())) > 0.0:
            # Contexts are the workers', whatever part of our slices these hold.
            idle = [(meter, part_j + awake_j * held[meter] / whole) for meter, part_j in idle]
        elif sample.strangers:
            foreign_j, awake_j = foreign_j + awake_j, 0.0
        else:
            unowned_j, awake_j = unowned_j + awake_j, 0.0  # of workers that load
        for meter in worked:
            meter.ratio = self.ratio_of(meter)
        closed = ClosedWindow(
            active,
            audits,
            waiting,
            idle,
            kept,
            rows,
            awake_j,
            unowned_j,
            foreign_j,
            front_end_j,
            control_j,
            unattributed_j,
            min(active_j, 0.0) - carried_j,
            seconds,
            prices.between(before, self._mark),
            learnable,
        )
        self._add_to_lines(closed, measured_j)
        return closed

    def _add_to_lines(self, closed: ClosedWindow, measured_j: float) -> None:
        self.total.add(measured_j, closed.prices)
        held_j, kept_j = sum(part_j for _, part_j in closed.idle), sum(part_j for _, part_j in closed.kept)
        self.rest_j += closed.unowned_j + closed.foreign_j + held_j
        for line, joules in (
            ("active", sum(part_j for _, part_j in closed.active)),
            ("waiting", sum(part_j for _, _, part_j in closed.waiting)),
            ("front_end", closed.front_end_j),
            ("control", closed.control_j + sum(part_j for _, part_j in closed.audits)),
            ("idle", kept_j),
            ("idle_no_request", max(held_j - closed.awake_j - kept_j, 0.0)),
            ("awake", closed.awake_j),
            ("unowned", closed.unowned_j),
            ("foreign", closed.foreign_j),
            ("unattributed", closed.unattributed_j),
            ("carried", closed.carried_j),
        ):
            self.lines[line].add(joules, closed.prices)

    def _observe_slices(self, here: Iterable[WorkerMeter]) -> None:
        """Record which worker holds which share of the slices.

        This is called once for every sample: once a window, or more often if the window was frozen.
        """
        crowd: dict[tuple[str, str], int] = {}
        meters = [meter for meter in here if meter.holds]
        for meter in meters:
            crowd[meter.device, meter.placement] = crowd.get((meter.device, meter.placement), 0) + 1
        owned = [(meter, meter.slices / crowd[meter.device, meter.placement]) for meter in meters]
        # Placements of an old and a new layout may overlap during a transition: shares must not add up to more than 1.
        owned_slices = sum(count for _, count in owned)
        slices = max(float(self.slices), owned_slices)
        slices += self.foreign
        self._foreign += self.foreign / slices
        self._looks += 1
        for meter, count in owned:
            self._held[meter] = self._held.get(meter, 0.0) + count / slices

    def _split_by_model(self, modelled: Parts, busy: Parts, active_j: float) -> Parts:
        """Split by modelled joules; without a profile by busy times, which say nothing about measured over modelled."""
        by_model = any(joules > 0.0 for _, joules in modelled)
        weights = [(meter, joules * meter.factor) for meter, joules in modelled] if by_model else busy
        total = sum(weight for _, weight in weights)
        if total <= 0.0:
            return []
        if by_model:
            self.overall.add(active_j, total)
        return [(meter, active_j * weight / total) for meter, weight in weights if weight > 0.0]

    def _split_by_cpu(self, host: HostParts, modelled: dict[WorkerMeter, float], per_ns: float) -> Parts:
        """Return `per_ns` joules for each nanosecond that the workers used, and learn how far profiles are off."""
        active = [(meter, per_ns * used_ns) for meter, used_ns in host.workers if used_ns]
        for meter, part_j in active:
            expected_j = modelled.get(meter, 0.0)
            if expected_j > 0.0:
                key = (meter.family, meter.variant, meter.slices)
                self.ratios.setdefault(key, Ratio()).add(part_j, expected_j)
                self.overall.add(part_j, expected_j * meter.factor)
        return active
