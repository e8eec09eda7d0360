"""The result page of `bench.cluster_day`, from its document (`bench.cluster_day_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.cluster_load import TRIES

_WITHIN = 0.1
"""Points within which the accuracy of all answers is to be of the floor."""


def page(found: Mapping[str, Any], where: Mapping[str, Any]) -> str:
    """Return the page as Markdown; `where`: cores, processor, date and command of the run."""
    traces = ", ".join(found["traces"]) or "formulas whose clean hours lie eight hours apart"
    devices = "core 0 of this machine" if found["on_cores"] else "two emulated A100-40GB"
    lines = [
        "# A replayed day on a cluster, and then everything killed once",
        "",
        (
            f"Three regions ({traces}), three Ray nodes with addresses of their own on one machine, each a Clover "
            f"server of `{found['family']}` on {devices}, HAProxy before them. {found['rate']:g} requests a second in "
            f"open loop (Poisson), as many from each region. {where['processor']}, {where['cores']} cores, "
            f"{where['date']}."
        ),
        "",
        f"    {where['command']}",
        "",
        (
            "Written by the bench. Requests, failures, seconds, latencies and whether an answer is right are measured; "
            "the accuracy of an answer is what its receipt expects (the profile's); grams are modelled by the plans "
            "(profiles measured here; emulated GPUs have the speed and watts of their table, machines 100 W as "
            "configured)."
        ),
        "",
    ]
    if "day" in found:
        lines += _day(found, found["day"])
    if "kills" in found:
        lines += _kills(found, found["kills"])
    return "\n".join(lines)


def _day(found: Mapping[str, Any], day: Mapping[str, Any]) -> list[str]:
    own, follows, grams, moves = day["accuracy"], day["follows"], day["grams"], day["moves"]
    apart = own["expected"] - found["floor"]
    rows = [
        ("requests, answered", f"{day['requests']:,}, {day['answered']:,}"),
        ("requests whose first try failed; never answered", f"{day['failed_first']}; {day['lost']}{_why(day)}"),
        ("latency at the client, p50 / p95 / p99, ms", " / ".join(f"{day[f'p{q}_ms']:.0f}" for q in (50, 95, 99))),
        ("accuracy floor of the cluster", f"{found['floor']:.2f} %"),
        (
            "accuracy expected of all answers, by the variant of each",
            f"{own['expected']:.2f} % ({apart:+.2f} of the floor: {_verdict(apart)})",
        ),
        ("answers that were right", f"{own['right']:.2f} % ± {own['right_error']:.2f} (standard error)"),
        ("answers by variant", ", ".join(f"{name} {count:,}" for name, count in own["variants"].items())),
        ("nodes released, and back", f"{moves['released']}, {moves['back']}"),
        ("g by the plans in force", _two(grams.get("planned_g"))),
        ("g of each node alone; saved", f"{_two(grams.get('alone_g'))}; {_part(grams.get('saved_against_alone'))}"),
        (
            "g of all awake, equal split; saved",
            f"{_two(grams.get('awake_g'))}; {_part(grams.get('saved_against_awake'))}",
        ),
        ("g by the nodes' own accounts, without the machines' watts", _two(grams.get("reported_g"))),
        (
            "correlation of g/kWh and rows/s, by plan; as answered",
            f"{follows['by_plan']:.2f}; {follows['as_answered']:.2f}",
        ),
        (
            "g/kWh at which rows were answered; of an equal split",
            f"{follows['g_per_kwh_of_rows']:.0f}; {follows['g_per_kwh_equal']:.0f}",
        ),
        ("rows answered elsewhere than the plans of the hour wanted", _part(follows["elsewhere"])),
    ]
    lines = [f"## The day, undisturbed: {day['seconds'] / 60.0:.1f} minutes", "", _machine(day), ""]
    lines += [*_table(("what", ""), rows), ""]
    names = list(day["hours"][0]["intensity"]) if day["hours"] else []
    heads = (
        "hour",
        *(f"{name}: g/kWh, rows/s by plan, answered, nodes awake" for name in names),
        "accuracy expected; corrected floor",
    )
    by_hour = [
        (
            str(hour["number"]),
            *(
                f"{hour['intensity'][name]:.0f}, {hour['planned'][name]:.1f}, {hour['answered'][name]:.1f}, "
                f"{hour['awake'][name]:.1f}"
                for name in names
            ),
            f"{hour['accuracy']:.2f}; {hour['floor']:.2f}",
        )
        for hour in day["hours"]
    ]
    lines += [*_table(heads, by_hour), ""]
    heads = ("clients of", "answered in", "rows", "p95, ms", "p95 with the declared way, ms")
    ways = [
        (way["from"], way["to"], f"{way['rows']:,}", f"{way['p95_ms']:.0f}", f"{way['with_way_ms']:.0f}")
        for way in day["ways"]
    ]
    most = max((way["with_way_ms"] for way in day["ways"]), default=math.nan)
    lines += [
        f"The SLO at the client is {found['slo_ms']:.0f} ms (p95), ways included; the highest here is {most:.0f} ms.",
        "",
        *_table(heads, ways),
        "",
    ]
    if day["unknown_server"]:
        lines += [f"{day['unknown_server']} answers are of a server that ended before it was asked for its name.", ""]
    return lines


def _kills(found: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    heads = (
        "killed",
        "as before after, s",
        "requests until the next kill",
        "of which the first try failed (answer not begun; begun)",
        f"never answered in {TRIES} tries",
        "epoch, before and after",
        "p95, ms",
    )
    rows = [
        (
            kill["what"],
            "never" if kill["back_s"] is None else f"{kill['back_s']:.1f}",
            f"{kill['requests']:,}",
            f"{kill['failed_first'] - kill['begun']}; {kill['begun']}{_counts(kill['why'])}",
            str(kill["lost"]),
            "{} → {}".format(*kill["epochs"]),
            f"{kill['p95_ms']:.0f}",
        )
        for kill in part["kills"]
    ]
    own = part["accuracy"]
    return [
        f"## The kills: {part['seconds'] / 60.0:.1f} minutes",
        "",
        _machine(part),
        "",
        (
            f"{part['requests']:,} requests, {part['answered']:,} answered; the first try of {part['failed_first']} "
            f"failed, {part['begun']} of them after the answer had begun; {part['lost']} were never answered. Accuracy "
            f"expected of all answers: {own['expected']:.2f} % at a floor of {found['floor']:.2f} %."
        ),
        "",
        *_table(heads, rows),
        "",
        (
            "Killed is SIGKILL, of the node with most rows where it is a node; its view is every entry of the node in "
            'HAProxy. "As before": a controller is in charge, what was killed runs and serves, no node is lost or on '
            "its way; the seconds include those that a machine stays away. A client tries again after 0.2, 0.4, 0.8 "
            "and 1.6 s."
        ),
        "",
    ]


def _machine(part: Mapping[str, Any]) -> str:
    return (
        f"Load average {part['load_average']:.1f}, {part['busy']:.0%} of the cores busy, all of it included: the "
        "cluster, its clients and whatever else ran."
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _why(part: Mapping[str, Any]) -> str:
    return _counts(part["failed_tries"])


def _counts(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{count} {why}' for why, count in counts.items())})" if counts else ""


def _verdict(apart: float) -> str:
    return f"within {_WITHIN:g}" if abs(apart) <= _WITHIN else f"not within {_WITHIN:g}"


def _two(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _part(value: float | None) -> str:
    return "unknown" if value is None or math.isnan(value) else f"{value:.0%}"
