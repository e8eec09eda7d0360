"""The command `mig`: verbs, their arguments, their exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from clover import devices, terminal
from clover.cache import cache_folder
from clover.cli import CommandParser, CommandRefused
from clover.cli.mig import applying, files, listing
from clover.cli.mig.box import GpuBox, opened
from clover.cli.mig.changes import Changes, compare
from clover.cli.mig.drawing import strokes
from clover.cli.mig.state import HIDDEN, GpuState
from clover.cli.mig.words import Ask
from clover.errors import ConfigError, DeviceError
from clover.hints import program

DONE, DIFFERS, USAGE, UNREACHABLE = 0, 1, 2, 3
_WIDTH = 140
"""Columns if standard output is no terminal."""
_HELP_COLUMNS = 78

EMULATE_ABOUT = "make emulated GPUs, or run a program on them"

_EXAMPLES = """\
examples:
  {program} mig list
  {program} mig export --name today > layouts.toml
  {program} mig apply layouts.toml --config today --dry-run
  {program} mig emulate a100-40gb:2 -- {program} mig list
"""


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run the command and return its exit code."""
    environment = os.environ if environ is None else environ
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["emulate"]:
        return _emulate(words[1:], environment)
    words, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, None)
    parser, verbs = _parser(environment)
    try:
        given, unknown = parser.parse_known_args(words)
        if unknown:
            verbs[given.verb].refuse(unknown)
        if command is not None:
            verbs[given.verb].error("only emulate takes a command after --")
    except SystemExit as stop:
        return int(stop.code or 0)
    handler: Callable[[argparse.Namespace], int] = given.handler
    try:
        return handler(given)
    except ConfigError as error:
        return _fail(given, error, USAGE)
    except CommandRefused as error:
        return _fail(given, error, DIFFERS)
    except DeviceError as error:
        return _fail(given, error, UNREACHABLE)
    except KeyboardInterrupt:
        return 130


def _emulate(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the verb of the wing that emulates GPUs, which an installation may lack."""
    try:
        wing = devices.emulation("cli")
    except ConfigError as error:
        print(f"clover mig emulate: {error}", file=sys.stderr)
        return USAGE
    return int(wing.main(words, environ))


def _fail(given: argparse.Namespace, error: Exception, code: int) -> int:
    sys.stdout.flush()
    print(f"clover mig {given.verb}: {error}", file=sys.stderr)
    return code


# --- the command line ---------------------------------------------------------------------------------------------


def _parser(environ: Mapping[str, str]) -> tuple[CommandParser, dict[str, CommandParser]]:
    about_all = "List and set up how the GPUs of a machine are split into MIG instances; the GPUs may be emulated."
    parser = CommandParser(
        prog=f"{program()} mig",
        description=textwrap.fill(about_all, _HELP_COLUMNS),
        epilog=_EXAMPLES.format(program=program()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    box = CommandParser(add_help=False)
    box.add_argument(
        "--box",
        metavar="FILE",
        default=environ.get(devices.EMULATED_STATE, ""),
        help=f"act on the emulated GPUs of this state file [{devices.EMULATED_STATE}, or this machine]",
    )
    box.add_argument(
        "--cache-dir",
        metavar="DIR",
        default=environ.get("CLOVER_CACHE_DIR", ""),
        help="folder in which the server keeps which instances are its own [CLOVER_CACHE_DIR, or the server's default]",
    )
    shown = CommandParser(add_help=False)
    shown.add_argument("--json", action="store_true", help="print JSON")
    layout = CommandParser(add_help=False)
    layout.add_argument("file", metavar="FILE|-", help="layout file, TOML or JSON; - reads standard input")
    layout.add_argument("--config", metavar="NAME", default="", help="which of its configurations, if it has several")

    def verb(
        name: str, about: str, handler: Callable[[argparse.Namespace], int], *parents: CommandParser
    ) -> CommandParser:
        made = verbs.add_parser(name, help=about, description=about[:1].upper() + about[1:] + ".", parents=parents)
        made.set_defaults(handler=handler)
        return made

    verb("list", "show GPUs, MIG mode, instances with their owner, and the room that is left", _list, box, shown)
    export = verb("export", "print the present layouts as a layout file", _export, box, shown)
    export.add_argument("--name", default="now", help="name of the configuration [now]")
    about = "exit with 0 if the GPUs match a configuration, else with 1 and the differences"
    verb("assert", about, _assert, box, shown, layout)
    apply = verb("apply", "reach a configuration with the fewest changes", _apply, box, shown, layout)
    apply.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    apply.add_argument("--yes", action="store_true", help="do not ask before changing")
    apply.add_argument("--mode-changes", action="store_true", help="also turn MIG mode on or off")
    apply.add_argument("--force-foreign", action="store_true", help="also remove instances that Clover did not make")
    verbs.add_parser("emulate", help=EMULATE_ABOUT)
    return parser, verbs.choices


def _console() -> Console:
    return terminal.console(_WIDTH)


def _print(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _opened(given: argparse.Namespace) -> Any:
    return opened(given.box, cache_folder(given.cache_dir))


# --- the verbs --------------------------------------------------------------------------------------------------------


def _list(given: argparse.Namespace) -> int:
    with _opened(given) as box:
        gpus = box.look()
    if given.json:
        _print({"emulated": box.emulated, "gpus": [gpu.plain() for gpu in gpus]})
    else:
        listing.show(gpus, _console(), strokes(), emulated=box.emulated)
    return DONE


def _seen(box: GpuBox) -> tuple[GpuState, ...]:
    """Return the GPUs with all their instances.  Raises DeviceError if these may not be read."""
    gpus = box.look()
    if any(gpu.hidden for gpu in gpus):
        raise DeviceError(HIDDEN)
    return gpus


def _export(given: argparse.Namespace) -> int:
    if not given.name or not given.name.isprintable():
        raise ConfigError("--name needs printable characters")
    with _opened(given) as box:
        gpus = _seen(box)
    config, comments = _present(gpus)
    if not config:
        raise CommandRefused("no GPU of the box has MIG: there is nothing to export")
    if given.json:
        _print(files.as_json(given.name, config))
    else:
        print(files.as_toml(given.name, config, comments), end="")
    return DONE


def _present(gpus: Sequence[GpuState]) -> tuple[files.Config, list[str]]:
    groups: dict[tuple[bool, tuple[Ask, ...]], list[int]] = {}
    comments = []
    for gpu in gpus:
        if gpu.lost or gpu.error or not gpu.supported:
            why = "lost" if gpu.lost else gpu.error or "no MIG"
            comments.append(f"GPU {gpu.index}: {gpu.product}, {why}: left out")
            continue
        comments.append(f"GPU {gpu.index}: {gpu.product}, {gpu.uuid}")
        asks = tuple(Ask(profile=item.placement.profile, start=item.placement.start) for item in gpu.instances)
        groups.setdefault((gpu.enabled, asks), []).append(gpu.index)
    return tuple(
        files.ConfigGroup(devices=tuple(at), mig=mig, asks=asks) for (mig, asks), at in groups.items()
    ), comments


def _changes(gpus: Sequence[GpuState], config: files.Config) -> list[Changes]:
    return [compare(gpus[index], group) for index, group in sorted(files.of_gpus(config, len(gpus)).items())]


def _assert(given: argparse.Namespace) -> int:
    name, config = files.choose(files.read(given.file), given.config)
    with _opened(given) as box:
        changes = _changes(_seen(box), config)
    differences = [line for item in changes for line in item.differences()]
    if given.json:
        _print({"config": name, "matches": not differences, "differences": differences})
    elif differences:
        print("\n".join(differences))
    else:
        print(f"the box matches {name}")
    return DIFFERS if differences else DONE


def _apply(given: argparse.Namespace) -> int:
    name, config = files.choose(files.read(given.file), given.config)
    with _opened(given) as box:
        changes = _changes(_seen(box), config)
        allowed = {"mode_changes": given.mode_changes, "force_foreign": given.force_foreign}
        refusals = [line for item in changes for line in item.refusals(**allowed)]
        todo = any(not item.none for item in changes)
        answer: dict[str, Any] = {"config": name, "steps": applying.steps_of(changes), "matches": not todo}
        if refusals or given.dry_run or not todo:
            if given.json:
                _print(answer | {"refused": refusals, "done": [], "waiting": [], "error": ""})
            else:
                print("\n".join(applying.plan_lines(changes)) if todo else f"nothing to do: the box matches {name}")
            if refusals:
                raise CommandRefused("refused, nothing was changed:\n  " + "\n  ".join(refusals))
            if todo and not given.json:
                print("dry run: nothing was changed")
            return DONE
        _confirm(given, changes)
        return _carry_out(given, box, answer, changes)


def _confirm(given: argparse.Namespace, changes: Sequence[Changes]) -> None:
    if given.yes:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("standard input is no terminal to ask on: give --yes to do this, or --dry-run to look only")
    print("\n".join(applying.plan_lines(changes)))
    try:
        answer = input("do this? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandRefused("nothing was changed")


def _carry_out(given: argparse.Namespace, box: GpuBox, answer: dict[str, Any], changes: Sequence[Changes]) -> int:
    done: list[str] = []

    def say(line: str) -> None:
        done.append(line)
        if not given.json:
            print(line, flush=True)

    error = ""
    waiting: list[str] = []
    try:
        waiting = applying.carry_out(box, changes, say)
    except DeviceError as failed:
        error = str(failed)
    if given.json:
        reached = not (error or waiting)
        _print(answer | {"matches": reached, "refused": [], "done": done, "waiting": waiting, "error": error})
    if error:
        after = "what was done stands; the same command takes up from there" if done else "nothing was changed"
        raise CommandRefused(f"{error} ({after})")
    if waiting:
        raise CommandRefused("\n  ".join(["not reached yet:", *waiting]))
    if not given.json:
        print(f"the box matches {answer['config']}")
    return DONE
