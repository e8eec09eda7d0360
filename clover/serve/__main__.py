"""`python -m clover.serve`."""

from __future__ import annotations

from clover.hints import until_closed
from clover.serve import main

if __name__ == "__main__":
    raise SystemExit(until_closed(main))
