"""`python -m clover.completion bash`, or zsh: print a script that completes commands, options and shipped families.

shtab writes the script from the parsers of all installed commands.  At a Tab the shell starts no Python.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args
from unittest.mock import patch

from clover.__main__ import COMMANDS, installed
from clover.cli import CommandParser, profile
from clover.cli.doctor import command as doctor
from clover.families.find import shipped
from clover.serve import command as serve
from clover.settings.command_line import CONFIG, Option
from clover.settings.schema import FLAGS

_OPTIONS: dict[str, Sequence[Option]] = {
    "clover.serve": serve.OPTIONS, "clover.cli.profile": profile.OPTIONS, "clover.cli.doctor": doctor.OPTIONS
}  # fmt: skip
"""Of the commands that take settings: they parse them without argparse."""
_FAMILIES = ("family", "families", "model")
"""Positional arguments that are families."""


def main(argv: Sequence[str]) -> int:
    """Print the script for a shell and return the exit code."""
    import shtab

    usage = CommandParser(prog="python -m clover.completion", description="Print a script of completions.")
    usage.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    shell = usage.parse_args(argv).shell
    root = argparse.ArgumentParser(prog="clover")
    _add(root, COMMANDS)
    print(shtab.complete(root, shell))
    return 0


def _add(parser: argparse.ArgumentParser, table: Mapping[str, tuple[Any, str]]) -> None:
    verbs = parser.add_subparsers()
    for name, about in installed(table).items():
        place = table[name][0]
        if isinstance(place, dict):
            _add(verbs.add_parser(name, help=about), place)
            continue
        parent = _settings_parser(_OPTIONS[place]) if place in _OPTIONS else _parser_of(place)
        for action in verbs.add_parser(name, help=about, parents=[parent], add_help=False)._actions:
            if action.dest in _FAMILIES and not action.option_strings:
                action.choices = shipped()


def _settings_parser(options: Sequence[Option]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(conflict_handler="resolve")  # an option of the command goes before a setting
    parser.add_argument("family", nargs="*")
    for flag, setting in FLAGS.items():
        words = [word for word in get_args(setting.base) if isinstance(word, str)]
        action = argparse.BooleanOptionalAction if setting.boolean else "store"
        parser.add_argument(flag, help=setting.help.replace("%", "%%"), action=action).choices = words or None
    for option in (*options, CONFIG):
        parser.add_argument(option.flag, help=option.help, action="store" if option.metavar else "store_true")
    return parser


def _parser_of(module: str) -> argparse.ArgumentParser:
    """Return the parser of a command, which is run until it parses."""
    caught = patch.object(CommandParser, "parse_known_args", autospec=True, side_effect=SystemExit)
    with caught as parse, suppress(SystemExit):
        importlib.import_module(module).main([])
    parser: argparse.ArgumentParser = parse.call_args.args[0]
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
