"""`python -m clover.serve FAMILY...`: settings, logging, banner and signals; the rest is `clover.Server`.

Exit codes: 0 stopped in order, 1 stopped with requests unanswered, 2 the configuration cannot be used, 3 the server
cannot start.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from clover.errors import not_installed
from clover.hints import importing

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        with importing():
            from clover.serve import command
    except ImportError as error:
        if not (line := not_installed(error)):
            raise
        print(f"clover: {line}", file=sys.stderr)
        return 3
    return command.main(argv, environ)
