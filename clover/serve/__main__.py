"""`python -m clover.serve`."""

from __future__ import annotations

from clover.bounded_exit import bound_exit
from clover.hints import until_closed
from clover.serve import main

if __name__ == "__main__":
    code = until_closed(main)
    bound_exit(code)
    raise SystemExit(code)
