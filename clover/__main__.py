"""`clover COMMAND`, or `python -m clover COMMAND`: imports the one command that is named and calls its `main(argv)`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

from clover._version import __version__
from clover.bounded_exit import bound_exit
from clover.errors import not_installed
from clover.hints import did_you_mean, importing, program, until_closed

# Those outside `clover.cli` and `clover.serve` are of wings: folders that an installation may lack.
COMMANDS = {
    "serve": ("clover.serve", "Start the inference server for one or more model families"),
    "profile": ("clover.cli.profile", "Measure accuracy, latency and energy of variants here"),
    "new-family": ("clover.importing.cli.new_family", "Write a family for a model that you have, and measure it"),
    "import-triton": ("clover.importing.cli.import_triton", "Write families for the models of a Triton repository"),
    "families": ("clover.cli.families", "List the families that are installed, and what each needs"),
    "ctl": ("clover.cli.ctl", "Show what a running server does; change targets, pin variants"),
    "infer": ("clover.cli.infer", "Ask a model of a running server with files or text"),
    "simulate": ("clover.research.cli.simulate", "Estimate savings on carbon data, without starting a server"),
    "plan": ("clover.research.cli.plan", "Solve a problem file, and bound what any plan could reach"),
    "carbon": ("clover.cli.carbon", "Show the carbon intensity of grids, now and to come, live"),
    "report": ("clover.report.cli", "Say what was emitted and saved over a time, from the ledger"),
    "doctor": ("clover.cli.doctor", "Check this machine: what works, what would, and how"),
    "dashboards": ("clover.cli.dashboards", "Write a Grafana dashboard and Prometheus rules as files"),
    "cluster": ("clover.cluster.cli", "Run several nodes on Ray, steered by every grid"),
    "mig": ("clover.cli.mig", "List and change MIG instances of GPUs; emulate GPUs"),
}


_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named command and return its exit code."""
    return until_closed(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"clover {__version__}")
        return 0
    known = COMMANDS.get(words[0])
    if known is None:
        hint = did_you_mean(words[0], _installed_versions())
        print(f"clover: unknown command {words[0]}{hint}\n\n{_help()}", file=sys.stderr)
        return 2
    if words[0] == "cluster":
        # Plans are made of small matrices, which more threads only slow down, and others have the cores to serve.
        # BLAS starts its threads when NumPy is imported; Ray sets the same for its actors.
        for name in _ONE_THREAD:
            os.environ.setdefault(name, "1")
    try:
        with importing():
            command = importlib.import_module(known[0])
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{known[0]}.".startswith(f"{error.name}."):
            print(f"clover: this installation is without {error.name}, which has `{words[0]}`", file=sys.stderr)
            return 2
        if not (line := not_installed(error)):
            raise
        print(f"clover: {line}", file=sys.stderr)
        return 3
    return int(command.main(words[1:]))


def _installed_versions() -> dict[str, str]:
    """Return what the commands of this installation are for: without those of wings that it lacks."""
    return {name: about for name, (module, about) in COMMANDS.items() if _is_here(module)}


def _is_here(module: str) -> bool:
    wing = ".".join(module.split(".")[:2])  # to look for what is in it would import it
    return importlib.util.find_spec(wing) is not None


def _help() -> str:
    lines = [f"  {name:<15}{about}" for name, about in _installed_versions().items()]
    called = program()
    return "\n".join(
        [
            f"usage: {called} COMMAND ...",
            "",
            "Clover serves models with as little carbon as an accuracy floor and a",
            "latency target allow.",
            "",
            *lines,
            "",
            f"`{called} COMMAND --help` lists the options of a command;",
            f"`{called} --version` prints the version.",
        ]
    )


def script() -> int:
    """Run the named command as a process of its own, which ends after it whatever hangs; return its exit code."""
    code = main()
    bound_exit(code)
    return code


if __name__ == "__main__":
    raise SystemExit(script())
