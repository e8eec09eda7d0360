"""The server's answers for people: state, decisions and plans; any other answer by its shape."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from clover.cli.ctl import brief, rollouts
from clover.control.wording import (
    FROZEN,
    by_worker,
    comparisons,
    configuration_words,
    control_words,
    demand_words,
    grid_words,
    pin_sentence,
    slo_source,
    slower,
    targets_words,
)
from clover.hints import program
from clover.terminal import Column, filled, needed, sheet, wrapped

_INFEASIBLE = "warning: this plan does not meet every target; its reason says which"
_LEAST = 1e-9
"""Numbers nearer to zero are what rounding left of it."""


def show(verb: str, answer: Any, console: Console, *, everything: bool = True) -> None:
    """Print the answer to `verb`; the state in brief unless `everything`."""
    if isinstance(answer, dict) and answer.get("dry_run"):
        _say(console, "dry run: nothing changed")
        answer = {key: value for key, value in answer.items() if key != "dry_run"}
    if verb == "audit" and isinstance(answer, list):
        _audit(answer, console)
    elif verb == "decisions" and isinstance(answer, list):
        _decisions(answer, console)
    elif verb == "roll-out" and isinstance(answer, dict):
        rollouts.show(answer, console)
    elif verb == "guard" and isinstance(answer, dict) and "before" in answer:
        for name, level in answer["before"].items():
            _say(console, f"{name}: guard reset; it was {level}")
    elif verb == "freeze" and isinstance(answer, dict) and "models" in answer:
        which = ", ".join(answer["models"]) or "every model"
        _say(console, f"{which}: {'frozen' if answer['frozen'] else 'planned again'}")
    elif verb == "tenants" and isinstance(answer, dict):
        _tenants(answer, console)
    elif verb == "state" and isinstance(answer, dict) and "models" in answer:
        if everything:
            _state(answer, console)
        else:
            brief.show(answer, console)
    elif isinstance(answer, dict) and "decision" in answer:
        _outcome(answer, console)
    elif isinstance(answer, dict) and isinstance(answer.get("models"), dict):
        _say(console, f"set {answer.get('set', '')}")
        for item in answer["models"].values():
            _outcome(item, console)
        for warning in answer.get("warnings", []):
            _say(console, f"warning: {warning}")
    else:
        _anything("", answer, console)


# --- state --------------------------------------------------------------------------------------------------------


def _state(answer: dict[str, Any], console: Console) -> None:
    reading = answer.get("intensity")
    trouble = f"; {reading['trouble']}" if reading and reading.get("trouble") else ""
    _say(console, f"{control_words(answer)}; {grid_words(reading)}{trouble}")
    for device in answer.get("devices", []):
        _device(device, console)
    if answer.get("idle"):
        _say(console, answer["idle"]["words"])
    for name, model in answer["models"].items():
        _model(name, model, console)
    totals = dict(answer.get("totals") or {})
    saved = totals.pop("saved", None)
    for item in totals.pop("rollouts", {}).values():
        _say(console, "")
        rollouts.show(item, console)
    if len(answer["models"]) > 1 and saved:
        _say(console, "\nall models")
        _saved("  carbon     ", saved, console)
    for title, item in (("totals", totals), ("decisions", answer.get("decisions"))):
        if item:
            _anything(title, item, console)


def _device(device: dict[str, Any], console: Console) -> None:
    """Print a device in one line; that of a GPU lists its instances and what is wrong."""
    parts = [f"{device['device']}: {device['label']}"]
    if device.get("family"):
        parts.append(f"{device['family']}'s")
    if device.get("lost"):
        parts.append("LOST")
    if device.get("parked"):
        parts.append(f"parked, which spares {device['spared_w']:.3g} W ({device['spared_method']})")
    here = Counter(
        f"{'/'.join(item['variant'] for item in items)}@{items[0]['profile']}"
        for items in by_worker(device.get("layout", []))
    )
    if here and device.get("kind") == "mig":
        parts.append(" + ".join(f"{number} x {what}" for what, number in sorted(here.items())))
    for item in device.get("quarantined", []):
        parts.append(f"{item['placement']} quarantined: {item['reason']}")
    if device.get("fixed"):
        parts.append(device["fixed"])
    if device.get("foreign"):
        parts.append(f"not ours: {', '.join(device['foreign'])}")
    _say(console, "; ".join(parts))


def _model(name: str, model: dict[str, Any], console: Console) -> None:
    held = [f"mode {model.get('mode')}", pin_sentence(model), FROZEN if model.get("frozen") else ""]
    _say(console, f"\n{name}: {', '.join(filter(None, held))}")
    routing = model.get("routing") or {}
    shares = dict(routing.get("shares", {}))
    _rows(_workers(model.get("deployment", []), shares), console)
    batches = _batches(routing)
    if batches:
        _say(console, f"  batches    {batches}")
    targets, observed = model.get("targets") or {}, model.get("observed") or {}
    if targets:
        lam = f"{_plain(targets.get('lambda'))}{' (derived)' if targets.get('lambda_derived') else ''}"
        _say(
            console,
            f"  targets    {targets_words(model)}, objective {targets['objective']}, weight of carbon (lambda) {lam}",
        )
        if source := slo_source(model):
            _say(console, f"             {source}")
    slo = model.get("slo") or {}
    if slo:
        _say(console, f"  slo        {slo['words']}")
    if room := slower(model):
        _say(console, f"             {room}")
    if slo.get("alarm"):
        _say(console, f"  alarm      {slo['alarm']}")
    _saved("  carbon     ", model.get("saved"), console)
    _guard(model.get("guard") or {}, console)
    for item in model.get("demand") or []:
        _demand(item, console)
    if observed:
        _say(console, "  observed   " + ", ".join(f"{key} {_plain(value)}" for key, value in observed.items()))
    correction = model.get("profile_correction") or {}
    if correction.get("words"):
        _say(console, f"  profile    corrected by what is measured: {correction['words']}")
    if correction.get("advice"):
        _say(console, f"  profile    {correction['advice']}")
    for item in model.get("refused") or []:
        _say(console, f"  refused    {item['variant']} on {item['profile']}, for want of memory: {item['reason']}")
    plan = model.get("plan")
    if plan:
        if not plan.get("feasible", True):
            _say(console, f"  {_INFEASIBLE}")
        _say(console, f"  predicted  {_prediction(plan['prediction'])}")
        _say(console, f"  plan       {plan['reason']}")
    if model.get("thresholds_moved"):
        moved, changed = model["thresholds_moved"], max(0, model.get("changes", 0) - 1)
        _say(console, f"  turned     thresholds {moved} times, configurations {changed} times")
    last = model.get("last_decision")
    if last:
        who = f" by {last['operator']}" if last.get("operator") else ""
        times, at = "", last["at"]
        if last.get("count", 1) > 1:
            times, at = f" x {last['count']}", last["last_at"]
        _say(
            console,
            f"  last       {last['id']}: {last['action']}{times} ({last['trigger']}{who}) {last['detail']} at {at}",
        )


def _workers(deployment: list[dict[str, Any]], shares: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for each worker: the assignments of one placement share it.  The share of a variant stands at its
    first worker, so that shares sum to 100 %."""
    rows = []
    for items in by_worker(deployment):
        several = len(items) > 1
        shown = [
            f"{item['variant']} {shares.pop(item['variant']):.1%}" if several else f"{shares.pop(item['variant']):.1%}"
            for item in items
            if item.get("variant") in shares
        ]
        row = {**items[0], "share of rows": ", ".join(shown)}
        for key in ("variant", "backend") if several else ():
            row[key] = "/".join(dict.fromkeys(str(item.get(key, "")) for item in items))
        if several and "ready" in row:
            row["ready"] = all(item.get("ready") for item in items)
        rows.append(row)
    return rows


def _saved(head: str, saved: dict[str, Any] | None, console: Console) -> None:
    """Print what was saved, a line for each baseline; nothing before anything was served."""
    for item in comparisons(saved).values():
        _say(console, f"{head}{item['words']}")
        head = " " * len(head)


def _guard(guard: dict[str, Any], console: Console) -> None:
    """Print how answers compare with the profile, the audits, and what late labels say."""
    if guard.get("watches"):
        audits = guard["audits"]
        word = guard["state"].upper() if guard["state"] != "ok" else "ok"
        only = "" if guard["acts"] else ", which only watches"
        share = f"{audits['share']:.2%} of rows audited, {audits['answered'] + audits['free']} so far"
        repeats = f", {guard['repeats']} repeated inputs left out" if guard.get("repeats") else ""
        why = guard["why"] or "scores and agreement are as profiled"
        _say(console, f"  guard      {word}{only}: {why}; {share}{repeats}")
        pattern = guard.get("pattern") or {}
        if pattern.get("text"):
            _say(console, f"  clients    {pattern['text']}")
    elif guard.get("missing"):
        _say(console, f"  guard      watches nothing: {guard['missing']}")
    feedback = guard.get("feedback") or {}
    found, largest = feedback.get("estimate"), feedback.get("largest_share")
    if found:
        interval = f"{found['low']:.2f} .. {found['high']:.2f}"
        rows = f"{found['rows']} rows by feedback" + ("" if largest is None else f", {largest:.0%} from one client")
        _say(console, f"  labels     {found['accuracy']:.2f} % right ({interval}) of {rows}")


def _demand(item: dict[str, Any], console: Console) -> None:
    """Print the rows that ask for one accuracy, and what is done for them."""
    counts = f"{item['rows']} so far, {item['waiting_rows']} wait for a worker, {item['refused_rows']} refused"
    kept = f"; a worker is kept for {item['kept_s']:.0f} s more" if item["kept_s"] and not item["declined"] else ""
    declined = f"; {item['declined']}" if item["declined"] else ""
    _say(console, f"  demand     {demand_words(item)}, {counts}{kept}{declined}")


def _batches(routing: dict[str, Any]) -> str:
    """Return how long rows wait for batches to fill, and how large these may be, if the routing says so."""
    waits = [f"{variant} waits up to {wait_ms:.3g} ms" for variant, wait_ms in (routing.get("wait_ms") or {}).items()]
    most = [f"{variant} takes at most {rows} rows" for variant, rows in (routing.get("largest") or {}).items()]
    return ", ".join(sorted([*waits, *most]))


def _prediction(found: dict[str, Any]) -> str:
    return (
        f"p95 {found['p95_ms']:.3g} ms, accuracy {found['accuracy']:.2f} %, "
        f"{found['energy_j_per_row'] * 1e3:.3g} mJ/row, utilisation {found['utilisation']:.0%}"
    )


# --- decisions and plans ------------------------------------------------------------------------------------------


_DECISIONS = [Column(head, right=False) for head in ("id", "at", "family", "trigger", "action", "what and why")]
_LEAST_TEXT = 40
"""Columns that a sentence needs beside others."""


def _decisions(found: list[dict[str, Any]], console: Console) -> None:
    if not found:
        _say(console, "no decisions yet")
        return
    rows = []
    for item in found:
        plan = item.get("plan") or {}
        why = item.get("detail") or plan.get("reason", "")
        who = f" (by {item['operator']})" if item.get("operator") else ""
        cells = [str(item.get(key, "")) for key in ("id", "at", "family", "trigger", "action")]
        cells[1] = _moment(cells[1])
        if item.get("count", 1) > 1:
            cells[1] += f" to {_moment(item['last_at'])}"
            cells[4] += f" x {item['count']}"
        rows.append((*cells, f"{why}{who}"))
    shown = filled(_DECISIONS, rows)
    if needed(_DECISIONS, rows, shown[:-1]) + _LEAST_TEXT <= console.width:
        console.print(sheet(_DECISIONS, rows, shown))
        return
    for row in rows:  # a block each: what happened, and below it why
        _say(console, "  ".join(filter(None, row[:-1])))
        if row[-1]:
            console.print(Padding(Text(row[-1]), (0, 0, 0, 4)))


def _audit(found: list[dict[str, Any]], console: Console) -> None:
    """Print the calls that changed the server, or were refused, and what was given with them."""
    if not found:
        _say(console, "no calls yet")
        return
    for item in found:
        at = datetime.fromtimestamp(item["at"], UTC).isoformat()
        outcome = "done" if item["status"] == 200 else f"{item['status']} {item['error']}"
        what = f"{item['call']} {item['model']}".strip()
        _say(console, f"{_moment(at)}  {what}: {outcome}  (by {item['who']}, {item['door']})")
        if item["arguments"]:
            console.print(Padding(Text(item["arguments"]), (0, 0, 0, 4)))
        if item["unrecorded"]:
            _say(console, f"    and {item['unrecorded']} refused calls before it")


def _moment(at: str) -> str:
    return at[:19].replace("T", " ")


def _outcome(answer: dict[str, Any], console: Console) -> None:
    decision, plan = answer.get("decision") or {}, answer.get("plan")
    if plan and not plan.get("feasible", True):
        _say(console, _INFEASIBLE)
    took = f" in {decision['seconds']:.2f} s" if decision.get("seconds") else ""
    _say(
        console, f"{answer.get('model', '')}: {decision.get('action', '')}{took}. {decision.get('detail', '')}".rstrip()
    )
    if plan:
        shares = ", ".join(f"{key} {value:.1%}" for key, value in plan["routing"]["shares"].items())
        _say(console, f"  plan       {configuration_words(plan['configuration'])}; rows: {shares}")
        batches = _batches(plan["routing"])
        if batches:
            _say(console, f"  batches    {batches}")
        _say(console, f"  predicted  {_prediction(plan['prediction'])}")
        _say(console, f"  because    {plan['reason']}")
    transition = answer.get("transition") or {}
    held = transition.get("resident", [])
    for number, step in enumerate(transition.get("steps", []), 1):
        at_once = step["kind"] == "spawn" and step.get("assignment") in held
        words = " (held by a worker there: no process starts)" if at_once else ""
        _say(console, f"  step {number:<5} {step['kind']} {_subject(step)}{words}")
    if transition.get("steps") and transition.get("capacity_floor"):
        low, floor = transition["lowest_capacity"], transition["capacity_floor"]
        how = transition.get("loses_how", "estimated")
        broken = "" if transition.get("holds", True) else f", below it for about {transition['loses_s']:.1f} s ({how})"
        _say(console, f"  capacity   at least {low:.1f} rows/s on the way; floor {floor:.1f} rows/s{broken}")
    if transition.get("memory"):
        _say(console, f"  memory     {transition['memory']}")


def _subject(step: dict[str, Any]) -> str:
    item = step.get("assignment")
    place = (item or {}).get("placement") or step.get("placement") or {}
    where = f"{place.get('device')}:{place.get('profile')}@{place.get('start')}" if place else ""
    return f"{item['variant']} ({item['backend']}) at {where}" if item else where


# --- any shape ----------------------------------------------------------------------------------------------------


def _anything(title: str, value: Any, console: Console) -> None:
    """Print objects as keys and values, lists of objects as tables, nested ones under their dotted name."""
    if isinstance(value, dict):
        plain = {key: item for key, item in value.items() if not _nested(item)}
        if plain:
            if title:
                _say(console, f"\n{title}")
            sheet = Table(box=None, show_header=False)
            for key, item in plain.items():
                sheet.add_row(Text(str(key)), Text(_plain(item)))
            console.print(sheet)
        for key, item in value.items():
            if _nested(item):
                _anything(f"{title}.{key}" if title else str(key), item, console)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        if title:
            _say(console, f"\n{title}")
        _rows(value, console)
    else:
        _say(console, f"{title}: {_plain(value)}" if title else _plain(value))


def _rows(rows: list[dict[str, Any]], console: Console) -> None:
    """Print objects as a table without empty columns; as a block each if that is wider than the console."""
    heads = dict.fromkeys(key for item in rows for key in item if not _nested(item[key]))
    columns = [Column(head, right=False) for head in heads]
    cells = [[_plain(item[head]) if item.get(head, "") != "" else "" for head in heads] for item in rows]
    shown = filled(columns, cells)
    if not shown:
        return
    if needed(columns, cells, shown) <= console.width:
        console.print(sheet(columns, cells, shown))
        return
    for row in cells:
        words = ", ".join(f"{columns[index].head} {row[index]}" for index in shown[1:] if row[index])
        _say(console, f"  {row[shown[0]]}")
        console.print(Padding(Text(words), (0, 0, 0, 4)))


_HEAD = re.compile(r" *(\S+ {2,})?")
_MOST_HEAD = 16


def _say(console: Console, text: str) -> None:
    """Print text; what does not fit goes on under where the first line's text begins, behind its head if it has one."""
    for line in text.split("\n"):
        head = _HEAD.match(line)
        begins = head.end() if head is not None else 0
        indent = " " * (begins if begins <= _MOST_HEAD else len(line) - len(line.lstrip()))
        console.print(Text(wrapped(line, console.width, indent)), soft_wrap=True)


def _nested(value: Any) -> bool:
    return (isinstance(value, dict) and bool(value)) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value if abs(value) >= _LEAST else 0.0:.6g}"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "-"
    return "-" if value == {} else str(value)


_LIMITS = tuple(
    Column(head, right=at > 0)
    for at, head in enumerate(("tenant", "priority", "rows/s", "burst", "accuracy %", "deadline ms"))
)
_USED = tuple(
    Column(head, right=at > 0)
    for at, head in enumerate(("tenant", "requests", "refused", "over rate", "rows", "active J", "g CO2e"))
)


def _tenants(answer: dict[str, Any], console: Console) -> None:
    """Print what the tenants of a server's state may send, and what they sent to all of its models."""
    totals = answer.get("totals") or {}
    configured = totals.get("tenants")
    if not configured:
        console.print(Text("no tenants are configured: the server's file has no [[tenant]]"))
        return
    models = [model.get("tenants", {}) for model in totals.get("models", {}).values()]
    names = sorted({*configured, *(name for model in models for name in model)})
    sent = {name: [model[name] for model in models if name in model] for name in names}
    limits = [_limits(name, configured[name]) for name in names if name in configured]
    console.print(sheet(_LIMITS, limits, filled(_LIMITS, limits)))
    console.print()
    console.print(sheet(_USED, [_used(name, sent[name]) for name in names], range(len(_USED))))
    every = [item for items in sent.values() for item in items]
    joules, grams = (" + ".join(sorted({item[key] for item in every} - {""})) for key in ("method", "grams_method"))
    known = f" Joules are {joules}, grams {grams}." if joules else ""
    bill = (
        f"active J, g CO2e: of computing a tenant's rows since this server started.{known} To bill, take the grams of "
        f"`{program()} report --by tenant`, which share out all that the machine emitted, idle power included."
    )
    console.print(Text("\n" + wrapped(bill, console.width)))


def _limits(name: str, limits: dict[str, Any]) -> list[str]:
    """Return what a tenant may send, as cells."""
    return [
        name,
        str(limits["priority"]),
        "no limit" if limits["rate"] is None else f"{limits['rate']:g}",
        "" if limits["burst"] is None else str(limits["burst"]),
        f"{limits['min_accuracy']:g}" if limits["min_accuracy"] else "",
        f"{limits['timeout_ms']:g}" if limits["timeout_ms"] else "",
    ]


def _used(name: str, sent: list[dict[str, Any]]) -> list[str]:
    """Return what a tenant sent to each model, in sum, as cells; requests without a tenant have an empty name."""
    requests = sum(sum(item["requests"].values()) for item in sent)
    fine = sum(item["requests"].get("200", 0) for item in sent)
    return [
        name or "(none)",
        str(requests),
        str(requests - fine),
        str(sum(item["limited"] for item in sent)),
        str(sum(sum(item["rows"].values()) for item in sent)),
        f"{sum(item['active_j'] for item in sent):.4g}",
        f"{sum(item['active_g'] for item in sent):.4g}",
    ]
