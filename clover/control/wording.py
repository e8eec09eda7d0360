"""Puts the state of a server (`GET /v2/clover/state`) into words, for everything that shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clover.accounting.boundaries import LEAST_ROWS
from clover.carbon.labels import describe_reading
from clover.control.state.counted import counted_accuracy

ROUNDED = 0.005
"""Percent points by which an accuracy may miss its floor before it is said: what is printed is rounded to that."""


def starting(answer: Mapping[str, Any]) -> bool:
    """Return whether the server has just begun: it controls no model yet, and has not read the grid's intensity."""
    return not answer["models"] and not answer.get("intensity")


def troubles(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong, in words; nothing if the server is healthy."""
    if starting(answer):
        yield "no model answers yet: they are measured, or their workers start (the log says how far that is)"
    elif not answer["models"] and not _without_plan(answer):
        yield "no model is loaded, so that every request is refused"
    reading = answer.get("intensity")
    if not reading:
        yield "the intensity of the grid is not known"
    elif reading.get("state", "fresh") != "fresh":
        why = f" ({reading['trouble']})" if reading.get("trouble") else ""
        yield f"the intensity of the grid is {_QUALITY.get(reading['state'], reading['state'])}{why}"
    elif reading.get("trouble"):
        yield reading["trouble"]
    for device in answer.get("devices", []):
        if device.get("lost"):
            yield f"{device['device']} is lost"
        elif device.get("quarantined"):
            yield f"{len(device['quarantined'])} slots of {device['device']} are quarantined"
    ledger = (answer.get("totals") or {}).get("ledger") or {}
    if ledger.get("state") == "failing":
        yield f"the ledger is not written ({ledger['reason']}: {ledger['trouble']})"
    elif ledger.get("trouble"):
        yield f"the ledger {ledger['trouble']}"
    totals = (answer.get("totals") or {}).get("models", {})
    for name, model in answer["models"].items():
        yield from (f"{name} {what}" for what in _troubles(model, totals.get(name) or {}))
    for name, model in totals.items():
        if (why := model.get("unmeasured") or "").startswith(CANNOT_BE_PLANNED):
            yield f"{name} {why}; its best variant answers"


CANNOT_BE_PLANNED = "cannot be planned"
"""What `unmeasured` of a model begins with if its measurement failed."""
_QUALITY = {
    "stale": "an old value: its source gives no new one",
    "fallback": "another source's: the first one fails",
    "forecast": "its source's last forecast: the source gives no value",
    "seasonal": "the mean of past days at this hour: its source gives no value",
    "configured": "the value of last resort (carbon.configured_g_per_kwh): all sources fail",
}


def _troubles(model: Mapping[str, Any], totals: Mapping[str, Any]) -> Iterator[str]:
    state = totals.get("state", "READY")
    if state != "READY":
        yield f"is {state.lower()}"
    workers = by_worker(model.get("deployment") or [])
    lacking = [[item.get("variant", "") for item in here if not item.get("ready", True)] for here in workers]
    starting = sum(len(gone) == len(here) for gone, here in zip(lacking, workers, strict=True))
    if model.get("asleep"):
        pass  # the next request starts them
    elif not workers:
        yield "has no worker"
    elif starting:
        yield f"has {starting} of {len(workers)} workers that are not ready"
    elif gone := sorted({name for names in lacking for name in names}):
        yield f"has workers on which {join_names(gone)} {'is' if len(gone) == 1 else 'are'} not ready"
    last = model.get("last_decision") or {}
    fault = last.get("action") == "fault"
    if fault:
        yield f"keeps what runs, as no plan can be made: {last['detail']}; the log has the traceback"
    targets, observed, plan = model.get("targets") or {}, model.get("observed") or {}, model.get("plan")
    p95, slo, held = observed.get("p95_ms"), targets.get("slo_ms"), model.get("slo") or {}
    late = held.get("late", p95 is not None and slo is not None and p95 > slo)
    if held.get("alarm") and not fault:
        yield f"misses its SLO: {held['alarm']}"
    elif late and slo is not None:
        yield f"misses its SLO: {'no answer within' if p95 is None else f'p95 {p95:.3g} ms of'} {slo:.3g} ms"
    served, floor = judged_accuracy(model, totals), targets.get("accuracy_floor")
    if served is not None and floor is not None and served < floor - ROUNDED and not few_rows(totals):
        yield f"is below its accuracy floor: {served:.2f} % of {floor:.2f} %"
    # What is planned with more room than the profile asks for may keep the SLO although the plan says it would not.
    roomy = held.get("slower", 1.0) > 1.0 and not late
    if plan and not plan.get("feasible", True) and not (roomy or fault or held.get("alarm")):
        pinned = pin_words(model.get("pin"))
        yield f"is pinned to {pinned}: not every target is met" if pinned else "has no plan that meets every target"
    guard = model.get("guard") or {}
    if guard.get("state", "ok") != "ok":
        yield f"drifts from its profile: {guard.get('why') or guard['state']}"
    pattern = guard.get("pattern") or {}
    if pattern.get("kind") in ("client", "repeats"):
        yield f"has unusual clients: {pattern['text']}"
    if last.get("action") in ("failed", "rolled back"):
        yield f"could not be changed: {last['action']}, {last.get('detail') or last.get('trigger', '')}"


def verdict(answer: Mapping[str, Any]) -> str:
    """Return what can be said of the models of a server without troubles.  Whether targets are met is open before
    something was answered, and while too few answers are above a target to tell.  A model without a profile is served
    but not controlled: it has no targets."""
    totals, free = (answer.get("totals") or {}).get("models", {}), _without_plan(answer)
    words = _met(answer, totals, all_judged=not free)
    if not free:
        return words
    why = "; ".join(f"{name} {text}" for name in free if (text := totals[name].get("unmeasured")))
    without = f"{join_names(free)} {'has' if len(free) == 1 else 'have'} no profile, so no targets to meet"
    return "; ".join(filter(None, (words, without, why)))


def _without_plan(answer: Mapping[str, Any]) -> list[str]:
    """Return the models that are served but not controlled."""
    totals = (answer.get("totals") or {}).get("models", {})
    return [name for name in totals if name not in answer["models"] and totals[name].get("state") == "READY"]


def _met(answer: Mapping[str, Any], totals: Mapping[str, Any], *, all_judged: bool) -> str:
    """Return what can be said of the targets of the models that are controlled; `all_judged`: there are no others."""
    judged = {name: model for name, model in answer["models"].items() if model.get("targets")}
    seen = [name for name, model in judged.items() if (model.get("observed") or {}).get("p95_ms") is not None]
    doubts = [f"{name} meets its {what}" for name in judged for what in _doubts(judged[name], totals.get(name) or {})]
    if doubts:
        return f"every model is ready; too few answers to tell whether {join_names(doubts)}"
    if judged and not seen:
        rows = sum(sum((totals.get(name) or {}).get("rows", {}).values()) for name in judged)
        return f"every model is ready; nothing was answered {'lately' if rows else 'yet'}, so no target is judged"
    if all_judged and len(seen) == len(answer["models"]):
        return "every model answers and meets its targets"
    meet = "meets its targets" if len(seen) == 1 else "meet their targets"
    return f"every model is ready, and {join_names(seen)} {meet}" if seen else "every model is ready"


def join_names(names: Sequence[str]) -> str:
    """Return names as a sentence has them: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _doubts(model: Mapping[str, Any], totals: Mapping[str, Any]) -> Iterator[str]:
    """Yield the targets that are missed by too few answers to count as trouble."""
    targets, p95 = model["targets"], (model.get("observed") or {}).get("p95_ms")
    if p95 is not None and "slo_ms" in targets and p95 > targets["slo_ms"]:
        yield f"SLO (p95 {p95:.3g} ms of {targets['slo_ms']:.3g} ms)"
    served, floor = judged_accuracy(model, totals), targets.get("accuracy_floor")
    if served is not None and floor is not None and served < floor - ROUNDED:
        yield f"accuracy floor ({served:.2f} % of {floor:.2f} %)"


def few_rows(totals: Mapping[str, Any]) -> bool:
    """Return whether too few rows were answered to judge their accuracy: a single hard row moves the mean by points."""
    rows = totals.get("rows")
    return rows is not None and sum(rows.values()) < LEAST_ROWS


def served_accuracy(model: Mapping[str, Any], totals: Mapping[str, Any]) -> float | None:
    """Return the accuracy (percent) expected of what was served; None before anything was."""
    accuracy: float | None = (model.get("observed") or {}).get("accuracy_served", totals.get("accuracy_served"))
    return accuracy


def judged_accuracy(model: Mapping[str, Any], totals: Mapping[str, Any]) -> float | None:
    """Return the accuracy (percent) that the floor is held against (`clover.control.state.counted`); None before
    anything was served."""
    accuracy = counted_accuracy(model.get("observed") or {})
    return served_accuracy(model, totals) if accuracy is None else accuracy


# --- parts of sentences -----------------------------------------------------------------------------------------------


FROZEN = "frozen: nothing is planned"

Item = dict[str, Any]


def by_worker(assignments: Iterable[Item]) -> list[list[Item]]:
    """Return the assignments of the state grouped by placement: one worker serves those of a placement."""
    workers: dict[str, list[Item]] = {}
    for number, item in enumerate(assignments):
        workers.setdefault(item.get("placement") or str(number), []).append(item)
    return list(workers.values())


def configuration_words(groups: Iterable[Mapping[str, Any]]) -> str:
    """Return the workers of a configuration: "2 x small@1c + 1 x large/small@2c"."""
    named = [("/".join((group["variant"], *group.get("beside", ()))), group) for group in groups]
    return " + ".join(f"{group['count']} x {variants}@{group['profile']}" for variants, group in named)


def pin_words(pin: Any) -> str:
    """Return what a `pin` of the state says, in words: a variant, BASE, or workers; "" if there is no pin."""
    if not pin:
        return ""
    if isinstance(pin, str):
        return "BASE" if pin == "base" else pin.removeprefix("static:")
    return configuration_words(pin)


def pin_sentence(model: Mapping[str, Any]) -> str:
    """Return words that say to what a model is pinned; "" if it is not."""
    if not model.get("pin"):
        return ""
    return f"pinned to {pin_words(model['pin'])}{' (forced)' if model.get('pin_forced') else ''}"


def control_words(answer: Mapping[str, Any]) -> str:
    """Return the policy and mode by which the server plans, and whether it plans."""
    return f"policy {answer.get('policy')}, mode {answer.get('mode')}{f', {FROZEN}' if answer.get('frozen') else ''}"


def grid_words(reading: Mapping[str, Any] | None) -> str:
    """Return the intensity of the grid, its source, how it is known and how old it is."""
    if not reading:
        return "no intensity was read yet"
    age = f", {_age(reading['age_s'])} old" if "age_s" in reading else ""
    source, label, state = f"from {reading['provider']}", reading.get("label", ""), reading.get("state", "fresh")
    return f"{describe_reading(reading['g_per_kwh'], 'gCO2e/kWh', source, label, state)}{age}"


def targets_words(model: Mapping[str, Any]) -> str:
    """Return the p95 and the accuracy that plans of a model keep: the mean that its budget asks for, and the floor."""
    targets, budget = model["targets"], model.get("budget")
    p95, floor = f"p95 <= {targets['slo_ms']:.3g} ms", f"{targets['accuracy_floor']:.2f} %"
    if budget is None:
        return f"{p95}, accuracy >= {floor}"
    least = f"{budget['accuracy_target']:.2f} %"
    if "horizon_s" in budget:
        least += f" over {span(budget['horizon_s'])}".replace(" over a day", " a day")
    return f"{p95}, accuracy on average at least {least}, no plan below {floor}"


def slo_source(model: Mapping[str, Any]) -> str:
    """Return where a p95 target comes from that was not given; "" if it was given."""
    source = model["targets"].get("slo_source", "given")
    return "" if source == "given" else f"that p95 target is {source}"


def slower(model: Mapping[str, Any]) -> str:
    """Return by how much plans take services to be slower than profiled; "" if they do not."""
    factor = (model.get("slo") or {}).get("slower", 1.0)
    if factor <= 1.0:
        return ""
    return f"plans take services to be {factor:.2f} x as slow as profiled, since the SLO was missed"


def demand_words(item: Mapping[str, Any]) -> str:
    """Return how many rows ask for an accuracy of their own."""
    return f"{item['rows_per_s']:.3g} rows/s ask for {item['accuracy']:.2f} % or more ({item['variant']})"


def comparisons(saved: Mapping[str, Any] | None) -> dict[str, Item]:
    """Return what was saved against each baseline, that at equal accuracy first; empty before anything was served."""
    return {kind: saved[kind] for kind in ("matched", "base") if saved and saved.get(kind)}


def summarize_saving(comparison: Mapping[str, Any]) -> str:
    """Return what was saved against one baseline in a few words, or in all of them if there is no short form."""
    return str(comparison.get("short", comparison["words"]))


def span(seconds: float) -> str:
    """Return a horizon in words: "a day", "36 hours", "7 days"."""
    days = seconds / 86_400.0
    if days == 1.0:
        return "a day"
    return f"{days:g} days" if days.is_integer() else f"{seconds / 3600.0:.3g} hours"


def _age(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
