"""The command `cluster`: its verbs, their arguments and exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from clover import terminal
from clover.cli import CommandParser
from clover.cli.progress import Progress
from clover.cluster import cluster_file
from clover.cluster.cli import simulating
from clover.cluster.cli.showing import show_plan, show_status
from clover.cluster.controller.records import ClusterLook, ClusterStatus
from clover.cluster.running import ClusterHandle, bring_up, take_down
from clover.errors import ClusterError, ConfigError
from clover.hints import program

DONE, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3
_LOG = logging.getLogger("clover")
_WIDTH = 80
"""Columns if standard output is no terminal."""

_ABOUT = (
    "Run a cluster: several nodes on Ray, in one region or more, behind one ingress, steered by the carbon intensity "
    "of every region."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser, verbs = _parser()
    try:
        given, unknown = parser.parse_known_args(argv)
        if unknown:
            verbs[given.verb].refuse(unknown)
    except SystemExit as stop:
        return int(stop.code or 0)
    run: Callable[[argparse.Namespace], int] = given.run
    try:
        return run(given)
    except ConfigError as error:
        return _fail(given, error, USAGE)
    except ClusterError as error:
        return _fail(given, error, UNREACHABLE)
    except OSError as error:  # the cluster's folder cannot be written, say
        why = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        return _fail(given, why, UNREACHABLE)
    except KeyboardInterrupt:
        return 130


def _fail(given: argparse.Namespace, error: object, code: int) -> int:
    sys.stdout.flush()
    print(f"clover cluster {given.verb}: {error}", file=sys.stderr)
    return code


def _parser() -> tuple[CommandParser, dict[str, CommandParser]]:
    parser = CommandParser(prog=f"{program()} cluster", description=_ABOUT)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, about: str, run: Callable[[argparse.Namespace], int], *, shows: bool = False) -> CommandParser:
        made: CommandParser = verbs.add_parser(name, help=about, description=f"{about[:1].upper()}{about[1:]}.")
        made.add_argument("file", metavar="CLUSTER.toml", help="the cluster file")
        made.set_defaults(run=run)
        if shows:
            made.add_argument("--json", action="store_true", help="print all figures as JSON")
        return made

    up = verb("up", "start the cluster, or apply a changed file to a running one", _up, shows=True)
    up.add_argument(
        "--address",
        default="",
        metavar="HOST:PORT",
        help="a running Ray cluster, or auto for the one on this machine [start Ray here]",
    )
    up.add_argument("--wait", type=float, default=120.0, metavar="S", help="seconds to wait for the first node [120]")
    verb("status", "show regions, nodes, flows, emissions and savings", _status, shows=True)
    verb("plan", "show what the controller would do now; change nothing", _plan, shows=True)
    drain = verb("drain", "send a node no new requests, until drain --off", _hold("drained"))
    release = verb("release", "drain a node and end its server, until release --off", _hold("released"))
    for one in (drain, release):
        one.add_argument("node", metavar="NODE", help="the node's name")
        one.add_argument("--off", action="store_true", help="let plans use the node again")
    simulated = verb(
        "simulate", "simulate a day of the cluster, compared with simpler ways to run it", _simulate, shows=True
    )
    simulating.add_arguments(simulated)
    down = verb("down", "end ingress, nodes and controller, after the nodes have answered what they accepted", _down)
    down.add_argument("--keep", action="store_true", help="end the controller only; nodes and ingress go on")
    return parser, verbs.choices


def _up(given: argparse.Namespace) -> int:
    file = cluster_file.read(given.file)
    if not given.wait >= 0.0:
        raise ConfigError(f"--wait takes seconds of 0 or more, not {given.wait:g}")
    handle = bring_up(file, given.address, say=_say)
    with Progress("cluster up", "waiting for the first node"):
        status = handle.wait_ready(given.wait)
    _print(given, status, lambda: show_status(status, file, _columns()))
    return DONE if any(node.phase == "ready" for node in status.nodes) else REFUSED


def _status(given: argparse.Namespace) -> int:
    file = cluster_file.read(given.file)
    with Progress("cluster status", "asking the controller"):
        status = ClusterHandle.attach(file).status()
    _print(given, status, lambda: show_status(status, file, _columns()))
    return DONE if status.controlling else REFUSED


def _plan(given: argparse.Namespace) -> int:
    file = cluster_file.read(given.file)
    with Progress("cluster plan", "asking the controller"):
        look = ClusterHandle.attach(file).plan()
    _print(given, look, lambda: show_plan(look, file, _columns()))
    return REFUSED if look.stopped or look.plan is None else DONE


def _hold(hold: str) -> Callable[[argparse.Namespace], int]:
    def run(given: argparse.Namespace) -> int:
        file = cluster_file.read(given.file)
        with Progress(f"cluster {given.verb}", "asking the controller"):
            ClusterHandle.attach(file).hold(given.node, "" if given.off else hold)
        undo = "" if given.off else f"; `{program()} cluster {given.verb} {given.file} {given.node} --off` ends that"
        print(f"{given.node} is {'left to plans' if given.off else f'to be {hold}'} from the next look on{undo}")
        return DONE

    return run


def _simulate(given: argparse.Namespace) -> int:
    level = _LOG.level
    _LOG.setLevel(logging.ERROR)  # what the controller warns of is in what it prints
    try:
        return simulating.run(given, _columns())
    finally:
        _LOG.setLevel(level)  # main() may have been called from a program that logs


def _down(given: argparse.Namespace) -> int:
    take_down(cluster_file.read(given.file), keep=given.keep, say=_say)
    return DONE


def _say(text: str) -> None:
    print(f"clover cluster: {text}", file=sys.stderr, flush=True)


def _print(given: argparse.Namespace, record: ClusterStatus | ClusterLook, show: Callable[[], str]) -> None:
    print(json.dumps(_plain(record), indent=1, ensure_ascii=False) if given.json else show())


def _plain(record: Any) -> Any:
    return msgspec.to_builtins(record)


def _columns() -> int:
    return terminal.console(_WIDTH).width
