"""From what a server has counted to what its ledger gets: the differences of snapshots, by the minute.

Sums are rounded to whole microjoules and nanograms *before* differences are taken, so that those of a run add up to
what was counted, exactly.  What was counted between two snapshots is spread evenly over that time; joules that a meter
gave late, over the time since it was last read.  Minutes are of the wall clock as it is now, and lengths of time are
monotonic: if the clock was set, a difference still counts once, in the minutes that now bear that name.

Nothing here reads a clock or a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clover.telemetry.ledger import latency
from clover.telemetry.ledger.rows import EventRow, KeptProfile
from clover.telemetry.ledger.schema import DAY_S, MINUTE_S, TABLES
from clover.telemetry.ledger.snapshot import Amount, GridMoment, Snapshot
from clover.telemetry.ledger.store import LedgerBatch

MOST_EVENTS = 1000
"""In one flush; more are counted and left out."""
CLOCK_STEP_S = 2.0
"""A wall clock that moved that much more or less than time passed was set (or the machine slept)."""

Parts = list[tuple[int, float]]
"""Minutes, each with the part of a difference that was there when it ended; the last part is 1."""


def minutes_of(since_s: float, until_s: float) -> Parts:
    """Return the minutes (Unix seconds) that a time covers, at most the last day of it, with the part that had passed
    at the end of each."""
    last = math.floor(until_s / MINUTE_S) * MINUTE_S
    if last == until_s and until_s > since_s:
        last -= MINUTE_S
    first = math.floor(max(since_s, until_s - DAY_S) / MINUTE_S) * MINUTE_S
    if first >= last:
        return [(last, 1.0)]
    since_s = max(since_s, float(first))
    length = until_s - since_s
    found = [(at, (at + MINUTE_S - since_s) / length) for at in range(first, last, MINUTE_S)]
    return [*found, (last, 1.0)]


def spread(whole: int, parts: Parts) -> list[int]:
    """Return what each minute gets of `whole`; they sum to it."""
    if len(parts) == 1:
        return [whole]
    ends = [whole if part >= 1.0 else round(whole * part) for _, part in parts]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def micro(value: float) -> int:
    """Return joules as microjoules, or a percent as millionths."""
    return round(value * 1e6)


def nano(value: float) -> int:
    """Return grams as nanograms."""
    return round(value * 1e9)


class Collector:
    """Takes snapshots of one run that began at `at_s` (Unix seconds) and `mono_s` (monotonic), and gives batches.

    `pue` is that of the grams.  `clock_steps` counts how often the wall clock was set, `left_out_events` events beyond
    `MOST_EVENTS` in a flush.
    """

    def __init__(self, at_s: float, mono_s: float, pue: float) -> None:
        self.clock_steps = 0
        self.left_out_events = 0
        self._pue = pue
        self._began_s = mono_s
        self._taken = (at_s, mono_s)
        self._moment_s = mono_s
        self._grid_joules = 0
        self._grid_grams = 0
        self._counted: dict[Any, tuple[int, ...]] = {}
        self._latency: dict[str, Sequence[int]] = {}
        self._metered_s: dict[str, float] = {}
        self._rows: dict[str, dict[tuple[Any, ...], list[Any]]] = {name: {} for name in TABLES}
        self._events: list[EventRow] = []
        self._profiles: list[KeptProfile] = []
        self._facts = ""
        self._number = 0

    def begin(self, at_s: float, mono_s: float) -> None:
        """Begin at another moment, before anything was taken: another server counted until then."""
        self._began_s = self._moment_s = mono_s
        self._taken = (at_s, mono_s)

    # --- what is taken ------------------------------------------------------------------------------------------------

    def event(self, event: EventRow) -> None:
        """Note that something happened."""
        if len(self._events) < MOST_EVENTS:
            self._events.append(event)
        else:
            self.left_out_events += 1

    def profile(self, profile: KeptProfile) -> None:
        """Note that a model is served with a profile."""
        self._profiles.append(profile)

    def facts(self, facts: str) -> None:
        """Note what figures are made with (JSON)."""
        self._facts = facts

    def grid(self, moment: GridMoment) -> None:
        """Take the intensity in force: once a second, so that a minute may have several."""
        spent_s = max(moment.mono_s - self._moment_s, 0.0)
        ms = self._since(("grid", "ms"), (round((moment.mono_s - self._began_s) * 1e3),))[0]
        joules, grams = moment.joules_uj - self._grid_joules, moment.grams_ng - self._grid_grams
        self._moment_s = max(moment.mono_s, self._moment_s)
        self._grid_joules, self._grid_grams = moment.joules_uj, moment.grams_ng
        net = self._since(("grid", "net"), (round(moment.grams_ng / self._pue),))[0]
        figures = {
            "seconds_ms": ms,
            "intensity_time": round(moment.g_per_kwh * 1e3) * ms,
            "age_time": round(moment.age_s * ms),
            "age_max_s": math.ceil(moment.age_s),
            "joules_uj": joules,
            "net_ng": net,
            "grams_ng": grams,
        }
        self._book("grid", moment.key, figures, minutes_of(moment.at_s - spent_s, moment.at_s))

    def take(self, snapshot: Snapshot) -> None:
        """Take all other figures."""
        at_s, mono_s = self._taken
        passed_s = max(snapshot.mono_s - mono_s, 0.0)
        moved_s = snapshot.at_s - at_s - passed_s
        if abs(moved_s) > CLOCK_STEP_S:
            self.clock_steps += 1
            text = f"the wall clock moved by {moved_s:+.1f} s that did not pass: it was set, or the machine slept"
            self.event(EventRow(snapshot.at_s, "fault", "", text))
        self._taken = snapshot.at_s, max(snapshot.mono_s, mono_s)
        here = minutes_of(snapshot.at_s - passed_s, snapshot.at_s)
        late = {device: self._late(device, snapshot, here) for device in {"", *snapshot.metered_s}}
        self._metered_s.update(snapshot.metered_s)
        self._take_energy(snapshot, here, late)
        for (model, tenant), codes in snapshot.requests.items():
            self._add("usage", (model, "", "", "", tenant, ""), ("requests", model, tenant), _outcomes(codes), here)
        self._take_models(snapshot, here)
        for compared, counts in snapshot.compared.items():
            figures = {
                "rows": counts.rows,
                "own_uj": micro(counts.own.joules),
                "own_ng": nano(counts.own.grams),
                "shadow_uj": micro(counts.shadow.joules),
                "shadow_ng": nano(counts.shadow.grams),
                "own_upr": micro(counts.own_right),
                "shadow_upr": micro(counts.shadow_right),
                "error_ng": nano(counts.error_g),
            }
            self._add("saved", (*compared, counts.label), ("saved", compared), figures, here)

    def flush(self, at_s: float) -> LedgerBatch | None:
        """Return what was taken since the last call; None if that is nothing."""
        rows = {name: found for name, found in self._rows.items() if found}
        if not (rows or self._events or self._profiles or self._facts):
            return None
        self._number += 1
        batch = LedgerBatch(self._number, at_s, rows, self._events, self._profiles, self._facts)
        self._rows = {name: {} for name in TABLES}
        self._events, self._profiles, self._facts = [], [], ""
        return batch

    # --- tables -------------------------------------------------------------------------------------------------------

    def _take_energy(self, snapshot: Snapshot, here: Parts, late: Mapping[str, Parts]) -> None:
        for (device, line), (label, amount) in snapshot.lines.items():
            figures = _amount("joules_uj", "grams_ng", amount)
            self._add("lines", (device, line, label), ("lines", device, line), figures, late.get(device, here))
        for cell, counts in snapshot.cells.items():
            label = next(reversed([*counts.energy]), "") if counts.energy else ""
            self._add("usage", (*cell, label), ("rows", cell), {"rows": counts.rows}, here)
            for known, amount in counts.energy.items():
                figures = _amount("active_uj", "active_ng", amount)
                self._add("usage", (*cell, known), ("active", cell, known), figures, late.get(cell.device, here))
        for (model, variant, known), amount in snapshot.idle.items():
            figures = _amount("idle_uj", "idle_ng", amount)
            self._add("usage", (model, variant, "", "", "", known), ("idle", model, variant, known), figures, here)
        for (model, line, known), amount in snapshot.overheads.items():
            figures = _amount(f"{line}_uj", f"{line}_ng", amount)
            self._add("usage", (model, "", "", "", "", known), (line, model, known), figures, late[""])

    def _take_models(self, snapshot: Snapshot, here: Parts) -> None:
        for model, counts in snapshot.models.items():
            for tenant, joules in counts.receipts_j.items():
                receipts = {"receipts_uj": micro(joules)}
                self._add("usage", (model, "", "", "", tenant, ""), ("receipts", model, tenant), receipts, here)
            figures = {
                "rows": counts.rows,
                "accuracy_upr": micro(counts.accuracy_rows),
                "labelled": counts.labelled,
                "labelled_right": counts.right,
                "requests": counts.answered,
                "violations": counts.violations,
                "held": counts.held,
                "missed": counts.missed,
            }
            key = (model, float(counts.slo_ms))
            self._add("quality", key, ("quality", model), figures, here)
            before = self._latency.get(model, (0,) * len(counts.latency))
            self._latency[model] = counts.latency
            answered = self._since(("answered", model), (counts.answered,))[0]
            if answered:
                more = [now - was for now, was in zip(counts.latency, before, strict=True)]
                self._add_latency(key, latency.counts_of(more, answered), here)

    def _add_latency(self, key: Sequence[Any], buckets: Mapping[int, int], here: Parts) -> None:
        """Add counts by bucket to the histograms of `key`."""
        place = _PLACES["quality"]["latency"]
        by_minute: dict[int, dict[int, int]] = {}
        for bucket, count in buckets.items():
            for (minute, _), part in zip(here, spread(count, here), strict=True):
                if part:
                    by_minute.setdefault(minute, {})[bucket] = part
        for minute, found in by_minute.items():
            row = self._row("quality", minute, key)
            row[place] = latency.add(row[place], latency.encode(found))

    def _late(self, device: str, snapshot: Snapshot, here: Parts) -> Parts:
        """Return the minutes that the newly metered energy of a device is of."""
        until_s = snapshot.metered_s.get(device)
        since_s = self._metered_s.get(device, self._began_s)
        if until_s is None or until_s <= since_s:
            return here
        offset_s = snapshot.at_s - snapshot.mono_s
        return minutes_of(since_s + offset_s, until_s + offset_s)

    def forget(self, model: str) -> None:
        """Forget what a model has counted, as it is gone: another one of that name begins at zero."""
        self._latency.pop(model, None)
        gone = [key for key in self._counted if key[0] in ("requests", "quality", "answered") and key[1] == model]
        for key in gone:
            del self._counted[key]

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _since(self, identity: Any, now: tuple[int, ...]) -> tuple[int, ...]:
        """Return how much more there is of some figures than when they were last asked for."""
        before = self._counted.get(identity)
        self._counted[identity] = now
        return now if before is None else tuple(a - b for a, b in zip(now, before, strict=True))

    def _add(self, table: str, key: Sequence[Any], identity: Any, figures: Mapping[str, int], parts: Parts) -> None:
        """Add what figures, which are sums and known by `identity`, are more than before, to rows of `key`."""
        more = self._since(identity, tuple(figures.values()))
        if any(more):
            self._book(table, key, dict(zip(figures, more, strict=True)), parts)

    def _book(self, table: str, key: Sequence[Any], figures: Mapping[str, int], parts: Parts) -> None:
        """Add figures to the rows of `key` in the minutes of `parts`."""
        spec, places = TABLES[table], _PLACES[table]
        if len(parts) == 1:
            row = self._row(table, parts[0][0], key)
            for name, value in figures.items():
                if value:
                    place = places[name]
                    row[place] = max(row[place], value) if name in spec.folds else row[place] + value
            return
        for name, whole in figures.items():
            largest = name in spec.folds
            each = [whole] * len(parts) if largest else spread(whole, parts)
            for (minute, _), value in zip(parts, each, strict=True):
                if value:
                    row, place = self._row(table, minute, key), places[name]
                    row[place] = max(row[place], value) if largest else row[place] + value

    def _row(self, table: str, minute: int, key: Sequence[Any]) -> list[Any]:
        """Return the row of a minute, made if it is missing."""
        rows, full = self._rows[table], (minute, MINUTE_S, *key)
        row = rows.get(full)
        if row is None:
            row = rows[full] = list(_EMPTY[table])
        return row


_PLACES = {name: {figure: at for at, figure in enumerate(spec.figures)} for name, spec in TABLES.items()}
_EMPTY = {
    name: ["" if spec.fold(figure) == "histogram" else 0 for figure in spec.figures] for name, spec in TABLES.items()
}


def _amount(joules: str, grams: str, amount: Amount) -> dict[str, int]:
    return {joules: micro(amount.joules), grams: nano(amount.grams)}


def _outcomes(codes: Mapping[int, int]) -> dict[str, int]:
    """Return requests by outcome."""
    found = {"requests": 0, "ok": 0, "client_errors": 0, "limited": 0, "server_errors": 0}
    for code, count in codes.items():
        found["requests"] += count
        name = "limited" if code == 429 else {2: "ok", 4: "client_errors", 5: "server_errors"}.get(code // 100, "")
        if name:
            found[name] += count
    return found
