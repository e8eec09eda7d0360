"""The command `plan`: its arguments, what it prints and writes."""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clover import terminal
from clover.cli import CommandParser
from clover.cli.progress import Progress
from clover.errors import ConfigError
from clover.hints import program
from clover.research.problem.file import ProblemFile, parse
from clover.research.problem.solve import Infeasible, Solution, solve

DONE, USAGE, INFEASIBLE = 0, 2, 3
_WIDTH = 120
"""Columns if standard output is no terminal."""

_ABOUT = """\
Find the configuration with the highest objective for a problem file (`clover-problem/1`), and an upper bound of what
any configuration can reach.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        given = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        if not 0.0 < given.time_limit < math.inf:
            raise ConfigError(f"--time-limit is in seconds above 0, and finite, not {given.time_limit:g}")
        if given.seed < 0:
            raise ConfigError(f"--seed is 0 or more, not {given.seed}")
        problem = _read(given.problem)
        with Progress("plan", f"solving {given.problem}"):
            answer = solve(
                problem,
                seed=given.seed,
                time_limit_s=given.time_limit,
                highs=not given.no_highs,
                verification=given.verify,
            )
        document = msgspec.json.format(msgspec.json.encode(answer), indent=1).decode() + "\n"
        if given.output:
            _write(given.output, document)
        if given.json:
            print(document, end="")
        else:
            show(problem, answer, terminal.console(_WIDTH))
        sys.stdout.flush()
        if answer.verified is False:
            _warn(f"NOT VERIFIED: {answer.why}")
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except Infeasible as error:
        return _fail(f"infeasible: {error}", INFEASIBLE)
    except KeyboardInterrupt:
        return 130
    return DONE


def _fail(text: str, code: int) -> int:
    sys.stdout.flush()
    print(f"clover plan: {text}", file=sys.stderr)
    return code


def _warn(text: str) -> None:
    print(f"clover plan: warning: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog=f"{program()} plan", description=_ABOUT)
    parser.add_argument("problem", metavar="PROBLEM.json", help="problem file; - reads standard input")
    parser.add_argument("-o", "--output", metavar="ANSWER.json", default="", help="write the answer there as JSON")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON instead of a table")
    parser.add_argument("--time-limit", metavar="S", type=float, default=20.0, help="seconds that it may take [20]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the annealing [0]")
    parser.add_argument(
        "--verify",
        choices=("report", "strict", "off"),
        default="report",
        help="report: simulate the answer and say whether it holds; strict: give only an answer that the simulation "
        "accepts; off: do not simulate [report]",
    )
    parser.add_argument(
        "--no-highs", action="store_true", help="do not use HiGHS for the bound, even if it is installed"
    )
    return parser


def _read(name: str) -> ProblemFile:
    try:
        text = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from error
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _write(name: str, document: str) -> None:
    try:
        Path(name).write_text(document)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from error


def show(problem: ProblemFile, answer: Solution, console: Console) -> None:
    """Print the answer for people: the groups, what they do together, and how good that can be called."""
    sheet = Table(box=None, pad_edge=False)
    sheet.add_column("group")
    for head in ("workers", "share", "service ms", "J/request", "accuracy %"):
        sheet.add_column(head, justify="right")
    for group in problem.groups:
        if number := answer.config.get(group.name):
            sheet.add_row(
                Text(group.name),
                str(number),
                f"{answer.shares[group.name]:.2%}",
                f"{group.service_ms:.4g}",
                f"{group.energy_j:.4g}",
                f"{group.accuracy:.4g}",
            )
    gpus = f"{problem.n_gpus} GPU{'s' if problem.n_gpus > 1 else ''}"
    name = f"{problem.id}: " if problem.id else ""
    _say(console, f"{name}{gpus}, {problem.arrival_rate:.6g} requests/s, model {problem.model}\n")
    console.print(sheet)
    _say(console, "")
    for head, text in _lines(problem, answer):
        _say(console, textwrap.fill(f"{head:<10} {text}", console.width, subsequent_indent=" " * 11))


def _lines(problem: ProblemFile, answer: Solution) -> list[tuple[str, str]]:
    base = problem.base
    carbon = 1.0 - answer.energy_j_per_request * problem.carbon_intensity / (
        base.energy_j_per_request * problem.ci_base
    )
    best = f"; no configuration exceeds {answer.bound:.8f}" if answer.bound is not None else ""
    scale = "f" if problem.co2opt_f is None else "the distance from CO2OPT's f to the best f"
    gap = "" if answer.gap is None else f"at most {max(answer.gap, 0.0):.2%} of {scale} is missing"
    return [
        ("f", f"{answer.f:.8f}{best}"),
        *([("gap", gap)] if gap else []),
        (f"p{100.0 * problem.quantile:g}", f"{answer.p95_ms:.4g} ms, SLA {problem.sla_ms:.4g} ms"),
        ("accuracy", f"{answer.accuracy:.4f} % (base {base.accuracy:.4f} %)"),
        (
            "energy",
            f"{answer.energy_j_per_request:.5g} J/request with idle power; carbon {carbon:.1%} below the base's",
        ),
        ("found by", f"{answer.solver}, {answer.evaluations} evaluations, {answer.seconds:.2f} s"),
        ("bound by", answer.proof),
        *_verification(answer),
    ]


def _verification(answer: Solution) -> list[tuple[str, str]]:
    if answer.verified is None:
        return [("verified", "no: not asked for")]
    lines = [] if answer.verified else [("verified", f"NO: {answer.why}")]
    if answer.verified_p95_ms is not None:
        latency = f"{answer.verified_p95_ms:.4g} ms (+-{answer.verified_p95_half_width_ms:.2g})"
        figures = f"{latency} and f {answer.verified_f:.8f} in {answer.verified_requests:,} requests"
        lines.append(("verified", f"yes: {figures}") if answer.verified else ("simulated", figures))
    if answer.verified and answer.rejected:
        best = f"the best has f {answer.rejected_f:.8f}: {answer.why}"
        lines.append(("instead of", f"{answer.rejected} that the simulation rejects; {best}"))
    return lines


def _say(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)
