"""The work of one worker: rows, busy time, and the joules that its profile expects of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clover.types import FamilyProfile

PAUSE_NS = 2_000_000
"""The pause after which `LatencyMeasurement.rested_j` was measured (`planning.model.queueing.REST_S`)."""
WAKE_NS = 8_000_000
"""The pause from which on a batch costs `LatencyMeasurement.wake_j` more (`planning.model.queueing.WAKE_S`)."""

_SLACK_NS = 20_000_000
"""CPU time is read before a batch begins and after it ends: in sum it may be that much longer than the batches."""


class ProfiledEnergy(NamedTuple):
    """What a profile expects of a worker: active joules a row at each batch size from 0 (empty: it was not measured),
    and the joules that a batch costs more after a pause of `PAUSE_NS`, and its process beside it after one of
    `WAKE_NS`."""

    per_row: Sequence[float] = ()
    rested_j: float = 0.0
    wake_j: float = 0.0


class HostProcess(NamedTuple):
    """The process of a worker, whose clock the account of the machine reads (0: there is none), and how many cores it
    may use."""

    pid: int = 0
    cores: int = 1


_UNKNOWN = ProfiledEnergy()
_NO_PROCESS = HostProcess()


def profiled_energy(
    profile: FamilyProfile | None, variant: str, shape: str, backend: str, max_batch: int
) -> ProfiledEnergy:
    """Return what `profile` expects of a worker at batch sizes 0 .. `max_batch` (index 0 repeats 1).

    As plans take it (`planning.model.queueing.Service.energy_j`): the energy of a batch is linear between measured
    sizes, and that of a row is constant beyond the largest.
    """
    measured = [
        m
        for m in (profile.latency if profile is not None else ())
        if (m.variant, m.profile, m.backend) == (variant, shape, backend)
    ]
    if not measured:
        return ProfiledEnergy()
    points = sorted((m.batch, m.batch * m.energy_j_per_row) for m in measured)
    out: list[float] = []
    for batch in range(max_batch + 1):
        rows = min(max(batch, 1), points[-1][0])
        below = [p for p in points if p[0] <= rows] or points[:1]
        above = [p for p in points if p[0] >= rows]
        (b0, e0), (b1, e1) = below[-1], above[0]
        out.append((e0 if b1 <= b0 else e0 + (e1 - e0) * (rows - b0) / (b1 - b0)) / rows)
    return ProfiledEnergy(out, max(m.rested_j for m in measured), max(m.wake_j for m in measured))


class WorkerMeter:
    """The work of one worker, counted by the router as batches come back and collected once a window.

    `slices` are compute slices.  `profiled` is what the profile expects of it; without that, modelled energy is CPU
    seconds x `core_w`.  `ratio` is measured over profiled energy, kept by its account, as is `idle_w`, the idle power
    of its slice; `factor` what was learned of that ratio for its (variant, profile of the slice), by which modelled
    energies are split.  The worker says how much CPU time a batch took, and is not trusted: that cannot be more than
    its cores gave while it was busy.
    """

    __slots__ = (
        "_answered_by",
        "_batch_ns",
        "_batches",
        "_closed_rows",
        "_joules",
        "_latest_j",
        "_rested_j",
        "_spare_ns",
        "_top",
        "_wake_j",
        "answered",
        "busy_ns",
        "core_w",
        "cores",
        "cpu_ns",
        "device",
        "factor",
        "family",
        "holds",
        "idle_w",
        "modelled_j",
        "pid",
        "placement",
        "ratio",
        "rows",
        "slices",
        "tenant_parts",
        "variant",
        "window_audits",
        "window_busy_ns",
        "window_gone_on",
        "window_idle_j",
        "window_modelled_j",
        "window_right",
        "window_tenants",
        "window_waiting",
        "window_wasted",
    )

    def __init__(
        self,
        *,
        family: str,
        variant: str,
        device: str,
        placement: str,
        slices: int,
        profiled: ProfiledEnergy = _UNKNOWN,
        core_w: float = 8.0,
        process: HostProcess = _NO_PROCESS,
    ) -> None:
        self.family = family
        self.variant = variant
        self.device = device
        self.placement = placement
        self.slices = slices
        self.core_w = core_w
        self.pid = process.pid
        self.cores = process.cores
        self.ratio = 1.0
        self.factor = 1.0
        self.idle_w = 0.0
        self.holds = True
        """Whether it holds its slices, and their idle energy; not so one that shares a worker and has no rows by the
        plan."""
        self._joules = tuple(profiled.per_row)
        self._rested_j = profiled.rested_j
        self._wake_j = profiled.wake_j
        self._top = len(self._joules) - 1
        self._batches = array("q", bytes(8 * len(self._joules)))
        self._batch_ns = array("d", bytes(8 * len(self._joules)))
        self.rows = 0
        self._closed_rows = 0
        self.busy_ns = 0
        self.cpu_ns = 0
        self._spare_ns = _SLACK_NS
        self.modelled_j = 0.0
        self.window_gone_on = 0
        self.window_audits = 0
        self.window_right = 0.0
        self.window_wasted = 0
        self.window_busy_ns = 0
        self.window_idle_j = 0.0
        """Idle joules of its slice while it computed the batches of the window under way."""
        self.window_modelled_j = 0.0
        self.answered = 0
        """Rows answered since `collect_answered`."""
        self._answered_by: dict[str, int] = {}
        self._latest_j = 0.0
        self.window_tenants: dict[str, list[float]] = {}
        """By tenant: rows of the window under way, and the joules that its profile expects of them."""
        self.tenant_parts: tuple[tuple[str, float], ...] = ()
        """Which part of its joules each tenant has, by the last window in which it finished a batch."""
        self.window_waiting: dict[str, list[float]] = {}
        """The same as `window_tenants` for rows of batch jobs; the empty tenant is none."""

    def add(self, rows: int, busy_ns: int, cpu_ns: int, pause_ns: int = 0, failed: int = 0) -> float:
        """Count a finished batch; return what it took, in joules a row: active ones, corrected by `ratio`, and the idle
        power of its slice while it was computed.

        `busy_ns` and `pause_ns`, the pause before it, are known; `cpu_ns` is the worker's own figure.  The time of one
        that `failed` (not 0) says nothing about its model.
        """
        most_ns = busy_ns * self.cores + self._spare_ns
        if cpu_ns > most_ns:
            cpu_ns = most_ns
        self._spare_ns = min(most_ns - cpu_ns, _SLACK_NS)
        if self._top >= 0:
            size = rows if rows <= self._top else self._top
            warm_j = per_row = self._joules[size]
            part = 1.0
            if self._rested_j > 0.0 and rows:
                # After a pause caches are cold: measured after PAUSE_NS, and in proportion before.
                per_row += self._rested_j * (1.0 if pause_ns >= PAUSE_NS else pause_ns / PAUSE_NS) / rows
                part = warm_j / per_row  # and it takes longer by as much
            if self._wake_j > 0.0 and rows:
                per_row += self._wake_j * (1.0 if pause_ns >= WAKE_NS else pause_ns / WAKE_NS) / rows
            if not failed:
                self._batches[size] += 1
                self._batch_ns[size] += busy_ns * part
        else:
            per_row = cpu_ns * 1e-9 * self.core_w / rows if rows else 0.0
        joules = per_row * rows
        idle_j = self.idle_w * busy_ns * 1e-9
        self.rows += rows
        self.busy_ns += busy_ns
        self.cpu_ns += cpu_ns
        self.modelled_j += joules
        self.window_busy_ns += busy_ns
        self.window_idle_j += idle_j
        self.window_modelled_j += joules
        self._latest_j = per_row
        return per_row * self.ratio + (idle_j / rows if rows else 0.0)

    def record_passed_on(self, gone_on: int, audits: int, right: float) -> None:
        """Record that a cascade passed `gone_on` rows of the last batch on to another variant, and that `audits` rows
        answer no client.  The other rows are right by `right` (rows x percent) more than the variant is over all of its
        rows.  `gone_on` is less by the rows that were passed on earlier and kept their earlier answer."""
        self.window_gone_on += gone_on
        self.window_audits += audits
        self.window_right += right

    def record_wasted(self, rows: int) -> None:
        """Record that `rows` of the rows so far were computed in vain: no client gets the answer."""
        self.window_wasted += rows

    def charge(self, tenants: list[str]) -> None:
        """Charge the rows of the last batch to these tenants, one a row (empty: to none)."""
        for tenant in tenants:
            if tenant:
                work = self.window_tenants.get(tenant)
                if work is None:
                    work = self.window_tenants[tenant] = [0.0, 0.0]
                work[0] += 1.0
                work[1] += self._latest_j

    def record_answered(self, tenants: list[str]) -> None:
        """Record the tenants of the rows that were answered, one a row (empty: none)."""
        for tenant in tenants:
            if tenant:
                self._answered_by[tenant] = self._answered_by.get(tenant, 0) + 1

    def record_waiting(self, tenants: Iterable[str]) -> None:
        """Charge the rows of the last batch, which were those of batch jobs, to these tenants, one a row."""
        for tenant in tenants:
            work = self.window_waiting.setdefault(tenant, [0.0, 0.0])
            work[0] += 1.0
            work[1] += self._latest_j

    @property
    def waiting_rows(self) -> int:
        """Rows of the window under way that are those of batch jobs."""
        return int(sum([work[0] for work in self.window_waiting.values()])) if self.window_waiting else 0

    def waiting_parts(self) -> dict[str, float]:
        """Return by tenant which part of the worker's joules of the window the rows of batch jobs took."""
        by = 1 if self.window_modelled_j > 0.0 else 0
        whole = self.window_modelled_j if by else float(self.window_rows)
        return {tenant: work[by] / whole for tenant, work in self.window_waiting.items()} if whole > 0.0 else {}

    def collect_answered(self) -> tuple[int, dict[str, int]]:
        """Return how many rows were answered since the last call, and how many of these were each tenant's."""
        taken = self.answered, self._answered_by
        self.answered, self._answered_by = 0, {}
        return taken

    @property
    def shape(self) -> str:
        """The profile of its slice, from `placement` ("cpu0:1c@1")."""
        return self.placement.rpartition(":")[2].partition("@")[0]

    def collect_batches(self) -> dict[int, tuple[int, float]]:
        """Return, by rows of a batch, how many batches were computed since the last call and how many seconds they
        took, without what pauses before them added; nothing for a worker without a profile."""
        found = {rows: (count, self._batch_ns[rows] * 1e-9) for rows, count in enumerate(self._batches) if count}
        for rows in found:
            self._batches[rows], self._batch_ns[rows] = 0, 0.0
        return found

    @property
    def window_rows(self) -> int:
        """Rows of the window under way."""
        return self.rows - self._closed_rows

    @property
    def window_useful(self) -> int:
        """Rows of the window under way that were of use to a client: neither audits, nor of batch jobs, nor computed in
        vain."""
        return self.window_rows - self.window_audits - self.window_wasted - self.waiting_rows

    def forget_window(self) -> None:
        """Begin a new window, after one was closed or dropped."""
        if self.window_rows:
            self.tenant_parts = self._parts()
            self.window_tenants = {}
            self.window_waiting = {}
        self.window_wasted = 0
        self._closed_rows = self.rows
        self.window_gone_on = 0
        self.window_audits = 0
        self.window_right = 0.0
        self.window_busy_ns = 0
        self.window_idle_j = 0.0
        self.window_modelled_j = 0.0

    def _parts(self) -> tuple[tuple[str, float], ...]:
        """Return which part of the joules of the window's rows each tenant has, without rows of batch jobs; audits are
        no tenant's."""
        if not self.window_tenants:
            return ()
        by = 1 if self.window_modelled_j > 0.0 else 0
        rows = self.window_rows
        whole = (self.window_modelled_j if by else float(rows)) * (1.0 - self.window_audits / rows)
        whole -= sum([work[by] for work in self.window_waiting.values()])
        whole = max(whole, sum([work[by] for work in self.window_tenants.values()]))
        if whole <= 0.0:
            return ()
        return tuple([(tenant, work[by] / whole) for tenant, work in self.window_tenants.items()])
