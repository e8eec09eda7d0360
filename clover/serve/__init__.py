"""`python -m clover.serve FAMILY...`: settings, logging, banner and signals; the rest is `clover.Server`.

Exit codes: 0 stopped in order, 1 stopped with requests unanswered, 2 the configuration cannot be used, 3 the server
cannot start.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from clover.errors import not_installed
from clover.hints import importing
from clover.low_priority import LowPriority
from clover.serve.upgrade import TAKE_OVER

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run the command and return its exit code."""
    # What is imported below takes a second of a core, which the server that is taken over needs for its requests.
    priority = None
    if TAKE_OVER in (sys.argv[1:] if argv is None else argv):  # `clover serve` gives them, `python -m clover.serve` not
        priority = LowPriority()
        priority.lower()
    try:
        with importing():
            from clover.serve import command
    except ImportError as error:
        if not (line := not_installed(error)):
            raise
        print(f"clover: {line}", file=sys.stderr)
        return 3
    return command.main(argv, environ, priority)
