"""Which variants answer: Clover beside the rules of INFaaS and Proteus, in accuracy, late rows and joules.

    python -m bench.choice [FAMILY ...] [--traces FILE ...] [--load doubling:0.4 doubling:0.6] [--json FILE]

FAMILY is one of the paper's, on two simulated A100s, or a profile (a .json) of this machine's cores.  The rules stand
in `clover.research.simulate.peers`.  Every policy is played by the same controller, router and queueing model, with
the same rows, for `--hours` of each trace.

`base`               BASE: the best variant on whole devices
`infaas`, `proteus`  their rules
`budget`             Clover's default: an accuracy budget of half a point over the day (`+mix`: without cascades)
`budget (P)`         the same at the accuracy that P reached, with a floor as far below: what accuracy costs apart
`..., parked`        GPUs without workers are parked at 45 W: INFaaS may scale down, as Clover may

Proteus has a fixed fleet and is not played parked.  The paper's families are played without cascades, as their
confidence was never measured.  `late` is the part of the rows beyond the SLO, joules are those of a row with idle power
and without, `saved` is of BASE's grams a row.  All is modelled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.common import show, write_json
from clover.planning.model.problem import accuracies
from clover.research.simulate import families, loads, world
from clover.research.simulate.loads import Load
from clover.research.simulate.paper import PARKED_W
from clover.research.simulate.records import Run
from clover.research.simulate.replay import play
from clover.research.simulate.world import Case, Rules, Scheme, Trace, World

LOADS = ("doubling:0.4", "doubling:0.6")
GPUS = 2
LEAST_LOSS = 0.01
"""Points of accuracy: what a budget at the accuracy of a policy that loses nothing is given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Play; print a table a family and load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="all of the paper's by default")
    parser.add_argument("--traces", nargs="+", default=[], help="files or folders of traces [synthetic]")
    parser.add_argument("--load", nargs="+", default=list(LOADS), help=f"as of `clover simulate` [{' '.join(LOADS)}]")
    parser.add_argument("--hours", type=float, default=24.0, help="of each trace [24]")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures of each trace to FILE")
    given = parser.parse_args(argv)
    traces = world.traces(given.traces, "", given.hours)
    written = []
    for name in given.families or families.names():
        machine = world.gpus(GPUS) if name in families.names() else world.cpu()
        known = families.load(name, machine.shapes)
        for load in map(loads.parse, given.load):
            began = time.perf_counter()
            own = World(machine, known, Rules())
            each = {trace.name: [_figures(run) for run in runs_of(own, trace, load)] for trace in traces}
            _print(
                f"{known.profile.family}, {load.name}, {len(traces)} traces, {time.perf_counter() - began:.0f} s", each
            )
            written.append(
                {"family": known.profile.family, "load": load.name, "about": own.input.about, "traces": each}
            )
    write_json(given.json, {"arguments": vars(given), "played": written})
    return 0


def runs_of(own: World, trace: Trace, load: Load) -> list[Run]:
    """Return the runs of one family on one trace, BASE first."""
    best = max(accuracies(own.known.profile).values())

    def played(scheme: Scheme, floor: float | None = None) -> Run:
        rules = own.rules if floor is None else replace(own.rules, accuracy_floor=floor, accuracy_margin=0.0)
        return play(Case(replace(own, rules=rules), trace, load, scheme, 0))

    def matched(peer: Run, asleep_w: float | None = None) -> Run:
        loss = max(LEAST_LOSS, best - peer.sums.accuracy)
        name = f"budget ({peer.policy})"
        return played(Scheme(name, "budget", accuracy_budget=loss, asleep_w=asleep_w), best - 2.0 * max(loss, 0.5))

    infaas, proteus = played(world.scheme("infaas")), played(world.scheme("proteus"))
    runs = [played(Scheme("base", "base")), infaas, matched(infaas), proteus, matched(proteus)]
    runs.append(played(Scheme("budget+mix", "budget")))
    if own.known.profile.cascade is not None:
        runs.append(played(Scheme("budget", "budget", cascade=True)))
    if not own.machine.shapes[0].overlap:
        parked = played(replace(world.scheme("infaas"), name="infaas, parked", asleep_w=PARKED_W))
        runs += [parked, matched(parked, PARKED_W), played(Scheme("budget+mix, parked", "budget", asleep_w=PARKED_W))]
    return runs


def _figures(run: Run) -> dict[str, Any]:
    sums = run.sums
    return {
        "policy": run.policy,
        "accuracy": sums.accuracy,
        "late": sums.late,
        "p95_ms": sums.p95_ms,
        "slo_ms": run.slo_ms,
        "joules": (sums.active_j + sums.idle_j) / sums.rows,
        "active_joules": sums.active_j / sums.rows,
        "grams": sums.grams / sums.rows,
        "awake": sums.awake,
        "changes": sums.changes,
    }


def _print(title: str, each: dict[str, list[dict[str, Any]]]) -> None:
    """Print the means over the traces."""
    rows = []
    bases = [runs[0] for runs in each.values()]
    for same in zip(*each.values(), strict=True):
        mean = {key: sum(run[key] for run in same) / len(same) for key in same[0] if key != "policy"}
        saved = sum(1.0 - run["grams"] / base["grams"] for run, base in zip(same, bases, strict=True)) / len(same)
        rows.append(
            [
                same[0]["policy"],
                f"{mean['accuracy']:.2f}",
                f"{mean['late']:.2%}",
                mean["joules"],
                mean["active_joules"],
                f"{saved:.1%}",
                f"{mean['awake']:.2f}",
                f"{mean['changes']:.0f}",
            ]
        )
    show(title, ["policy", "accuracy", "late", "J/row", "active", "saved", "awake", "changes"], rows)


if __name__ == "__main__":
    raise SystemExit(main())
