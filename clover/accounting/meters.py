"""The work of one worker: rows, busy time, and the joules that its profile expects of them."""

from __future__ import annotations

from collections.abc import Sequence

from clover.types import FamilyProfile

_SLACK_NS = 20_000_000
"""CPU time is read before a batch begins and after it ends: in sum it may be that much longer than the batches."""


def joules_per_row(
    profile: FamilyProfile | None, variant: str, shape: str, backend: str, max_batch: int
) -> list[float]:
    """Return profiled joules a row at each batch size 0 .. `max_batch` (index 0 repeats 1).

    Linear between measured sizes and constant beyond them; empty if the profile has no measurement of such a worker.
    """
    if profile is None:
        return []
    points = sorted(
        (m.batch, m.energy_j_per_row)
        for m in profile.latency
        if (m.variant, m.profile, m.backend) == (variant, shape, backend)
    )
    if not points:
        return []
    out: list[float] = []
    for batch in range(max_batch + 1):
        below = [p for p in points if p[0] <= batch] or points[:1]
        above = [p for p in points if p[0] >= batch] or points[-1:]
        (b0, e0), (b1, e1) = below[-1], above[0]
        out.append(e0 if b1 <= b0 else e0 + (e1 - e0) * (batch - b0) / (b1 - b0))
    return out


class WorkerMeter:
    """The work of one worker, counted by the router as batches come back and collected once a window.

    `slices` are compute slices.  `joules` is the profiled energy a row by batch size; without it, modelled energy is
    CPU seconds x `core_w`.  `ratio` is measured over modelled energy of the device, kept by its account.  The worker
    says how much CPU time a batch took, and is not trusted: that cannot be more than `cores` gave while it was busy.
    """

    __slots__ = (
        "_closed_rows",
        "_joules",
        "_spare_ns",
        "_top",
        "busy_ns",
        "core_w",
        "cores",
        "cpu_ns",
        "device",
        "family",
        "modelled_j",
        "placement",
        "ratio",
        "rows",
        "slices",
        "variant",
        "window_busy_ns",
        "window_gone_on",
        "window_modelled_j",
        "window_right",
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
        joules: Sequence[float] = (),
        core_w: float = 8.0,
        cores: int = 1,
    ) -> None:
        self.family = family
        self.variant = variant
        self.device = device
        self.placement = placement
        self.slices = slices
        self.core_w = core_w
        self.cores = cores
        self.ratio = 1.0
        self._joules = tuple(joules)
        self._top = len(self._joules) - 1
        self.rows = 0
        self._closed_rows = 0
        self.busy_ns = 0
        self.cpu_ns = 0
        self._spare_ns = _SLACK_NS
        self.modelled_j = 0.0
        self.window_gone_on = 0
        self.window_right = 0.0
        self.window_wasted = 0
        self.window_busy_ns = 0
        self.window_modelled_j = 0.0

    def add(self, rows: int, busy_ns: int, cpu_ns: int) -> float:
        """Count a finished batch; return its active joules a row, corrected by the device's `ratio`.

        `busy_ns` is known, `cpu_ns` is the worker's own figure.
        """
        most_ns = busy_ns * self.cores + self._spare_ns
        if cpu_ns > most_ns:
            cpu_ns = most_ns
        self._spare_ns = min(most_ns - cpu_ns, _SLACK_NS)
        if self._top >= 0:
            per_row = self._joules[rows if rows <= self._top else self._top]
        else:
            per_row = cpu_ns * 1e-9 * self.core_w / rows if rows else 0.0
        joules = per_row * rows
        self.rows += rows
        self.busy_ns += busy_ns
        self.cpu_ns += cpu_ns
        self.modelled_j += joules
        self.window_busy_ns += busy_ns
        self.window_modelled_j += joules
        return per_row * self.ratio

    def cascaded(self, gone_on: int, right: float) -> None:
        """Count that of the last batch a cascade passed `gone_on` rows on to another variant.

        The other rows are right by `right` (rows x percent) more than the variant is over all of its rows.  `gone_on`
        is negative for rows that were passed on earlier and kept the answer that they had.
        """
        self.window_gone_on += gone_on
        self.window_right += right

    def waste(self, rows: int) -> None:
        """Count that `rows` of the rows so far were computed in vain: no client gets this answer."""
        self.window_wasted += rows

    @property
    def window_rows(self) -> int:
        """Rows of the window under way that were of use."""
        return self.rows - self._closed_rows - self.window_wasted

    def forget_window(self) -> None:
        """Begin a new window, after one was closed or dropped."""
        self.window_wasted = 0
        self._closed_rows = self.rows
        self.window_gone_on = 0
        self.window_right = 0.0
        self.window_busy_ns = 0
        self.window_modelled_j = 0.0
