"""The checking process of a reload: `python -m clover.serve.checker` takes the arguments of the server.

It ends with its parent, which leaves its standard input open.
"""

from __future__ import annotations

import os
import sys
import threading

from clover.serve import command


def _watch() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> int:
    """Check the configuration as `--check-config` does and return its exit code."""
    threading.Thread(target=_watch, daemon=True).start()
    return command.main([*sys.argv[1:], "--check-config"])


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # the watching thread still reads standard input, which would hold up a normal exit
