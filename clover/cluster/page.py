"""The cluster's page: its status as one HTML file that loads nothing and carries the status as JSON.

It is a pure function of `ClusterStatus`; `clover cluster status --html FILE` writes it.  Grams are modelled by the plan
in force unless it says "reported": those are of the nodes' own accounts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from html import escape
from math import ceil

import msgspec

from clover.cluster.controller_records import ClusterNodeStatus, ClusterStatus, Phase
from clover.hints import duration
from clover.planning.cluster.records import RegionFlow
from clover.quantities import grams
from clover.report.calendar import time_words
from clover.report.render import markup
from clover.report.render.markup import card, folded, pairs, paragraph, section, table

DATA_ID = "clover-cluster-status"
_MOST_NODES = 60
"""Nodes up to which all are shown at once; of more, those with something wrong are, and the others on demand."""
_MOST_DECISIONS = 12
_SAME = 0.0005
"""Part from which on two emissions are not the same, as figures are rounded."""
_PHASES: tuple[Phase, ...] = ("ready", "waking", "draining", "partitioned", "lost", "released")
_WRONG = ("lost", "partitioned")
_AWAKE = ("ready", "waking", "draining", "partitioned")

_STYLE = """
:root{--moved:#3d638f}
@media (prefers-color-scheme:dark){:root{--moved:#8fb4dc}}
.bars{display:grid;grid-template-columns:max-content 1fr;gap:.35rem .9rem;align-items:center;max-width:760px;
font-size:.9rem}
.bars>div{display:flex;align-items:center;gap:.6rem;white-space:nowrap}
.bars i{display:block;height:1.05rem;min-width:2px;border-radius:3px;background:var(--line);flex:none}
.bars i.now{background:var(--leaf)}
.flows{display:block;width:100%;max-width:760px;height:auto;margin:.6rem 0}
.flows path{fill:none;stroke:var(--leaf);stroke-opacity:.5}.flows path.moves{stroke:var(--moved)}
.flows text{fill:var(--ink);font-size:14px}.flows text.soft{fill:var(--soft);font-size:12px}
#decisions td.wide{min-width:14ch;max-width:34ch}
@media (max-width:600px){.flows{display:none}.bars{grid-template-columns:1fr}.bars>div{white-space:normal}}
"""

_WORDS = (
    ("awake", "a node with a server that answers or starts to; it draws power even without rows"),
    ("released", "a node whose server has ended; it uses nothing, and its machine may be given back"),
    ("draining", "a node that answers what it has, and gets nothing new"),
    ("lost", "a node that reported before and does not answer; its rows went to others"),
    ("partitioned", "a node that the controller cannot reach while the ingress can: it goes on serving"),
    ("each region alone", "the best that each region's nodes could do for their own clients"),
    ("all awake", "every node awake, rows in equal shares: what a plain load balancer does"),
    ("bound", "no plan of the problem as stated emits less"),
    ("epoch", "the number of the controller's term; nodes ignore orders of an older one"),
)


def page(status: ClusterStatus) -> str:
    """Return the page of a cluster's status; times are UTC."""
    parts = (
        _header(status),
        "".join(paragraph(text, "caution") for text in _troubles(status)),
        _cards(status),
        section("grams", "Grams of CO2e an hour, by the plan in force", _bars(status)),
        section("regions", "Regions", _regions(status)),
        section("flows", "Where rows go", _flows(status)),
        section("nodes", "Nodes", _nodes(status)),
        section("families", "Families", _families(status)),
        section("totals", "Since the controller counts", _totals(status)),
        section("decisions", "Decisions", _decisions(status)),
        section("words", "Words", pairs(_WORDS)),
    )
    data = msgspec.json.encode(status).decode()
    return markup.page("Clover cluster", "".join(parts), data=data, name=DATA_ID, style=_STYLE)


def _hourly(value: float) -> str:
    return f"{grams(value)}/h"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100.0 else f"{value:.3g}"


def _percent(part: float) -> str:
    return f"{100.0 * part:.1f} %".replace(".0 %", " %")


def _header(status: ClusterStatus) -> str:
    leads = "in control" if status.controlling else "not in control"
    lines = paragraph(f"{time_words(status.at_s, UTC, seconds=True)}, controller of epoch {status.epoch} {leads}")
    if status.reason:
        lines += paragraph(f"The plan in force: {status.reason}", "soft")
    return f"<header><h1>Cluster</h1>{lines}</header>"


def _troubles(status: ClusterStatus) -> Iterator[str]:
    if not status.controlling:
        yield "This controller changes nothing: it is not, or not any more, the one in control"
    yield from status.troubles
    for family in status.families:
        if family.unserved > 0.0:
            yield f"{family.family}: {_rate(family.unserved)} rows/s find no room on any node that may answer them"


def _saved(other_g: float, own_g: float) -> tuple[str, str]:
    """Return a saving as a card's figure and its sign in words."""
    if other_g <= 0.0:
        return "not known", "there is no plan yet"
    part = 1.0 - own_g / other_g
    if abs(part) < _SAME:
        return "0 %", "the same now"
    words = "less than that now" if part >= 0.0 else "MORE than that now"
    return _percent(abs(part)), words


def _cards(status: ClusterStatus) -> str:
    bound = status.bound_g_h
    gap = f"at most {_percent(status.grams_h / bound - 1.0)} above the least" if bound > 0.0 else ""
    count = Counter(node.phase for node in status.nodes)
    devices = sum(sum(node.devices.values()) for node in status.nodes if node.phase in _AWAKE)
    others = [f"{count[phase]} {phase}" for phase in _PHASES if phase != "ready" and count[phase]]
    alone, alone_words = _saved(status.alone_g_h, status.grams_h)
    awake, awake_words = _saved(status.awake_g_h, status.grams_h)
    totals = status.totals
    cards = (
        card("Emits now", _hourly(status.grams_h), [text for text in ("modelled by the plan in force", gap) if text]),
        card(
            "Against each region alone",
            alone,
            [
                alone_words,
                *([f"{_percent(totals.saved_against_alone)} since the start"] if totals.alone_g > 0.0 else []),
            ],
        ),
        card(
            "Against all awake",
            awake,
            [
                awake_words,
                *([f"{_percent(totals.saved_against_awake)} since the start"] if totals.awake_g > 0.0 else []),
            ],
        ),
        card(
            "Nodes",
            f"{count['ready']} of {len(status.nodes)} ready",
            [", ".join(others) or "none in another state", f"{devices} device{'s' * (devices != 1)} awake"],
        ),
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _bars(status: ClusterStatus) -> str:
    items = (
        ("this plan", status.grams_h, "now"),
        ("the bound", status.bound_g_h, ""),
        ("each region alone", status.alone_g_h, ""),
        ("all awake, equal shares", status.awake_g_h, ""),
    )
    most = max(value for _, value, _ in items)
    if most <= 0.0:
        return paragraph("There is no plan yet.")
    rows = "".join(
        f'<span>{escape(name)}</span><div><i class="{kind}" style="width:{60.0 * max(value, 0.0) / most:.1f}%"></i>'
        f"{escape(_hourly(value))}</div>"
        for name, value, kind in items
    )
    return f'<div class="bars">{rows}</div>'


def _regions(status: ClusterStatus) -> str:
    rows = [
        (
            region.name,
            "not known" if region.intensity is None else f"{region.intensity:.0f}",
            _known(region.provider, region.method, region.age_s),
            f"{region.awake} of {region.nodes}",
            str(region.devices),
            _rate(region.sent),
            _rate(region.answered),
            f"{region.watts:,.0f} W",
            _hourly(region.grams_h),
        )
        for region in status.regions
    ]
    sums = [
        sum(getattr(region, name) for region in status.regions) for name in ("sent", "answered", "watts", "grams_h")
    ]
    foot = ("Sum", "", "", "", "", _rate(sums[0]), _rate(sums[1]), f"{sums[2]:,.0f} W", _hourly(sums[3]))
    heads = ("Region", "gCO2e/kWh", "Known by", "Awake", "Devices", "Rows/s sent", "Rows/s answered", "Power", "CO2e")
    return table(
        "Each with its own grid; power and grams as its nodes reported of late",
        heads,
        rows,
        text=(0, 2),
        foot=foot if len(rows) > 1 else (),
    )


def _known(provider: str, method: str, age_s: float) -> str:
    words = [word for word in (provider, method, f"{duration(age_s)} old" if age_s >= 1.0 else "") if word]
    return ", ".join(words)


# --- flows ------------------------------------------------------------------------------------------------------------


def _flows(status: ClusterStatus) -> str:
    if not status.flows:
        return paragraph("No rows are sent anywhere yet.")
    whole = sum(flow.rate for flow in status.flows)
    rows = [
        (
            flow.family,
            flow.origin,
            flow.region,
            _rate(flow.rate),
            _percent(flow.rate / whole) if whole > 0.0 else "",
            "stays" if flow.origin == flow.region else "moves",
        )
        for flow in sorted(status.flows, key=lambda flow: (flow.family, flow.origin, -flow.rate))
    ]
    heads = ("Family", "Clients in", "Answered in", "Rows/s", "Part", "")
    moved = sum(flow.rate for flow in status.flows if flow.origin != flow.region)
    text = f"{_percent(moved / whole) if whole > 0.0 else '0 %'} of the rows are answered in another region."
    caption = "Rows from the clients' region to the region that answers"
    return paragraph(text) + _drawing(status.flows) + table(caption, heads, rows, text=(0, 1, 2, 5))


def _drawing(flows: Iterable[RegionFlow]) -> str:
    """Return flows of all families as bands from origins (left) to regions (right); nothing if nothing flows."""
    rates: dict[tuple[str, str], float] = defaultdict(float)
    for flow in flows:
        rates[flow.origin, flow.region] += flow.rate
    rates_by_way = {key: rate for key, rate in rates.items() if rate > 0.0}
    if not rates_by_way:
        return ""
    left, right = sorted({origin for origin, _ in rates_by_way}), sorted({region for _, region in rates_by_way})
    step, widest = 64.0, 34.0
    most = max(*_sum_by(rates_by_way, 0).values(), *_sum_by(rates_by_way, 1).values())
    thick = {key: max(widest * rate / most, 1.0) for key, rate in rates_by_way.items()}
    starts, ends = _centres(thick, left, 0, step), _centres(thick, right, 1, step)
    height = ceil(step * max(len(left), len(right)))
    bands = "".join(
        f'<path class="{"stays" if key[0] == key[1] else "moves"}" stroke-width="{thick[key]:.1f}" '
        f'd="M190 {starts[key]:.1f}C380 {starts[key]:.1f} 380 {ends[key]:.1f} 570 {ends[key]:.1f}"/>'
        for key in sorted(rates_by_way, key=lambda key: -rates_by_way[key])
    )
    names = _names(left, _sum_by(rates_by_way, 0), 180.0, "end", step) + _names(
        right, _sum_by(rates_by_way, 1), 580.0, "start", step
    )
    said = "; ".join(
        f"{origin} to {region} {_rate(rate)} rows/s" for (origin, region), rate in sorted(rates_by_way.items())
    )
    return (
        f'<svg class="flows" viewBox="0 0 760 {height}" role="img" aria-label="{escape(f"Flows of rows: {said}")}">'
        f"{bands}{names}</svg>"
    )


def _sum_by(rates: Mapping[tuple[str, str], float], side: int) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for key, rate in rates.items():
        found[key[side]] += rate
    return dict(found)


def _centres(
    thick: Mapping[tuple[str, str], float], names: Sequence[str], side: int, step: float
) -> dict[tuple[str, str], float]:
    """Return where each band is on one side: those of a region beside each other, around its middle."""
    found = {}
    for index, name in enumerate(names):
        own = sorted(key for key in thick if key[side] == name)
        at = step * (index + 0.5) - sum(thick[key] for key in own) / 2.0
        for key in own:
            found[key] = at + thick[key] / 2.0
            at += thick[key]
    return found


def _names(names: Sequence[str], rates: Mapping[str, float], x: float, anchor: str, step: float) -> str:
    return "".join(
        f'<text x="{x:g}" y="{step * (index + 0.5):g}" text-anchor="{anchor}">{escape(_short(name))}</text>'
        f'<text class="soft" x="{x:g}" y="{step * (index + 0.5) + 16:g}" text-anchor="{anchor}">'
        f"{_rate(rates[name])} rows/s</text>"
        for index, name in enumerate(names)
    )


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


# --- nodes ------------------------------------------------------------------------------------------------------------


def _nodes(status: ClusterStatus) -> str:
    nodes = sorted(status.nodes, key=lambda node: (node.region, node.name))
    if not nodes:
        return paragraph("There are no nodes.")
    if len(nodes) <= _MOST_NODES:
        return _node_table("All nodes", nodes)
    wrong = [node for node in nodes if node.why or node.phase in _WRONG]
    shown = _node_table("Nodes with something to say", wrong) if wrong else paragraph("All nodes do as they should.")
    return shown + folded(f"All {len(nodes)} nodes", _node_table("All nodes", nodes))


def _node_table(caption: str, nodes: Sequence[ClusterNodeStatus]) -> str:
    rows = [
        (
            node.name,
            node.region,
            f"{node.phase}, held {node.hold}" if node.hold else node.phase,
            _by_family(node.rates, _rate),
            _by_family(node.p95_ms, lambda value: f"{value:.3g} ms"),
            _by_family(
                node.target.accuracy if node.target is not None and node.target.awake else {},
                lambda value: f"{value:.2f} %",
            ),
            ", ".join(f"{count} x {kind}" for kind, count in sorted(node.devices.items())),
            _percent(node.share),
            "never" if node.report_age_s is None else f"{duration(node.report_age_s)} ago",
            node.why,
        )
        for node in nodes
    ]
    heads = ("Node", "Region", "State", "Rows/s", "p95", "Accuracy asked", "Devices", "Share", "Reported", "Why")
    return table(caption, heads, rows, text=(0, 1, 2, 6), wide=(9,))


def _by_family(values: Mapping[str, float], words: Callable[[float], str]) -> str:
    if len(values) == 1:
        return words(next(iter(values.values())))
    return ", ".join(f"{family} {words(value)}" for family, value in sorted(values.items()))


def _families(status: ClusterStatus) -> str:
    rows = [
        (
            item.family,
            _rate(item.rate),
            "" if item.accuracy is None else f"{item.accuracy:.2f} %",
            f"{item.accuracy_floor:.2f} %",
            f"{item.corrected:.2f} %",
            f"{item.p95_ms:.3g} ms",
            f"{item.slo_p95_ms:g} ms",
            f"{item.rows:,.0f}",
            grams(item.reported_g),
        )
        for item in status.families
    ]
    heads = ("Family", "Rows/s", "Accuracy", "Floor", "Planned for", "p95", "SLO", "Rows answered", "CO2e reported")
    return table("Promises and how they are kept, over all nodes", heads, rows)


def _totals(status: ClusterStatus) -> str:
    totals = status.totals
    if not totals.since_s:
        return ""
    items = [
        ("Since", time_words(totals.since_s, UTC)),
        ("Emitted by plan", f"{grams(totals.planned_g)}, modelled"),
        ("Reported by nodes", f"{grams(totals.reported_g)}, for {totals.rows:,.0f} rows"),
        ("Each region alone", f"{grams(totals.alone_g)}, modelled: {_percent(totals.saved_against_alone)} saved"),
        ("All awake", f"{grams(totals.awake_g)}, modelled: {_percent(totals.saved_against_awake)} saved"),
    ]
    return pairs(items)


def _decisions(status: ClusterStatus) -> str:
    newest = sorted(status.decisions, key=lambda item: -item.id)[:_MOST_DECISIONS]
    rows = [
        (
            time_words(item.at_s, UTC, seconds=True) + (f", {item.count} times" if item.count > 1 else ""),
            item.action,
            item.trigger,
            _hourly(item.grams_h),
            ", ".join((*(f"+{name}" for name in item.woken), *(f"-{name}" for name in item.released))),
            item.reason,
        )
        for item in newest
    ]
    heads = ("When", "Done", "Because", "CO2e", "Woken (+), released (-)", "Reason")
    return table("The newest decisions", heads, rows, text=(0, 1), wide=(2, 4, 5))
