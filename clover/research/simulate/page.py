"""The report: one HTML file that loads nothing, with the table, the charts and what the numbers are.

Charts are there if plotly is installed (extra `dashboard`); the tables always.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from clover import charts
from clover.planning.packing.evaluation import UNBOUNDED_MS
from clover.research.simulate.records import Accounting, Results, Run, Summary
from clover.research.simulate.tables import HEADS, MEANINGS, TITLES, cells

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem;color:#1c1c1c}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem}h3{font-size:1rem;margin:1.4rem 0 .3rem}
table{border-collapse:collapse;font-size:13px}
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #e4e4e4}
th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}tr.first td{border-top:2px solid #bbb}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:10px}.chart{min-width:0}
.legend{font-size:13px;margin:.2rem 0}.key{margin-right:1rem;white-space:nowrap}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}details{margin:.5rem 0}
code{background:#f3f3f3;padding:0 .2em}
@media (prefers-color-scheme:dark){body{background:#16181a;color:#e4e6e8}code{background:#24282b}
th,td{border-color:#33383d}tr.first td{border-color:#777}}
"""
SECTIONS = ("Savings", "Saving against accuracy", "Through the hours", "What these numbers are", "How to run it again")


def page(results: Results) -> str:
    """Return the HTML document of a report."""
    colours, sheet = _colours(results), charts.ChartSheet()
    bodies = (
        _savings(results),
        _pareto(results, colours, sheet),
        _hours(results, colours, sheet),
        _meaning(results),
        _manifest(results),
    )
    sections = "".join(f"<h2>{title}</h2>{body}" for title, body in zip(SECTIONS, bodies, strict=True))
    return (
        '<!doctype html><html lang="en-GB"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        "<title>Clover: simulation</title>"
        f"<style>{_STYLE}</style></head><body><h1>Clover: simulation</h1>"
        "<p>Modelled, not measured: the production controller on a virtual clock, with the planner's queueing model in "
        f"the place of workers.</p>{sections}{sheet.scripts()}</body></html>\n"
    )


def _colours(results: Results) -> dict[str, str]:
    return charts.line_colours(dict.fromkeys(_short(run.policy) for run in results.runs))


def _legend(colours: dict[str, str]) -> str:
    """Return names beside their colours, which several charts share."""
    items = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in colours.items()
    )
    return f'<p class="legend">{items}</p>'


def _short(policy: str) -> str:
    """Return a policy's name without what differs by family and trace: fixed mixes share one colour and one key."""
    return f"static ({policy.partition('(')[2]}" if policy.startswith("static >=") else policy


def _savings(results: Results) -> str:
    parts = []
    for accounting, title in TITLES.items():
        rows = [item for item in results.summaries if item.accounting == accounting]
        if not rows:
            continue
        head = "".join(f"<th>{escape(name)}</th>" for name in HEADS)
        lines = []
        before: tuple[str, str] | None = None
        for item in rows:
            first = before is not None and before != (item.family, item.trace)
            row_cells = "".join(f"<td>{escape(cell)}</td>" for cell in cells(item))
            lines.append(f"<tr{' class=first' if first else ''}>{row_cells}</tr>")
            before = (item.family, item.trace)
        parts.append(f"<h3>{escape(title)}</h3><table><tr>{head}</tr>{''.join(lines)}</table>")
    return "".join(parts) + "".join(f"<p>{escape(text)}</p>" for text in MEANINGS)


def _pareto(results: Results, colours: dict[str, str], sheet: charts.ChartSheet) -> str:
    groups: dict[tuple[str, str, Accounting], list[Summary]] = {}
    for item in results.summaries:
        groups.setdefault((item.family, item.trace, item.accounting), []).append(item)
    drawn = [
        sheet.add(
            charts.scatter(
                f"{family}, {trace} ({accounting}): % saved with idle power",
                "points of accuracy lost",
                {_short(item.policy): (max(0.0, item.accuracy_loss), 100.0 * item.saving) for item in own},
                colours,
            )
        )
        for (family, trace, accounting), own in groups.items()
    ]
    return f'<div class="charts">{"".join(drawn)}</div>'


def _hours(results: Results, colours: dict[str, str], sheet: charts.ChartSheet) -> str:
    groups: dict[tuple[str, str, Accounting], dict[str, Run]] = {}
    for run in results.runs:
        groups.setdefault((run.family, run.trace, run.accounting), {}).setdefault(_short(run.policy), run)
    parts = [_legend(colours)]
    for (family, trace, accounting), runs in groups.items():
        title = f"{family}, {trace} ({accounting})"
        is_open = " open" if len(groups) <= 6 else ""
        parts.append(f"<details{is_open}><summary>{escape(title)}</summary>{_group(runs, colours, sheet)}</details>")
    return "".join(parts)


def _group(runs: dict[str, Run], colours: dict[str, str], sheet: charts.ChartSheet) -> str:
    first = next(iter(runs.values()))
    start_s = first.steps[0].at_s
    end = (first.steps[-1].at_s + first.steps[-1].seconds - start_s) / 3600.0

    def over(run: Run, field: str) -> charts.Points:
        return [((step.at_s - start_s) / 3600.0, float(getattr(step, field))) for step in run.steps]

    def late(run: Run) -> charts.Points:
        return [(x, min(y, 3.0 * run.slo_ms)) for x, y in over(run, "p95_ms")]

    bounded = any(step.p95_ms < UNBOUNDED_MS for run in runs.values() for step in run.steps)
    drawn = [
        charts.lines("carbon intensity, gCO2e/kWh", {"grid": over(first, "g_per_kwh")}, end=end),
        charts.lines(
            "emissions with idle power, gCO2e/h",
            {
                name: [((s.at_s - start_s) / 3600.0, 3600.0 * s.grams / s.seconds) for s in run.steps]
                for name, run in runs.items()
            },
            end=end,
            colours=colours,
            legend=False,
        ),
        charts.lines(
            "accuracy, %",
            {name: over(run, "accuracy") for name, run in runs.items()},
            end=end,
            colours=colours,
            legend=False,
            from_zero=False,
        ),
        charts.lines(
            "p95, ms (cut at 3 x SLO)" if bounded else "p95, ms (unbounded)",
            {name: late(run) for name, run in runs.items()},
            end=end,
            colours=colours,
            legend=False,
            limit=("SLO", first.slo_ms),
        ),
    ]
    variants = list(dict.fromkeys(v for run in runs.values() for step in run.steps for v in step.shares))
    shades = charts.line_colours(variants)
    bands = [
        charts.bands(
            f"deployment of {name}: % of rows by variant",
            {
                variant: [((step.at_s - start_s) / 3600.0, 100.0 * step.shares.get(variant, 0.0)) for step in run.steps]
                for variant in variants
            },
            end=end,
            high=100.0,
            colours=shades,
            legend=False,
        )
        for name, run in runs.items()
        if name != "base"
    ]
    return (
        f'<div class="charts">{"".join(map(sheet.add, drawn))}</div>{_legend(shades)}'
        f'<div class="charts">{"".join(map(sheet.add, bands))}</div>{_deployments(runs, start_s)}'
    )


def _deployments(runs: dict[str, Run], start_s: float) -> str:
    """Return what ran from when on, and why, for every run."""
    parts = []
    for name, run in runs.items():
        lines = []
        before: tuple[str, str] | None = None
        for step in run.steps:
            now = step.deployment, step.chain
            if now != before:
                hour = (step.at_s - start_s) / 3600.0
                words = f"{now[0]} ({now[1]})" if now[1] else now[0]
                lines.append(f"<li>hour {hour:.2f}: <b>{escape(words)}</b><br>{escape(step.reason)}</li>")
            before = now
        parts.append(
            f"<details><summary>{escape(name)}: what ran, and why</summary><ul>{''.join(lines)}</ul></details>"
        )
    return "".join(parts)


def _meaning(results: Results) -> str:
    inputs = [(item.kind, item.name, item.about, item.sha256[:16]) for item in results.manifest.inputs]
    labels = "".join(f"<li>{escape(text)}</li>" for text in results.manifest.labels)
    return f"<ul>{labels}</ul><h3>Inputs</h3>{_table(('kind', 'name', 'what it is', 'SHA-256'), inputs)}"


def _manifest(results: Results) -> str:
    manifest = results.manifest
    rows = [
        ("made at", manifest.made_at),
        ("took", f"{manifest.seconds:.1f} s for {len(results.runs)} runs"),
        ("machine", manifest.machine),
        ("seeds", str(manifest.seeds)),
        *manifest.versions.items(),
        *((f"--{name.replace('_', '-')}", value) for name, value in manifest.arguments.items()),
    ]
    return f"<p><code>{escape(' '.join(manifest.command))}</code></p>{_table(('what', 'is'), rows)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
