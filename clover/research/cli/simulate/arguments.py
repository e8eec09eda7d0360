"""The arguments of the command `simulate`."""

from __future__ import annotations

import argparse

from clover.cli import CommandParser
from clover.hints import program
from clover.research.simulate import families, minutes
from clover.research.simulate.paper import SEEDS

HOURS = 24.0
POLICIES = ("base", "co2opt", "clover", "oracle", "objective", "budget")
MIXES = ("objective+mix", "budget+mix")
"""Played, too, for families that have cascades, if no policies are named."""
SCENARIO_G_PER_KWH = 250.0
"""The reference intensity of scenarios, which are compared with results of other days."""

_ABOUT = """\
Play families of model variants through carbon traces under policies, on a virtual clock and through the controller that
serves.  Nothing is measured: joules, p95 and accuracy are those of the planner's model on a profile.  Brackets hold
defaults; after "paper:", those of --scenario paper.
"""


def parser() -> argparse.ArgumentParser:
    found = CommandParser(
        prog=f"{program()} simulate", description=_ABOUT, usage=f"{program()} simulate [FAMILY ...] [options]"
    )
    _add_subject(found.add_argument_group("what is played"))
    _add_surprises(found.add_argument_group("what the controller does not know"))
    _add_targets(found.add_argument_group("targets"))
    _add_rules(found.add_argument_group("the server"))
    _add_kinds(found.add_argument_group("other simulations"))
    _add_running(found.add_argument_group("running and output"))
    return found


def _add_subject(group: argparse._ArgumentGroup) -> None:
    """Add what is played: families, policies, grids, load and machine."""
    add = group.add_argument
    add(
        "families",
        metavar="FAMILY",
        nargs="*",
        help=f"{', '.join(families.names())} (all three by default), a family profiled here, or a profile.json",
    )
    add(
        "--policies",
        metavar="A,B",
        default=None,
        help="policies, as of `serve --policy`; NAME+cascade or NAME+mix: with or without cascades [with, if the "
        "family has a confidence]; NAME+shared: workers hold all variants and may share their time; NAME@L: "
        f"with --lam L; BASE is always played [{','.join(POLICIES)}, and for families with cascades {','.join(MIXES)}]",
    )
    add("--traces", metavar="DIR|FILE", nargs="+", default=[], help="carbon traces, synthetic, or static:G [synthetic]")
    add(
        "--load",
        default="constant:0.6",
        help="constant:U, diurnal[:U], bursts[:U], surges[:U], doubling[:U] (U: part of BASE's capacity), or a "
        "FILE of arrival times in seconds [constant:0.6]",
    )
    add("--gpus", metavar="N", type=int, default=None, help="simulated A100s with MIG [2]")
    add("--no-mig", action="store_true", help="simulate GPUs without MIG")
    add(
        "--device",
        default=None,
        help="device that the family was profiled on: cpu (the cores of this machine), or emulated:NAME[:COUNT]",
    )
    add("--hours", type=float, default=None, help=f"hours of each trace [{HOURS:g}; paper: 48]")
    add("--start", metavar="ISO", default="", help="grid time to start at [the trace's first value]")
    add(
        "--seeds", metavar="N", type=int, default=None, help=f"runs, each with other random numbers [1; paper: {SEEDS}]"
    )
    add(
        "--confidence",
        default="parametric",
        help="confidence of the paper's families, which was never measured: parametric, "
        "parametric:ALIKE,BLUR (0.9,0.7), or none (no cascades) [parametric]",
    )
    add(
        "--forecast",
        default="perfect",
        help="what policies know of the hours to come: perfect, seasonal, "
        "persistence, or error:PCT, the trace with normal errors [perfect]",
    )


def _add_surprises(group: argparse._ArgumentGroup) -> None:
    """Add what the controller does not know."""
    add = group.add_argument
    add(
        "--misprofiled",
        metavar="PCT",
        type=float,
        default=0.0,
        help="let true times and joules of each variant differ from its profile by up to PCT percent, at random [0]",
    )
    add(
        "--lost-gpu",
        metavar="GPU@FROM+HOURS",
        action="append",
        default=[],
        help="GPU 0, 1, ... does not answer for HOURS from hour FROM on, as 1@12+3; may be repeated",
    )


def _add_targets(group: argparse._ArgumentGroup) -> None:
    """Add what plans aim at."""
    add = group.add_argument
    add(
        "--objective",
        choices=("paper", "floor"),
        default="paper",
        help="paper: accuracy against carbon, weighted by --lam; floor: least carbon above the accuracy floor [paper]",
    )
    add("--lam", metavar="L", type=float, default=None, help="weight of carbon, in `paper` [derived; paper: 0.1]")
    add("--slo-ms", metavar="MS", type=float, default=None, help="p95 target [1.2 x BASE's, at least 5; paper: BASE's]")
    add(
        "--reference-g-per-kwh",
        metavar="G",
        type=float,
        default=None,
        help="intensity at which accuracy and carbon weigh alike if --lam is derived [the median of the trace's hours "
        f"before and of a week ahead; scenarios: {SCENARIO_G_PER_KWH:g}]",
    )
    add(
        "--accuracy-floor",
        metavar="PCT",
        type=float,
        default=None,
        help="lowest accuracy to plan for [best variant - 1 point; paper: 0]",
    )
    add(
        "--accuracy-margin",
        metavar="PTS",
        type=float,
        default=None,
        help="points above that floor which plans aim for [by the size of the evaluation set; scenarios: 0]",
    )
    add(
        "--accuracy-budget",
        metavar="PTS",
        type=float,
        default=None,
        help="points below the best variant that the policies budget and static may lose on average [0.5]",
    )
    add(
        "--budget-horizon-h",
        metavar="H",
        type=float,
        default=24.0,
        help="hours over which a budget averages [24; paper: all]",
    )


def _add_rules(group: argparse._ArgumentGroup) -> None:
    """Add how the server and its machine behave."""
    add = group.add_argument
    add(
        "--asleep",
        metavar="W",
        type=float,
        default=None,
        help="watts of a GPU without workers, as 45 (parked) or 0 (released); plans may then leave GPUs without "
        "workers [all stay awake; paper: 45 if a policy says parked]",
    )
    add(
        "--look-s",
        metavar="S",
        type=float,
        default=300.0,
        help="grid seconds between readings of the intensity [300; paper: 900]",
    )
    add(
        "--resident",
        choices=("auto", "off"),
        default="off",
        help="auto: play each policy whose plans may share workers a second time, as POLICY+shared [off]",
    )
    add("--load-s", metavar="S", type=float, default=0.0, help="grid seconds that a worker takes to load [0]")
    add(
        "--waits",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let rows wait for fuller batches [if --slo-ms is given; scenarios: no]",
    )
    add("--pue", type=float, default=1.5, help="power usage effectiveness [1.5]")
    add("--exact-rate", action="store_true", help="let the controller see the true rate, not one sampled in a window")
    add(
        "--allow-capacity-loss",
        action="store_true",
        help="allow changes during which capacity falls below the load",
    )


def _add_kinds(group: argparse._ArgumentGroup) -> None:
    """Add simulations of another kind than hours in steps."""
    add = group.add_argument
    add(
        "--machine",
        action="store_true",
        help="print what the whole machine emits a day under BASE, the default, and the default with --slo-ms: "
        "workers, front end, idle power; on --device cpu unless GPUs are given; a family without a profile is measured "
        "quickly",
    )
    add(
        "--rate",
        metavar="R",
        type=float,
        default=None,
        help="with --machine: rows a second [20, 200, and 0.6 of BASE's capacity]",
    )
    add(
        "--minutes",
        metavar="M",
        type=float,
        default=None,
        help="play M minutes row by row through the server's own router, instead of hours in steps",
    )
    add(
        "--gust",
        metavar="F",
        type=float,
        default=1.0,
        help=f"with --minutes: F times the load for {minutes.GUST_S:g} s of every minute [1]",
    )
    add(
        "--relief",
        metavar="VARIANT",
        default="",
        help="with --minutes: play it again with VARIANT (or auto) standing by, as with --relief of serve",
    )
    add(
        "--waiting-share",
        metavar="S",
        type=float,
        default=None,
        help="play the part S of the rows as batch jobs that may wait (`clover batch run`): what they emit at once, as "
        "a server plans them, and with all intensities known; --load is of the machine, and no FAMILY is needed",
    )
    add("--within", metavar="TIME", default="24h", help="with --waiting-share: how long they may wait, 15m to 7d [24h]")
    add(
        "--scenario",
        choices=("paper", "day"),
        default=None,
        help="paper: the SC'23 evaluation, 3 families, 10 GPUs, "
        "48 h of the artifact's traces (in --traces DIR), two accountings; day: a day under an accuracy budget, by "
        "mixes and by cascades",
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    """Add how it is run, and what is written."""
    add = group.add_argument
    add(
        "--jobs",
        metavar="N",
        type=int,
        default=1,
        help="processes that play the families and traces of --scenario paper [1]",
    )
    add("--quick", action="store_true", help="play less: 2 GPUs, 6 hours")
    add("--png", action="store_true", help="write charts as PNG too (needs the extra `analysis`)")
    add("-o", "--output", metavar="DIR", default="", help="write results.json and report.html there")
