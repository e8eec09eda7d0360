"""The verb `simulate` of `clover cluster`: plays the cluster of a file, before there is one, and prints the result."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clover import terminal
from clover.carbon import format_time
from clover.cli import CommandParser
from clover.cli.progress import Progress
from clover.cluster import cluster_file
from clover.cluster.cli.showing import wrapped
from clover.cluster.cluster_records import ClusterFile
from clover.cluster.planning.planner import plan_cluster
from clover.cluster.simulate.file import SimulationRequest, scenario_of
from clover.cluster.simulate.scenario import ClusterRun, ClusterScenario, play_fixed, simulate
from clover.errors import ConfigError
from clover.terminal import Column

DONE, REFUSED = 0, 1
RUNS = ("controller", "each region alone", "all awake")
_COLUMNS = (
    Column("", right=False),
    Column("g"),
    Column("saved", "by the controller, against this"),
    Column("accuracy", "mean of all rows, percent"),
    Column("refused", "rows beyond what was awake"),
    Column("late", "of the answered rows, beyond the SLO", spare=2),
    Column("awake", "of all hours of nodes"),
    Column("wakes", spare=1),
)


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of the verb."""
    add = parser.add_argument
    add(
        "--rate",
        action="append",
        default=[],
        metavar="[REGION[/MODEL]=]ROWS",
        help="rows/s that a region's clients send on average; once for all regions, or several times",
    )
    add("--swing", type=float, default=0.4, metavar="PART", help="how far rates go up and down in a day [0.4]")
    add(
        "--trace",
        action="append",
        default=[],
        metavar="REGION=FILE",
        help="a region's grid instead of the file's: a trace, static:G or synthetic; several times",
    )
    add("--start", default="", metavar="ISO", help="grid time to begin at [where all traces have begun]")
    add("--hours", type=float, default=24.0, metavar="H", help="hours that are played [24]")
    add("--step-s", type=float, default=60.0, metavar="S", help="seconds of a step, and between looks [60]")
    add(
        "--points",
        default="",
        metavar="FILE",
        help="operating points of the devices as JSON [what the cluster's controller saved]",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the times that nodes take to wake [0]")


def run(given: argparse.Namespace, width: int) -> int:
    """Play what is asked for, print it, and return the exit code: 1 if no row was answered.  ConfigError."""
    file = cluster_file.read(given.file)
    asked = SimulationRequest(
        rates=_rates(given.rate),
        swing=given.swing,
        grids=dict(_pair(text, "--trace") for text in given.trace),
        start=given.start,
        hours=given.hours,
        step_s=given.step_s,
        points=given.points,
        seed=given.seed,
    )
    scenario = scenario_of(file, asked)
    with Progress("cluster simulate", f"playing {given.hours:g} h of {len(scenario.terms.nodes)} nodes"):
        played = (simulate(scenario, plan_cluster), play_fixed(scenario, "alone"), play_fixed(scenario, "equal"))
    runs = dict(zip(RUNS, played, strict=True))
    print(json.dumps(document(scenario, runs), indent=1) if given.json else show(file, scenario, runs, width))
    return DONE if runs["controller"].sums.answered > 0.0 else REFUSED


def document(scenario: ClusterScenario, runs: Mapping[str, ClusterRun]) -> dict[str, Any]:
    """Return everything as JSON has it."""
    own = runs["controller"]
    return {
        "method": "modelled",
        "start_s": scenario.start_s,
        "seconds": scenario.seconds,
        "step_s": scenario.step_s,
        "runs": {name: _figures(scenario, run, own) for name, run in runs.items()},
        "plans_applied": sum(one.action == "applied" for one in own.decisions),
        "broken_rules": own.misdeeds,
        "troubles": list(dict.fromkeys(text for _, text in own.troubles)),
    }


def _figures(scenario: ClusterScenario, run: ClusterRun, controller: ClusterRun) -> dict[str, Any]:
    sums = run.sums
    accuracy = {family.family: sums.accuracy(family.family) for family in scenario.terms.families}
    return {
        "grams": sums.grams,
        "active_g": sums.active_g,
        "idle_g": sums.idle_g,
        "wake_g": sums.wake_g,
        "joules": sums.joules,
        "controller_saves": 1.0 - controller.sums.grams / sums.grams if sums.grams > 0.0 else None,
        "accuracy": {name: None if math.isnan(value) else value for name, value in accuracy.items()},
        "sent": sums.sent,
        "answered": sums.answered,
        "refused": sums.refused,
        "late": sums.late,
        "wakes": sums.wakes,
        "releases": sums.releases,
        "awake_part": sums.awake_node_s / (scenario.seconds * len(scenario.terms.nodes)),
    }


def show(file: ClusterFile, scenario: ClusterScenario, runs: Mapping[str, ClusterRun], width: int) -> str:
    """Return what came of it in lines of `width` columns."""
    result = document(scenario, runs)
    hours = scenario.seconds / 3600.0
    own = runs["controller"].sums
    floors = ", ".join(f"{family.family} {family.accuracy_floor:g} %" for family in scenario.terms.families)
    head = (
        f"{file.cluster.name}: {hours:g} h from {format_time(scenario.start_s)}, {len(scenario.terms.nodes)} nodes in "
        f"{len(scenario.regions)} regions, {own.sent:,.0f} rows; floor {floors} (simulated: all figures are modelled)"
    )
    parts = [head, ""]
    lines, left = terminal.plain(_COLUMNS, [_row(name, family) for name, family in result["runs"].items()], width)
    parts += [*lines, *([f"(not shown: {', '.join(left)}; --json has all)"] if left else [])]
    parts += ["", f"{result['plans_applied']} plans in force, {own.wakes} wakes, {own.releases} releases"]
    parts += [f"! a rule was broken: {text}" for text in result["broken_rules"][:5]]
    troubles: Sequence[str] = result["troubles"]
    parts += [f"! {text}" for text in troubles[:10]]
    parts += [f"! {len(troubles) - 10} other troubles: --json has all"] if len(troubles) > 10 else []
    return wrapped(parts, width)


def _row(name: str, own: Mapping[str, Any]) -> tuple[str, ...]:
    saves = own["controller_saves"]
    return (
        name,
        f"{own['grams']:.4g}" if own["grams"] < 9999.5 else f"{own['grams']:.0f}",
        "" if name == RUNS[0] or saves is None else f"{saves:.0%}",
        " ".join("-" if value is None else f"{value:.2f}" for value in own["accuracy"].values()),
        f"{own['refused']:.0f}",
        f"{own['late'] / own['answered']:.2%}" if own["answered"] > 0.0 else "",
        f"{own['awake_part']:.0%}",
        str(own["wakes"]),
    )


def _rates(given: Sequence[str]) -> dict[str, float]:
    rates = {}
    for text in given:
        name, value = _pair(text, "--rate") if "=" in text else ("", text)
        try:
            rates[name] = float(value)
        except ValueError:
            raise ConfigError(f"--rate takes ROWS or REGION=ROWS, not {text!r}") from None
    return rates


def _pair(text: str, of: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{of} takes REGION=VALUE, not {text!r}")
    return name, value
