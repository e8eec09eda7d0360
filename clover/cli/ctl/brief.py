"""The state in a dozen lines: whether all is well, and if not, why; what was used and saved; what runs where; the grid.

`ctl state --all` prints the rest (`clover.cli.ctl.answers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from clover.cli.ctl import rollouts
from clover.control.state.counted import why_apart
from clover.control.wording import (
    FROZEN,
    ROUNDED,
    by_worker,
    comparisons,
    control_words,
    demand_words,
    few_rows,
    grid_words,
    judged_accuracy,
    pin_sentence,
    served_accuracy,
    slower,
    starting,
    summarize_saving,
    troubles,
    verdict,
)
from clover.hints import program
from clover.quantities import grams, joules, rate, slice_words
from clover.terminal import wrapped

_HEAD = 11
"""Columns of the word that a line begins with."""
_TOLD = 0.05
"""Parts by which a profile is off that are worth a line."""
_TOLD_MS = 0.1
"""Milliseconds by which what HTTP adds is off that are worth one."""


def show(answer: dict[str, Any], console: Console) -> None:
    """Print the server's state in brief."""
    wrong = list(troubles(answer))
    _line(
        "starting" if starting(answer) else "healthy" if not wrong else "UNHEALTHY",
        "; ".join(wrong) or verdict(answer),
        console,
    )
    _line("grid", grid_words(answer.get("intensity")), console)
    if "idle" in answer:
        idle = answer["idle"] or {"words": "no energy was counted yet; its idle part is shown here once some is"}
        _line("idle", idle["words"].removeprefix("idle is "), console)
    _line("control", control_words(answer), console)
    sci = (answer.get("totals") or {}).get("sci") or {}
    if "words" in sci:
        _line("sci", sci["words"], console)
    if ledger := (answer.get("totals") or {}).get("ledger"):
        _line("ledger", _ledger(ledger), console)
    for job in (answer.get("totals") or {}).get("waiting") or []:
        _line("waiting", f"{job['job']}: {job['rows_left']:,} rows for {job['model']}; {job['why']}", console)
    totals = (answer.get("totals") or {}).get("models", {})
    light = (answer.get("idle") or {}).get("light", False)
    for name, model in answer["models"].items():
        console.print()
        _line(name, _standing(model, answer), console, style="bold")
        for head, text in _model(model, totals.get(name) or {}, light=light):
            _line(f"  {head}", text, console)
        if found := ((answer.get("totals") or {}).get("rollouts") or {}).get(name):
            _line("  version", rollouts.words(found), console)


def _ledger(ledger: dict[str, Any]) -> str:
    """Return what the ledger has of all runs, and what is lost of it."""
    since_s = ledger.get("since_s")
    if since_s is None:
        return f"nothing is in {ledger['path']} yet"
    since = datetime.fromtimestamp(since_s, UTC).strftime("%Y-%m-%d")
    found = f"{grams(ledger['carbon_g'])} of CO2e and {joules(ledger['energy_j'])} since {since}, in {ledger['path']}"
    lost = f"; {ledger['dropped_rows']} rows of it are lost" if ledger.get("dropped_rows") else ""
    aside = f"; a damaged one is set aside as {ledger['set_aside']}" if ledger.get("set_aside") else ""
    return f"{found}{lost}{aside}"


def _standing(model: dict[str, Any], answer: dict[str, Any]) -> str:
    """Return what steers a family, if it differs from the rest of the server."""
    parts = [f"mode {model['mode']}"] if model.get("mode") not in (None, answer.get("mode")) else []
    if pin := pin_sentence(model):
        parts.append(pin)
    if model.get("frozen") and not answer.get("frozen"):
        parts.append(FROZEN)
    if model.get("transition"):
        parts.append("a change is under way")
    return ", ".join(parts)


def _model(model: dict[str, Any], totals: dict[str, Any], *, light: bool) -> Iterator[tuple[str, str]]:
    observed, targets = model.get("observed") or {}, model.get("targets") or {}
    yield ("asleep" if model.get("asleep") else "runs"), _runs(model)
    if slept := totals.get("sleep"):
        yield "sleep", slept["words"]
    if profile := _profile(model):
        yield "profile", profile
    if observed:
        waiting = f", {observed.get('queue_rows', 0):.0f} waiting" if observed.get("queue_rows") else ""
        rows = f"; {observed['rows']:,.0f} rows so far" if "rows" in observed else ""
        yield "demand", f"{rate(observed.get('arrival_rate', 0.0))} rows/s arrive{waiting}{rows}{_unanswered(totals)}"
    for item in model.get("demand") or []:
        yield "", f"{demand_words(item)}{', ' + item['declined'] if item.get('declined') else ''}"
    if "slo_ms" in targets:
        p95, slo, lasted = observed.get("p95_ms"), targets["slo_ms"], model.get("slo") or {}
        if p95 is None:
            yield "latency", f"SLO p95 {slo:.3g} ms; nothing was answered lately"
        else:
            share = f"; {lasted['words'].removeprefix('SLO held ')}" if lasted.get("windows") else ""
            unsure = p95 > slo and not lasted.get("late", True)  # what makes the server unhealthy is a sure miss
            held = "held" if p95 <= slo else "perhaps missed, by few answers" if unsure else "MISSED"
            yield "latency", f"p95 {p95:.3g} ms of {slo:.3g} ms: SLO {held}{share}"
        if room := slower(model):
            yield "", room
    if "accuracy_floor" in targets:
        served, floor = served_accuracy(model, totals), targets["accuracy_floor"]
        if served is None:
            yield "accuracy", f"floor {floor:.2f} %; nothing was answered yet"
        else:
            missed = "perhaps missed, by few answers" if few_rows(totals) else "MISSED"
            judged, apart = judged_accuracy(model, totals) or served, why_apart(observed)
            held = "held" if judged >= floor - ROUNDED else missed
            counts = f"; {judged:.2f} % {apart}" if apart else ""
            known = f"{served:.2f} % expected of what served (by profile){counts}"
            yield "accuracy", f"{known}, floor {floor:.2f} %: {held}"
        if fewer := targets.get("accuracy_cut_short"):
            yield "", f"the profile counted it on a part of the evaluation set, as time ran out: {fewer}"
        pattern = (model.get("guard") or {}).get("pattern") or {}
        if pattern.get("kind") == "probe":
            yield "inputs", pattern["text"]
    if "carbon_g" in totals:
        emitted, used = totals["carbon_g"], totals.get("energy_j", 0.0)
        yield "carbon", f"{grams(emitted)} of CO2e and {joules(used)} so far, idle power of its workers included"
    if (waited := totals.get("waited")) and waited["rows"]:
        avoided_g = waited["at_once_g"] - waited["grams"]
        less = f"{grams(abs(avoided_g))} {'less' if avoided_g >= 0.0 else 'MORE'} than if started at once"
        yield "waited", f"{waited['rows']:,} rows of batch jobs emitted {grams(waited['grams'])}: {less}"
    if model.get("terms"):
        yield "budget", model["terms"].partition(";")[0]
    budget = model.get("budget") or {}
    if unkept := budget.get("unkept"):
        yield "", f"a restart begins the budget anew: {unkept}"
    if (off := budget.get("forecast_error_g_per_kwh")) is not None:
        yield "", f"its forecast ({budget['forecast']}) was off by {off:.0f} g/kWh on average over the last day"
    saved = model.get("saved") or {}
    lines = list(dict.fromkeys(map(summarize_saving, comparisons(saved).values())))  # all say alike if it is too early
    if lines and light:
        yield "compared", f"by `{program()} ctl state --all`, as there is too little load to save on"
    elif lines:
        first = lines[0].removeprefix("saved ")
        yield "saved" if first != lines[0] else "compared", first
        yield from (("", line) for line in lines[1:])
    if lines and not light and "known" in saved:
        yield "", saved["known"]


def _unanswered(totals: dict[str, Any]) -> str:
    """Return how many requests were refused, or failed for another reason of the server's, by status."""
    counts = {code: count for code, count in totals.get("requests", {}).items() if code == "429" or code >= "500"}
    found = [f"{count:,} {'refused' if code == '429' else 'failed'} ({code})" for code, count in counts.items()]
    return f"; of the requests {', '.join(found)}" if found else ""


def _runs(model: dict[str, Any]) -> str:
    shares = (model.get("routing") or {}).get("shares", {})
    shared = by_worker(model.get("deployment") or [])
    workers: Counter[tuple[tuple[str, ...], str]] = Counter()
    for (worker, *_), variants in ((group, tuple(one["variant"] for one in group)) for group in shared):
        where = worker.get("device", "") or worker.get("placement", "")
        workers[variants, f"{slice_words(worker.get('profile', ''))} of {where}".removeprefix(" of ")] += 1
    named: set[str] = set()
    parts = []
    for (variants, place), count in workers.items():
        number_of = f"{count} x " if count > 1 else ""
        found = [variant for variant in variants if variant in shares and variant not in named]
        named.update(found)
        given = [f"{f'{variant} ' if len(variants) > 1 else ''}{shares[variant]:.0%}" for variant in found]
        share = f" ({', '.join(given)} of rows)" if given else ""
        parts.append(f"{number_of}{'/'.join(variants)} on {place}{share}")
    return ", ".join(parts) or "nothing"


def _profile(model: dict[str, Any]) -> str:
    """Return what the profile of the variants that run, and of HTTP, is off by; empty if it is not."""
    correction, running = model.get("profile_correction") or {}, {}
    front = correction.get("front") or {"ms": 0.0, "profile_ms": 0.0}
    for worker in model.get("deployment") or []:
        running[worker["variant"], worker.get("profile", "")] = worker
    parts = [
        f"{row['variant']} on {row['profile']}: {row['time']:.2f} x the time, {row['energy']:.2f} x the energy"
        for row in correction.get("factors") or []
        if (row["variant"], row["profile"]) in running and max(abs(row["time"] - 1), abs(row["energy"] - 1)) >= _TOLD
    ]
    if abs(front["ms"] - front["profile_ms"]) >= _TOLD_MS:
        parts.append(f"HTTP adds {front['ms']:.2f} ms to p95, not {front['profile_ms']:.2f}")
    told = f"corrected by what is measured: {'; '.join(parts)}" if parts else ""
    return "; ".join(filter(None, (told, correction.get("advice"))))


def _line(head: str, text: str, console: Console, style: str = "") -> None:
    indent = " " * (_HEAD + 2)
    words = f"{head:<{_HEAD}}  {text}".rstrip()
    console.print(Text(wrapped(words, console.width, indent), style=style), soft_wrap=True)
