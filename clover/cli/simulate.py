"""The command `simulate`: its arguments, what it plays, prints and writes."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from clover import terminal
from clover.cli import CommandParser
from clover.errors import CloverError, ConfigError
from clover.hints import program
from clover.simulate import day, families, forecasts, loads, minutes, parametric, world
from clover.simulate.day import Day
from clover.simulate.families import Known
from clover.simulate.page import page
from clover.simulate.paper import SEEDS, Paper, PaperOptions
from clover.simulate.records import Results, Run, RunInput
from clover.simulate.surprises import Surprises, parse_lost
from clover.simulate.tables import show, show_minutes
from clover.simulate.work import execute, results
from clover.simulate.world import Case, Rules, SimulatedMachine, Trace, World

DONE, USAGE, FAILED = 0, 2, 3
_WIDTH = 205
"""Columns if standard output is no terminal."""
_HOURS = 24.0
_MOST_RUNS = 5_000
_POLICIES = ("base", "co2opt", "clover", "oracle", "objective", "budget")
_MIXES = ("objective+mix", "budget+mix")
"""Played, too, for families that have cascades, if no policies are named."""
_SCENARIO_G_PER_KWH = 250.0
"""The reference intensity of scenarios, which are compared with results of other days."""

_ABOUT = """\
Play families of model variants through carbon traces under policies, on a virtual clock and through the controller that
serves.  Nothing is measured: joules, p95 and accuracy are those of the planner's model on a profile.  Brackets hold
defaults; after "paper:", those of --scenario paper.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        given = _parser().parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    log = logging.getLogger("clover")
    level = log.level
    log.setLevel(logging.ERROR)  # the ledger has what the controller warns of
    console = terminal.console(_WIDTH)
    try:
        if given.minutes is not None:
            _minutes(given, words, console)
            return DONE
        found = _simulate(given, words)
        show(found, console)
        if given.output:
            for path in _write(found, Path(given.output), png=given.png):
                console.print(f"written: {path}", soft_wrap=True)
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except CloverError as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt:
        return 130
    finally:
        log.setLevel(level)  # main() may have been called from a program that logs
    return DONE


def _fail(text: str, code: int) -> int:
    sys.stdout.flush()
    print(f"clover simulate: {text}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program()} simulate", description=_ABOUT, usage=f"{program()} simulate [FAMILY ...] [options]"
    )
    _add_subject(parser.add_argument_group("what is played"))
    _add_surprises(parser.add_argument_group("what the controller does not know"))
    _add_targets(parser.add_argument_group("targets"))
    _add_rules(parser.add_argument_group("the server"))
    _add_kinds(parser.add_argument_group("other simulations"))
    _add_running(parser.add_argument_group("running and output"))
    return parser


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
        help="names as in --policy of serve, whose default is budget; +cascade and +mix: plans may have chains, or not "
        "(else as in a server: if the family has a confidence), @L is a weight of carbon (--lam) of its own; BASE is "
        f"always played [{','.join(_POLICIES)}, and for families with cascades {','.join(_MIXES)}]",
    )
    add("--traces", metavar="DIR|FILE", nargs="+", default=[], help="carbon traces, synthetic, or static:G [synthetic]")
    add(
        "--load",
        default="constant:0.6",
        help="constant:U, diurnal[:U], bursts[:U], surges[:U] (U: part of BASE's capacity), or a "
        "FILE of arrival times in seconds [constant:0.6]",
    )
    add("--gpus", metavar="N", type=int, default=None, help="A100s with MIG, simulated [2]")
    add("--device", choices=("cpu",), default=None, help="cores of this machine instead, for a family profiled on them")
    add("--hours", type=float, default=None, help=f"hours of each trace [{_HOURS:g}; paper: 48]")
    add("--start", metavar="ISO", default="", help="grid time to start at [the trace's first value]")
    add("--seeds", metavar="N", type=int, default=None, help=f"runs with other random numbers [1; paper: {SEEDS}]")
    add(
        "--confidence",
        default="parametric",
        help="confidence of the paper's families, never measured: parametric, "
        "parametric:ALIKE,BLUR (0.9,0.7), or none, which leaves them without cascades [parametric]",
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
        help="times and joules of each variant really differ from its profile, by up to PCT percent up or down, drawn "
        "by the seed [0]",
    )
    add(
        "--lost-gpu",
        metavar="GPU@FROM+HOURS",
        action="append",
        default=[],
        help="a GPU (0, 1, ...) does not answer from an hour on, for so many hours, as 1@12+3; may be repeated",
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
        f"before and of a week ahead; scenarios: {_SCENARIO_G_PER_KWH:g}]",
    )
    add(
        "--accuracy-floor",
        metavar="PCT",
        type=float,
        default=None,
        help="lowest accuracy to plan for [best variant - 1 point; paper: 0]",
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
        help="watts of a GPU without workers, as 45 (parked) or 0 "
        "(released): lets plans leave GPUs without workers [all stay awake; paper: 45 if a policy says parked]",
    )
    add(
        "--look-s",
        metavar="S",
        type=float,
        default=300.0,
        help="grid seconds between readings of the intensity [300; paper: 900]",
    )
    add("--dwell-s", metavar="S", type=float, default=5.0, help="grid seconds between changes of configuration [5]")
    add("--load-s", metavar="S", type=float, default=0.0, help="grid seconds a worker takes to load [0]")
    add(
        "--waits",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let rows wait for fuller batches [if --slo-ms is twice its default or more; scenarios: no]",
    )
    add("--pue", type=float, default=1.5, help="power usage effectiveness [1.5]")
    add("--exact-rate", action="store_true", help="let the controller see the true rate, not one sampled in a window")
    add(
        "--allow-capacity-loss",
        action="store_true",
        help="also make changes during which capacity falls below the load",
    )


def _add_kinds(group: argparse._ArgumentGroup) -> None:
    """Add simulations of another kind than hours in steps."""
    add = group.add_argument
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
    add("--jobs", metavar="N", type=int, default=1, help="processes that share a scenario's families and traces [1]")
    add("--quick", action="store_true", help="play less: 2 GPUs, 6 hours")
    add("--png", action="store_true", help="write charts as PNG too (needs the extra `simulate`)")
    add("-o", "--output", metavar="DIR", default="", help="write results.json and report.html there")


def _simulate(given: argparse.Namespace, words: Sequence[str]) -> Results:
    began = time.monotonic()
    if given.seeds is None:
        given.seeds = SEEDS if given.scenario == "paper" and not given.quick else 1
    _check(given)
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()))
        task = bar.add_task("simulating", total=None)

        def on_progress(own: World, trace: Trace, number: int) -> None:
            bar.update(task, advance=number, description=f"{own.known.profile.family} {trace.name}")

        labels: tuple[str, ...] = ()
        if given.scenario == "day":
            played = Day(_day(given))
            bar.update(task, total=played.count)
            runs = played.play(on_progress)
            inputs, labels = played.inputs, played.labels
        elif given.scenario:
            scenario = Paper(
                PaperOptions(
                    names=given.families,
                    traces=given.traces,
                    lam=given.lam,
                    gpus=given.gpus,
                    hours=given.hours,
                    start=given.start,
                    seeds=given.seeds,
                    load=loads.parse(given.load),
                    rules=_rules(given),
                    quick=given.quick,
                    confidence=parametric.parse(given.confidence),
                )
            )
            bar.update(task, total=scenario.count)
            runs = scenario.play(on_progress, given.jobs)
            inputs, labels = scenario.inputs, scenario.labels
        else:
            cases, inputs = _cases(given)
            if len(cases) > _MOST_RUNS:
                raise ConfigError(
                    f"these are {len(cases)} runs, more than {_MOST_RUNS}: fewer traces, policies or seeds"
                )
            bar.update(task, total=len(cases))
            runs = execute(cases, on_progress)
    return _results(given, words, runs, inputs, labels, began)


def _minutes(given: argparse.Namespace, words: Sequence[str], console: Console) -> None:
    """Play minutes row by row, print them, and write them where a folder is given."""
    _check(given)
    if given.scenario:
        raise ConfigError("--minutes plays what is given, and no --scenario")
    given.seeds = given.seeds or 1
    cases, inputs = _cases(given)
    found = [
        minutes.play(case, seconds=60.0 * given.minutes, gust=given.gust, relief=relief)
        for case in cases
        for relief in dict.fromkeys(("", given.relief))
    ]
    show_minutes(found, inputs, console)
    if given.output:
        path = Path(given.output) / "minutes.json"
        document = {"command": ["python", "-m", "clover", "simulate", *words], "inputs": inputs, "runs": found}
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
        console.print(f"written: {path}", soft_wrap=True)


def _results(
    given: argparse.Namespace,
    words: Sequence[str],
    runs: Sequence[Run],
    inputs: Sequence[RunInput],
    labels: Sequence[str],
    began: float,
) -> Results:
    arguments = {
        name: ",".join(Path(item).name for item in value) if isinstance(value, list) else str(value)
        for name, value in vars(given).items()
        if name != "output"
    }
    return results(
        runs,
        command=("python", "-m", "clover", "simulate", *words),
        arguments=arguments,
        inputs=inputs,
        seeds=given.seeds,
        began=began,
        labels=labels,
    )


def _check(given: argparse.Namespace) -> None:
    """Check the arguments before anything runs; ConfigError for values that no run could use."""
    if given.output:
        try:
            Path(given.output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"-o {given.output}: {error.strerror or error}") from error
    for name, low, high in (
        ("seeds", 1, 1000),
        ("lam", 0.0, 1.0),
        ("reference_g_per_kwh", 1e-3, 1e5),
        ("accuracy_floor", 0.0, 100.0),
        ("slo_ms", 1e-3, 1e7),
        ("look_s", 1.0, 86400.0),
        ("dwell_s", 0.0, 1e7),
        ("load_s", 0.0, 1e5),
        ("pue", 1.0, 10.0),
        ("minutes", 0.5, 24 * 60.0),
        ("gust", 1.0, 100.0),
        ("jobs", 1, 256),
        ("accuracy_budget", 0.0, 100.0),
        ("budget_horizon_h", 1.0, 8784.0),
        ("misprofiled", 0.0, 90.0),
        ("asleep", 0.0, families.paper().idle_w_per_gpu),
    ):
        value = getattr(given, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} is {low:g} to {high:g}, not {value:g}")
    if given.jobs > 1 and given.scenario != "paper":
        raise ConfigError("--jobs is for --scenario paper")
    if given.device and given.asleep is not None:
        raise ConfigError("--asleep is for GPUs: cores of one machine do not sleep by themselves")
    if given.device and given.gpus is not None:
        raise ConfigError("--gpus and --device cpu exclude each other")
    if given.minutes is None and (given.relief or given.gust != 1.0):
        raise ConfigError("--gust and --relief are seen row by row: give --minutes")
    if given.png and not given.output:
        raise ConfigError("--png writes beside the report: give a folder with -o")
    if given.png and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "--png needs matplotlib: pip install 'clover-inference[simulate]' (report.html needs nothing)"
        )


def _rules(given: argparse.Namespace) -> Rules:
    reference, waits = given.reference_g_per_kwh, given.waits
    if given.scenario:
        reference, waits = reference or _SCENARIO_G_PER_KWH, bool(waits)
    return Rules(
        form=given.objective,
        lam=given.lam,
        reference_g_per_kwh=reference,
        waits=waits,
        slo_ms=given.slo_ms,
        accuracy_floor=given.accuracy_floor,
        look_s=given.look_s,
        dwell_s=given.dwell_s,
        load_s=given.load_s,
        pue=given.pue,
        noise=not given.exact_rate,
        capacity_loss=given.allow_capacity_loss,
        accuracy_budget=given.accuracy_budget,
        budget_horizon_s=given.budget_horizon_h * 3600.0,
        asleep_w=given.asleep,
        forecast=forecasts.parse(given.forecast),
        surprises=_surprises(given),
    )


def _surprises(given: argparse.Namespace) -> Surprises:
    if given.device and given.lost_gpu:
        raise ConfigError("--lost-gpu is for GPUs: cores are not lost")
    gpus = (2 if given.gpus is None else given.gpus) if given.scenario != "paper" else (given.gpus or 10)
    return Surprises(given.misprofiled / 100.0, tuple(parse_lost(text, gpus) for text in given.lost_gpu))


def _machine(given: argparse.Namespace) -> SimulatedMachine:
    if given.device:
        if not given.families:
            raise ConfigError("--device cpu needs a FAMILY that was profiled on cores: the paper's are on A100s")
        return world.cpu()
    return world.gpus(2 if given.gpus is None else given.gpus)


def _known(given: argparse.Namespace, machine: SimulatedMachine) -> list[Known]:
    confidence = parametric.parse(given.confidence)
    names = dict.fromkeys(given.families or families.names())
    return [families.load(name, machine.shapes, confidence) for name in names]


def _traces(given: argparse.Namespace) -> list[Trace]:
    hours = given.hours if given.hours is not None else (6.0 if given.quick else _HOURS)
    return world.traces(given.traces, given.start, hours)


def _day(given: argparse.Namespace) -> day.DayOptions:
    machine = _machine(given)
    return day.DayOptions(
        machine=machine,
        known=_known(given, machine),
        traces=_traces(given),
        load=loads.parse(given.load),
        rules=_rules(given),
        seeds=given.seeds,
    )


def _cases(given: argparse.Namespace) -> tuple[list[Case], list[RunInput]]:
    machine = _machine(given)
    load = loads.parse(given.load)
    named = _POLICIES if given.policies is None else tuple(filter(None, given.policies.split(",")))
    schemes = [world.scheme(name) for name in dict.fromkeys(["base", *named])]
    more = [world.scheme(name) for name in _MIXES] if given.policies is None else []
    played, known = _traces(given), _known(given, machine)
    worlds = [World(machine, item, _rules(given)) for item in known]
    cases = [
        Case(own, trace, load, scheme, seed)
        for own in worlds
        for trace in played
        for scheme in (*schemes, *(more if own.known.profile.cascade is not None else ()))
        for seed in range(given.seeds)
    ]
    return cases, world.inputs(worlds, played, load)


def _write(found: Results, folder: Path, *, png: bool) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data, report = folder / "results.json", folder / "report.html"
        data.write_bytes(msgspec.json.encode(found) + b"\n")
        report.write_text(page(found), encoding="utf-8")
        paths = [data, report]
        if png:
            from clover.simulate import pngs  # matplotlib is an extra, and slow to import

            paths += pngs.write(found, folder)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}") from error
    return paths
