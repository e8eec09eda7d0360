"""`clover COMMAND`, or `python -m clover COMMAND`: imports the one command that is named and calls its `main(argv)`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence

from clover._version import __version__
from clover.bounded_exit import bound_exit
from clover.errors import not_installed
from clover.hints import did_you_mean, importing, program, until_closed

Place = tuple[str, str]
"""The module whose `main(argv)` runs a command, and what the command is for.  Modules outside `clover.cli` and
`clover.serve` belong to wings: folders that an installation may lack."""

FAMILY: dict[str, Place] = {
    "list": ("clover.cli.families", "List the families that are installed, and how each is served"),
    "new": ("clover.importing.cli.new_family", "Write a family for a model that you have, and measure it"),
    "import": ("clover.importing.cli.import_triton", "Write families for the models of a Triton repository"),
    "manifest": ("clover.cli.manifest", "Write or check the digests of a family's files"),
}
COMMANDS: dict[str, Place | tuple[dict[str, Place], str]] = {
    "serve": ("clover.serve", "Start the inference server for one or more model families"),
    "profile": ("clover.cli.profile", "Measure accuracy, latency and energy of variants here"),
    "family": (FAMILY, "List families, make one of your model, write its digests"),
    "ctl": ("clover.cli.ctl", "Show what a running server does; change targets, pin variants"),
    "infer": ("clover.cli.infer", "Ask a model of a running server with files or text"),
    "batch": ("clover.cli.batch", "Have a file of rows answered in the grid's clean hours"),
    "carbon": ("clover.cli.carbon", "Show the carbon intensity of grids, now and to come, live"),
    "report": ("clover.report.cli", "Report emissions and savings of a time, from the ledger"),
    "doctor": ("clover.cli.doctor", "Check this machine: what works, what would, and how"),
    "mig": ("clover.cli.mig", "List and change MIG instances of GPUs; emulate GPUs"),
    "simulate": ("clover.research.cli.simulate", "Estimate savings on carbon data, without starting a server"),
    "plan": ("clover.research.cli.plan", "Solve a problem file, and bound what any plan could reach"),
    "cluster": ("clover.cluster.cli", "Run several nodes on Ray, steered by every grid"),
}


_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named command and return its exit code."""
    return until_closed(lambda: _run(list(sys.argv[1:] if argv is None else argv), COMMANDS, ""))


def _run(words: list[str], table: Mapping[str, tuple[str | dict[str, Place], str]], before: str) -> int:
    """Run the command of `table` that `words` begin with; `before` is what the user typed before them, as "family "."""
    if not words or words[0] in ("-h", "--help"):
        print(_help(table, before))
        return 0 if words else 2
    if words[0] == "--version" and not before:
        print(f"clover {__version__}")
        return 0
    name = f"{before}{words[0]}"
    if words[0] not in table:
        hint = did_you_mean(words[0], installed(table))
        print(f"clover: unknown command {name}{hint}\n\n{_help(table, before)}", file=sys.stderr)
        return 2
    place, _ = table[words[0]]
    if isinstance(place, dict):
        return _run(words[1:], place, f"{name} ")
    if name == "cluster":
        # Plans are made of small matrices, which more threads only slow down, and others have the cores to serve.
        # BLAS starts its threads when NumPy is imported; Ray sets the same for its actors.
        for variable in _ONE_THREAD:
            os.environ.setdefault(variable, "1")
    try:
        with importing():
            command = importlib.import_module(place)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            print(f"clover: this installation is without {error.name}, which has `{name}`", file=sys.stderr)
            return 2
        if not (line := not_installed(error)):
            raise
        print(f"clover: {line}", file=sys.stderr)
        return 3
    return int(command.main(words[1:]))


def installed(table: Mapping[str, tuple[str | dict[str, Place], str]]) -> dict[str, str]:
    """Return what the commands of this installation are for: without the commands of wings that it lacks."""
    return {name: about for name, (place, about) in table.items() if isinstance(place, dict) or _is_here(place)}


def _is_here(module: str) -> bool:
    wing = ".".join(module.split(".")[:2])  # to look for what is in it would import it
    return importlib.util.find_spec(wing) is not None


def _help(table: Mapping[str, tuple[str | dict[str, Place], str]], before: str) -> str:
    lines = [f"  {name:<10}{about}" for name, about in installed(table).items()]
    called = f"{program()} {before}"
    about = (
        []
        if before
        else ["Clover serves models with as little carbon as an accuracy floor and a", "latency target allow.", ""]
    )
    version = [] if before else [f"`{called}--version` prints the version."]
    return "\n".join(
        [
            f"usage: {called}COMMAND ...",
            "",
            *about,
            *lines,
            "",
            f"`{called}COMMAND --help` lists the options of a command.",
            *version,
        ]
    )


def script() -> int:
    """Run the named command as a process of its own, which ends after it whatever hangs; return its exit code."""
    code = main()
    bound_exit(code)
    return code


if __name__ == "__main__":
    raise SystemExit(script())
