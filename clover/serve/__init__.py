"""`python -m clover.serve FAMILY...`: settings, logging, one banner, signals; the rest is `clover.Server`.

Exit codes: 0 stopped in order, 1 stopped with requests unanswered, 2 the configuration cannot be used, 3 the server
cannot start.
"""

from __future__ import annotations

from clover.serve.command import main

__all__ = ["main"]
