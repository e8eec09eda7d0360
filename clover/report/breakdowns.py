"""The grams of a period split by time, model, variant, device or tenant, so that the parts sum to the whole.

The ledger keeps the energy of each time and device.  It also keeps each model's own energy: computing, the idle power
of what its workers hold, its part of front end and control.  The rest of an entry within the boundary, such as the idle
power of cores and slices that no worker holds, is split

1. over the models by their own energy in that entry; if there was none, it is booked on "(no rows served)";
2. of a model, over its variants by the energy of their workers;
3. and over its tenants by the energy of computing their rows; where the ledger has that of no tenant, by the energy on
   their receipts, or else by their rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import NamedTuple

from clover.report.calendar import TIMES, TimeBy, begin_of, name_of
from clover.report.records import Breakdown, By, ReportBucket
from clover.telemetry.ledger.rows import LineRow, UsageRow

NOBODY = "(no rows served)"
NO_TENANT = "(no tenant)"
NO_VARIANT = "(no variant)"
JOULES_PER_KWH = 3.6e6
BY: tuple[By, ...] = ("hour", "day", "month", "model", "variant", "device", "tenant")
_TIMED = "what was used in that time, each minute priced at its own intensity"
_REST = "what belongs to no model (idle power that no worker holds) is split by energy: a modelled split"
ABOUT: Mapping[By, str] = {
    "hour": _TIMED,
    "day": _TIMED,
    "month": _TIMED,
    "model": f"computing its rows, the idle power of its workers, its part of front end and control; {_REST}",
    "variant": f"computing its rows and the idle power of its workers; of all else of its model, its share; {_REST}",
    "device": "what its meter showed, or a model of it, within the boundary",
    "tenant": "the grams of each model, idle power while nobody asked too, by the energy of computing tenants' rows",
}


class EnergyAmount(NamedTuple):
    """Energy in joules with its grams."""

    joules: float = 0.0
    grams: float = 0.0

    def plus(self, other: EnergyAmount, factor: float = 1.0) -> EnergyAmount:
        """Return this and `factor` x the other."""
        return EnergyAmount(self.joules + factor * other.joules, self.grams + factor * other.grams)


@dataclass
class _Sum:
    """What belongs to one bucket so far.  `facility_j`: joules with the overhead of the data centre."""

    requests: int = 0
    rows: int = 0
    own: EnergyAmount = field(default_factory=EnergyAmount)
    shared: EnergyAmount = field(default_factory=EnergyAmount)
    facility_j: float = 0.0
    seconds: float = 0.0


_Sums = dict[str, _Sum]


@dataclass(frozen=True)
class BreakdownRules:
    """How energy is split: which `lines` lie within the boundary, the PUE of a time (None: unknown), the market-based
    factor in g/kWh (None: not given), the time zone of days and months, and how many seconds of each entry (by its
    start) are recorded."""

    lines: Collection[str]
    pue_at: Callable[[float], float | None]
    market_g_per_kwh: float | None
    zone: tzinfo
    recorded_s: Mapping[int, float]


def own_of(row: UsageRow, lines: Collection[str]) -> EnergyAmount:
    """Return what is a model's own in a row, of the account's `lines`."""
    total = EnergyAmount()
    for line, joules, grams in (
        ("active", row.active_j, row.active_g),
        ("idle", row.idle_j, row.idle_g),
        ("front_end", row.front_end_j, row.front_end_g),
        ("control", row.control_j, row.control_g),
    ):
        if line in lines:
            total = total.plus(EnergyAmount(joules, grams))
    return total


def breakdowns_of(usage: Sequence[UsageRow], lines: Sequence[LineRow], rules: BreakdownRules) -> tuple[Breakdown, ...]:
    """Return the grams within the boundary by each of `BY`."""
    within = [row for row in lines if row.line in rules.lines]
    found: dict[By, _Sums] = {by: _by_time(usage, within, by, rules) for by in TIMES}
    found["device"] = _by_device(usage, within, rules)
    found |= _by_use(usage, within, rules)
    return tuple(Breakdown(by=by, about=ABOUT[by], buckets=tuple(_buckets(by, found[by], rules))) for by in BY)


def _by_time(usage: Iterable[UsageRow], within: Iterable[LineRow], by: TimeBy, rules: BreakdownRules) -> _Sums:
    begins: dict[int, str] = {}

    def key(start: int) -> str:
        if start not in begins:
            begins[start] = repr(begin_of(start, by, rules.zone))
        return begins[start]

    sums: _Sums = defaultdict(_Sum)
    for line in within:
        _add_line(sums[key(line.start)], line, rules)
    for row in usage:
        _add_rows(sums[key(row.start)], row)
    for start, seconds in rules.recorded_s.items():
        sums[key(start)].seconds += seconds
    return sums


def _by_device(usage: Iterable[UsageRow], within: Iterable[LineRow], rules: BreakdownRules) -> _Sums:
    sums: _Sums = defaultdict(_Sum)
    for line in within:
        _add_line(sums[line.device], line, rules)
    for row in usage:
        if row.device:
            _add_rows(sums[row.device], row)
    return sums


def _add_line(found: _Sum, line: LineRow, rules: BreakdownRules) -> None:
    found.own = found.own.plus(EnergyAmount(line.joules, line.grams))
    found.facility_j += line.joules * (rules.pue_at(line.start) or 0.0)


def _add_rows(found: _Sum, row: UsageRow) -> None:
    found.requests += row.requests
    found.rows += row.rows


def _by_use(usage: Iterable[UsageRow], within: Iterable[LineRow], rules: BreakdownRules) -> dict[By, _Sums]:
    """Return the sums by model, variant and tenant."""
    used: dict[int, dict[str, list[UsageRow]]] = defaultdict(lambda: defaultdict(list))
    drawn: dict[int, EnergyAmount] = defaultdict(EnergyAmount)
    for row in usage:
        used[row.start][row.model].append(row)
    for line in within:
        drawn[line.start] = drawn[line.start].plus(EnergyAmount(line.joules, line.grams))
    sums: dict[By, _Sums] = {"model": defaultdict(_Sum), "variant": defaultdict(_Sum), "tenant": defaultdict(_Sum)}
    for start in sorted({*used, *drawn}):
        pue = rules.pue_at(start) or 0.0
        models = used.get(start, {})
        by_model = {model: _total(own_of(row, rules.lines) for row in rows) for model, rows in models.items()}
        left = drawn.get(start, EnergyAmount()).plus(_total(by_model.values()), -1.0)
        parts = _parts({model: amount.joules for model, amount in by_model.items()}) or (
            {NOBODY: 1.0} if any(left) else {}
        )
        for model in dict.fromkeys([*by_model, *parts]):  # in an order that is always the same, as sums of floats need
            mine, share = by_model.get(model, EnergyAmount()), EnergyAmount().plus(left, parts.get(model, 0.0))
            _add(sums["model"], model, mine, share, pue)
            whole = mine.plus(share)
            _split_variants(sums["variant"], model, models.get(model, []), whole, rules, pue)
            _split_tenants(sums["tenant"], models.get(model, []), whole, pue)
        for model, rows in models.items():
            for row in rows:
                _count(sums, model, row)
    return sums


def _count(sums: Mapping[By, _Sums], model: str, row: UsageRow) -> None:
    """Count requests and rows.  Requests are a model's and a tenant's, rows a variant's, too."""
    _add_rows(sums["model"][model], row)
    if row.rows:
        _add_rows(sums["variant"][f"{model}/{row.variant or NO_VARIANT}"], row)
    if row.requests or row.rows:
        _add_rows(sums["tenant"][row.tenant or NO_TENANT], row)


def _split_variants(
    sums: _Sums, model: str, rows: Iterable[UsageRow], whole: EnergyAmount, rules: BreakdownRules, pue: float
) -> None:
    by_variant: dict[str, EnergyAmount] = defaultdict(EnergyAmount)
    for row in rows:
        if row.variant:
            by_variant[row.variant] = by_variant[row.variant].plus(own_of(row, rules.lines))
    left = whole.plus(_total(by_variant.values()), -1.0)
    parts = _parts({variant: amount.joules for variant, amount in by_variant.items()}) or (
        {"": 1.0} if any(left) else {}
    )
    for variant in dict.fromkeys([*by_variant, *parts]):
        name = model if model == NOBODY else f"{model}/{variant or NO_VARIANT}"
        _add(
            sums, name, by_variant.get(variant, EnergyAmount()), EnergyAmount().plus(left, parts.get(variant, 0.0)), pue
        )


def _split_tenants(sums: _Sums, rows: Sequence[UsageRow], whole: EnergyAmount, pue: float) -> None:
    parts = _tenant_parts(rows)
    if not parts and any(whole):
        parts = {NO_TENANT if rows else NOBODY: 1.0}
    for tenant, part in parts.items():
        _add(sums, tenant, EnergyAmount(), EnergyAmount().plus(whole, part), pue)


def _tenant_parts(rows: Sequence[UsageRow]) -> dict[str, float]:
    """Return the part of each tenant in a model's energy; empty if it is unknown."""
    computed: dict[str, float] = defaultdict(float)
    receipts: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    for row in rows:
        tenant = row.tenant or NO_TENANT
        computed[tenant] += row.active_j  # idle power is kept for no tenant
        receipts[tenant] += row.receipts_j
        counts[tenant] += row.rows
    for weights in (computed, receipts, counts):
        parts = _parts(weights)
        if set(parts) - {NO_TENANT}:
            return parts
    return {}


def _total(amounts: Iterable[EnergyAmount]) -> EnergyAmount:
    total = EnergyAmount()
    for amount in amounts:
        total = total.plus(amount)
    return total


def _parts(weights: Mapping[str, float]) -> dict[str, float]:
    """Return each positive weight as a part of their sum; empty if there is none."""
    known = {name: weight for name, weight in weights.items() if weight > 0.0}
    whole = sum(known.values())
    return {name: weight / whole for name, weight in known.items()}


def _add(sums: _Sums, name: str, own: EnergyAmount, shared: EnergyAmount, pue: float) -> None:
    total = sums[name]
    total.own, total.shared = total.own.plus(own), total.shared.plus(shared)
    total.facility_j += (own.joules + shared.joules) * pue


def _buckets(by: By, sums: _Sums, rules: BreakdownRules) -> Iterator[ReportBucket]:
    time = next((known for known in TIMES if known == by), None)
    order = sorted(sums, key=float) if time else sorted(sums, key=lambda name: (-_whole(sums[name]).grams, name))
    for name in order:
        found, whole = sums[name], _whole(sums[name])
        facility_kwh = found.facility_j / JOULES_PER_KWH
        yield ReportBucket(
            name=name_of(float(name), time, rules.zone) if time else name,
            start=float(name) if time else None,
            seconds=found.seconds,
            requests=None if by in ("variant", "device") else found.requests,
            rows=found.rows,
            joules=whole.joules,
            grams=whole.grams,
            own_j=found.own.joules,
            own_g=found.own.grams,
            shared_j=found.shared.joules,
            shared_g=found.shared.grams,
            market_g=None if rules.market_g_per_kwh is None else facility_kwh * rules.market_g_per_kwh,
            g_per_kwh=whole.grams / facility_kwh if facility_kwh > 0.0 else None,
        )


def _whole(found: _Sum) -> EnergyAmount:
    return found.own.plus(found.shared)
