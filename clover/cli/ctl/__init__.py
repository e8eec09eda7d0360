"""`python -m clover ctl VERB`: look at a running server and steer its controller over HTTP or its control socket.

Exit codes: 0 done, 1 the server refused, 2 the command cannot be read, 3 the server cannot be reached or failed.
"""

from __future__ import annotations

from clover.cli.ctl.command import main

__all__ = ["main"]
