"""The command `simulate`: what it plays, prints and writes (its arguments: `arguments`)."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import msgspec
from rich.console import Console

from clover import settings, terminal
from clover.carbon.trace import TraceSource
from clover.cli import profile
from clover.cli.progress import Progress
from clover.energy import cpu_power
from clover.errors import BadRequest, CloverError, ConfigError
from clover.http.batches import parse_window
from clover.planning.budget.forecast import HOUR_S
from clover.research.cli.simulate.arguments import HOURS, MIXES, POLICIES, SCENARIO_G_PER_KWH, parser
from clover.research.simulate import day, families, forecasts, loads, machine, minutes, parametric, waiting, world
from clover.research.simulate.day import Day
from clover.research.simulate.families import Known
from clover.research.simulate.page import page
from clover.research.simulate.paper import SEEDS, Paper, PaperOptions
from clover.research.simulate.records import Results, Run, RunInput
from clover.research.simulate.surprises import Surprises, parse_lost
from clover.research.simulate.tables import WaitingTrace, show, show_machine, show_minutes, show_waiting
from clover.research.simulate.work import execute, results
from clover.research.simulate.world import Case, Rules, SimulatedMachine, Trace, World

DONE, USAGE, FAILED = 0, 2, 3
_WIDTH = 205
"""Columns if standard output is no terminal."""
_MOST_RUNS = 5_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        given = parser().parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    log = logging.getLogger("clover")
    level = log.level
    log.setLevel(logging.ERROR)  # the ledger has what the controller warns of
    console = terminal.console(_WIDTH)
    try:
        if given.machine:
            _days(given, console)
            return DONE
        if given.minutes is not None:
            _minutes(given, words, console)
            return DONE
        if given.waiting_share is not None:
            _waiting(given, console)
            return DONE
        result = _simulate(given, words)
        show(result, console)
        if given.output:
            for path in _write(result, Path(given.output), png=given.png):
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


def _simulate(given: argparse.Namespace, words: Sequence[str]) -> Results:
    began = time.monotonic()
    if given.seeds is None:
        given.seeds = SEEDS if given.scenario == "paper" and not given.quick else 1
    _check(given)
    done = total = 0
    with Progress("simulate", "reading profiles and traces") as progress:

        def on_progress(own: World, trace: Trace, number: int) -> None:
            nonlocal done
            done += number
            progress.note(f"playing {own.known.profile.family}, {trace.name}", done, total)

        labels: tuple[str, ...] = ()
        if given.scenario == "day":
            played = Day(_day(given))
            total = played.count
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
            total = scenario.count
            runs = scenario.play(on_progress, given.jobs)
            inputs, labels = scenario.inputs, scenario.labels
        else:
            cases, inputs = _cases(given)
            if len(cases) > _MOST_RUNS:
                raise ConfigError(
                    f"these are {len(cases)} runs, more than {_MOST_RUNS}: fewer traces, policies or seeds"
                )
            total = len(cases)
            runs = execute(cases, on_progress)
    return _results(given, words, runs, inputs, (*labels, *_surprises(given).labels), began)


def _minutes(given: argparse.Namespace, words: Sequence[str], console: Console) -> None:
    """Play minutes row by row, print them, and write them where a folder is given."""
    _check(given)
    if given.scenario:
        raise ConfigError("--minutes plays what is given, and no --scenario")
    given.seeds = given.seeds or 1
    cases, inputs = _cases(given)
    played = [(case, relief) for case in cases for relief in dict.fromkeys(("", given.relief))]
    results = []
    with Progress("simulate", "playing minutes") as progress:
        for done, (case, relief) in enumerate(played):
            progress.note(f"playing {case.world.known.profile.family}, {case.scheme.name}", done, len(played))
            results.append(minutes.play(case, seconds=60.0 * given.minutes, gust=given.gust, relief=relief))
    show_minutes(results, inputs, console)
    if given.output:
        path = Path(given.output) / "minutes.json"
        document = {"command": ["python", "-m", "clover", "simulate", *words], "inputs": inputs, "runs": results}
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
        console.print(f"written: {path}", soft_wrap=True)


def _days(given: argparse.Namespace, console: Console) -> None:
    """Print what the whole machine emits in a day, for each family and load."""
    if given.gpus is None:
        given.device = given.device or "cpu"
    _check(given)
    own = _machine(given)
    trace, *others = _traces(given)
    if others:
        raise ConfigError(f"--machine plays one grid, not {1 + len(others)}: give one trace")
    for name in given.families:
        known = _find_profiled(given, own, name)
        alone = World(own, known, replace(_rules(given), slo_ms=None))
        with Progress("simulate", f"playing days of {known.profile.family}"):
            days = [machine.days(alone, trace, load, given.slo_ms) for load in machine.loads_of(alone, given.rate)]
        power = cpu_power(settings.load([], os.environ).config.energy) if given.device == "cpu" else None
        if power is not None and known.method != "modelled":
            power = replace(power, core_range=(1.0, 1.0))
        about = [f"{known.profile.family}: {alone.input.about}", f"profiled {known.profile.made_at[:10]}"]
        about += [f"grid {trace.name}, {trace.about.about}", f"PUE {given.pue:g}"]
        about += [note.partition(":")[0] for note in known.profile.notes if note.startswith("others used")]
        if not known.profile.turn_j:
            about.append("the front end was not profiled, and counts as nothing")
        show_machine(days, power, "; ".join(about), console)


def _waiting(given: argparse.Namespace, console: Console) -> None:
    """Print what rows that may wait emit: at once, as planned, and with all intensities known."""
    _check(given)
    load = loads.parse(given.load)
    if load.kind == "file" or load.per_s:
        raise ConfigError("--waiting-share takes a --load in parts of the machine's capacity, as constant:0.6")
    try:
        window_s = parse_window(given.within)
    except BadRequest:
        raise ConfigError(f"--within is a time from 15m to 7d, as 24h, not {given.within!r}") from None
    found = []
    for trace in _traces(given):
        source, end_s = trace.source, trace.start_s + trace.hours * HOUR_S
        past_s, last_s = trace.start_s - waiting.PAST_H * HOUR_S, end_s + window_s + HOUR_S
        if isinstance(source, TraceSource):  # which begins and ends somewhere
            past_s, last_s = max(past_s, source.start_s), min(last_s, source.end_s)
        hours = math.floor((min(end_s, last_s - window_s - HOUR_S) - trace.start_s) / HOUR_S)
        if hours < 1:
            raise ConfigError(f"{trace.name} ends before rows could wait {given.within}: an earlier --start")
        with Progress("simulate", f"playing {trace.name}"):
            grid = waiting.HourlyGrid(*asyncio.run(waiting.hourly(source, past_s, last_s)))
            jobs, spare = waiting.waiting_rows(load, given.waiting_share, window_s, trace.start_s, hours)
            at_once = waiting.play_at_once(jobs, grid, spare=spare)
            planned = waiting.play(jobs, grid, grid.expected, spare=spare)
            known = waiting.play(jobs, grid, grid.known, spare=spare, careful=False)
        found.append(WaitingTrace(trace.name, hours, jobs, at_once, planned, known))
    show_waiting(found, console)


def _find_profiled(given: argparse.Namespace, own: SimulatedMachine, name: str) -> Known:
    """Return the profile of a family, which is measured quickly if there is none; ConfigError if it cannot be."""
    confidence = parametric.parse(given.confidence)
    try:
        return families.load(name, own.shapes, confidence)
    except ConfigError:
        if name in families.names() or name.endswith(".json") or not given.device:
            raise
        with redirect_stdout(sys.stderr):
            code = profile.main([name, "--quick", "--device", given.device])
        logging.getLogger("clover").setLevel(logging.ERROR)  # which the command has set
        if code:
            raise ConfigError(f"{name} has no profile, and none could be measured") from None
    return families.load(name, own.shapes, confidence)


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
        ("accuracy_margin", 0.0, 100.0),
        ("slo_ms", 1e-3, 1e7),
        ("look_s", 1.0, 86400.0),
        ("load_s", 0.0, 1e5),
        ("pue", 1.0, 10.0),
        ("minutes", 0.5, 24 * 60.0),
        ("gust", 1.0, 100.0),
        ("waiting_share", 0.001, 1.0),
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
    if given.device == "cpu" and given.asleep is not None:
        raise ConfigError("--asleep is for GPUs: cores of one machine do not sleep by themselves")
    if given.device and given.no_mig:
        raise ConfigError("--no-mig is for the GPUs of --gpus")
    if given.scenario and (given.no_mig or given.resident != "off"):
        raise ConfigError("--no-mig and --resident play what is given, and no --scenario")
    if given.device and given.gpus is not None:
        raise ConfigError("--gpus and --device exclude each other")
    if given.rate is not None and not given.machine:
        raise ConfigError("--rate is for --machine; --load constant:R/s elsewhere")
    if given.machine and (given.scenario or given.minutes is not None or given.output):
        raise ConfigError("--machine prints a table, without --scenario, --minutes and -o")
    if given.waiting_share is not None and (
        given.machine or given.scenario or given.minutes is not None or given.output or given.families
    ):
        raise ConfigError("--waiting-share prints a table, without FAMILY, --machine, --scenario, --minutes and -o")
    if given.machine and not given.families:
        raise ConfigError("--machine needs a FAMILY")
    if given.minutes is not None and (given.misprofiled or given.lost_gpu):
        raise ConfigError("--misprofiled and --lost-gpu are for hours in steps: leave out --minutes")
    if given.minutes is None and (given.relief or given.gust != 1.0):
        raise ConfigError("--gust and --relief are seen row by row: give --minutes")
    if given.png and not given.output:
        raise ConfigError("--png writes beside the report: give a folder with -o")
    if given.png and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "--png needs matplotlib: pip install 'clover-inference[analysis]' (report.html needs nothing)"
        )


def _rules(given: argparse.Namespace) -> Rules:
    reference, waits = given.reference_g_per_kwh, given.waits
    if given.scenario:
        reference, waits = reference or SCENARIO_G_PER_KWH, bool(waits)
    return Rules(
        form=given.objective,
        lam=given.lam,
        reference_g_per_kwh=reference,
        waits=waits,
        slo_ms=given.slo_ms,
        accuracy_floor=given.accuracy_floor,
        accuracy_margin=given.accuracy_margin,
        look_s=given.look_s,
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
    if given.device == "cpu" and given.lost_gpu:
        raise ConfigError("--lost-gpu is for GPUs: cores are not lost")
    gpus = (2 if given.gpus is None else given.gpus) if given.scenario != "paper" else (given.gpus or 10)
    return Surprises(given.misprofiled / 100.0, tuple(parse_lost(text, gpus) for text in given.lost_gpu))


def _machine(given: argparse.Namespace) -> SimulatedMachine:
    if given.device:
        if not given.families:
            raise ConfigError("--device needs a FAMILY that was profiled on it: the paper's are on A100s")
        if given.device != "cpu":
            return world.emulated(given.device)
        return world.cpu(settings.load([], os.environ).config.energy)
    return world.gpus(2 if given.gpus is None else given.gpus, whole=given.no_mig)


def _find_families(given: argparse.Namespace, machine: SimulatedMachine) -> list[Known]:
    confidence = parametric.parse(given.confidence)
    names = dict.fromkeys(given.families or families.names())
    return [families.load(name, machine.shapes, confidence) for name in names]


def _traces(given: argparse.Namespace) -> list[Trace]:
    hours = given.hours if given.hours is not None else (6.0 if given.quick else HOURS)
    return world.traces(given.traces, given.start, hours)


def _day(given: argparse.Namespace) -> day.DayOptions:
    machine = _machine(given)
    return day.DayOptions(
        machine=machine,
        known=_find_families(given, machine),
        traces=_traces(given),
        load=loads.parse(given.load),
        rules=_rules(given),
        seeds=given.seeds,
    )


def _cases(given: argparse.Namespace) -> tuple[list[Case], list[RunInput]]:
    machine = _machine(given)
    load = loads.parse(given.load)
    named = POLICIES if given.policies is None else tuple(filter(None, given.policies.split(",")))
    schemes = [world.scheme(name) for name in dict.fromkeys(["base", *named])]
    more = [world.scheme(name) for name in MIXES] if given.policies is None else []
    if given.resident == "auto":
        schemes, more = _and_shared(schemes), _and_shared(more)
    played, known = _traces(given), _find_families(given, machine)
    worlds = [World(machine, item, _rules(given)) for item in known]
    cases = [
        Case(own, trace, load, scheme, seed)
        for own in worlds
        for trace in played
        for scheme in (*schemes, *(more if own.known.profile.cascade is not None else ()))
        for seed in range(given.seeds)
    ]
    return cases, world.inputs(worlds, played, load)


def _and_shared(schemes: Sequence[world.Scheme]) -> list[world.Scheme]:
    """Return `schemes`, each whose plans may share workers followed by the one that does."""
    with_shared = []
    for scheme in schemes:
        with_shared.append(scheme)
        if scheme.policy in world.CHAINING and not scheme.resident:
            name, at, lam = scheme.name.partition("@")
            with_shared.append(world.scheme(f"{name}+{world.SHARED}{at}{lam}"))
    return list(dict.fromkeys(with_shared))


def _write(found: Results, folder: Path, *, png: bool) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data, report = folder / "results.json", folder / "report.html"
        data.write_bytes(msgspec.json.encode(found) + b"\n")
        report.write_text(page(found), encoding="utf-8")
        paths = [data, report]
        if png:
            from clover.research.simulate import pngs  # matplotlib is an extra, and slow to import

            paths += pngs.write(found, folder)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}") from error
    return paths
