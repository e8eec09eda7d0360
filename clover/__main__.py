"""`python -m clover COMMAND`: a thin dispatcher; every command has a `main(argv) -> exit code` of its own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from clover import __version__
from clover.errors import not_installed

COMMANDS = {
    "serve": ("clover.serve", "serve families of model variants"),
    "profile": ("clover.profiling.command", "measure a family on this machine, compile it ahead"),
    "ctl": ("clover.ctl", "look at and steer a running server"),
    "plan": ("clover.plan", "solve a problem file: the best configuration, with a bound"),
    "simulate": ("clover.simulate", "play carbon traces under policies, on a virtual clock"),
    "mig": ("clover.mig", "look at, set up and plan MIG layouts; run programs on an emulated box"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named command; its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"clover {__version__}")
        return 0
    try:
        known = COMMANDS.get(words[0])
        if known is None:
            schema = importlib.import_module("clover.settings.schema")
            hint = schema.did_you_mean(words[0], COMMANDS)
            print(f"clover: unknown command {words[0]}{hint}\n\n{_help()}", file=sys.stderr)
            return 2
        command = importlib.import_module(known[0])
    except ModuleNotFoundError as error:
        if not (line := not_installed(error)):
            raise
        print(f"clover: {line}", file=sys.stderr)
        return 3
    return int(command.main(words[1:]))


def _help() -> str:
    lines = [f"  {name:<10}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m clover COMMAND ...", "", *lines, "", "python -m clover COMMAND --help says more."]
    )


if __name__ == "__main__":
    raise SystemExit(main())
