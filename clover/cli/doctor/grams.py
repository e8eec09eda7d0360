"""Findings about grams: where this machine's go, and what would save most of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from clover.accounting.boundaries import where_words
from clover.advice import DAY_S, FamilyLoad, advise, predicted, recorded
from clover.cache import cache_folder
from clover.cli.doctor.findings import Finding
from clover.config import ServerConfig
from clover.energy import cpu_power
from clover.errors import CloverError
from clover.planning.model.problem import accuracies, base_capacity
from clover.profiles import ProfileStore, default_slo_ms
from clover.quantities import rate
from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.files import ledgers_in
from clover.types import FamilyProfile

STATED_RATE = 200.0
"""Rows a second that a family without a ledger is judged at, or 60 % of BASE's capacity if that is less."""
LEAST_S = 3600.0
"""Seconds that a ledger has to have of its last day: a server that just began says little of where a day's grams go."""
_PART = 0.6
_TOPIC = "grams"
_JOULES_PER_KWH = 3.6e6


def examine(config: ServerConfig) -> Iterator[Finding]:
    """Yield where the grams go, by the last day of the newest ledger that has `LEAST_S` of it, or else by the newest
    profile of a family, and the advice."""
    try:
        kept = list(ProfileStore(cache_folder(config.cache_dir)).kept())
        found = _by_ledger(config, kept) or _by_profile(config, kept)
    except CloverError as error:
        yield Finding(topic=_TOPIC, state="note", text=f"where they go is not known: {error}")
        return
    if found is None:
        text = "where they go is not known: no server has run here, and no family was profiled"
        yield Finding(topic=_TOPIC, state="absent", text=text)
        return
    where, load = found
    yield Finding(topic=_TOPIC, state="works", text=where)
    for item in advise(load) if load is not None else ():
        yield Finding(topic=_TOPIC, state="note", text=item.words, remedy=item.setting)


def _by_ledger(config: ServerConfig, kept: Sequence[FamilyProfile]) -> tuple[str, FamilyLoad | None] | None:
    """Return in words where the grams of the last day that is recorded went, and the load then."""
    for path in sorted(ledgers_in(config.state_dir), key=lambda item: -item.stat().st_mtime):
        with LedgerReader(path) as ledger:
            end = (ledger.bounds() or (0, 0))[1]
            sums, lines = ledger.sums(end - DAY_S, end), ledger.lines(end - DAY_S, end)
            spent: dict[str, float] = {}
            for row in lines:
                spent[row.line] = spent.get(row.line, 0.0) + row.grams
            where = where_words(spent, sums.seconds / DAY_S)
            if where and sums.seconds >= LEAST_S:
                labels = ", ".join(sorted({row.label for row in lines}))
                text = f"{where}; {labels}, of the last {sums.seconds / 3600.0:.3g} h in {path.name}"
                return text, recorded(ledger, kept, end - DAY_S, end)
    return None


def _by_profile(config: ServerConfig, kept: Sequence[FamilyProfile]) -> tuple[str, FamilyLoad | None] | None:
    """Return in words where the grams of a family would go at a stated load, by its newest profile on cores."""
    for item in config.families:
        named = [one for one in kept if one.family == item.family and one.base.profile.endswith("c")]
        if not named:
            continue
        profile, best = named[0], max(accuracies(named[0]).values())
        grams_a_j = config.carbon.configured_g_per_kwh * config.carbon.pue / _JOULES_PER_KWH
        power, cores = cpu_power(config.energy), int(profile.base.profile.removesuffix("c"))
        load = FamilyLoad(
            profile=profile,
            rate=STATED_RATE,
            slo_ms=item.slo_ms or default_slo_ms(profile),
            accuracy=max(item.accuracy_floor or 0.0, best - item.accuracy_budget),
            cascade=config.controller.cascade is not False,
            waits=item.slo_ms is not None if config.controller.waits is None else config.controller.waits,
            idle_g_a_day=power.idle_w * cores * DAY_S * grams_a_j,
            idle_how="modelled",
            grams_a_j=grams_a_j,
        )
        load = replace(load, rate=min(STATED_RATE, _PART * base_capacity(profile, load.devices)))
        now = predicted(load)
        if now is not None:
            active_g = now.joules * load.rate * DAY_S * grams_a_j
            where = where_words({"active": active_g, "idle": load.idle_g_a_day}, 1.0)
            text = f"{where}; modelled, of {profile.family} at {rate(load.rate)} rows/s, front end with the workers', "
            return f"{text}{config.carbon.configured_g_per_kwh:g} gCO2e/kWh", load
    return None
