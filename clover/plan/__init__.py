"""`python -m clover plan PROBLEM.json`: solve one optimisation problem in a file, and say how good the answer can be.

Exit codes: 0 solved, 2 the command or the file cannot be read, 3 no feasible configuration (with the reason).
"""

from __future__ import annotations

from clover.plan.command import main

__all__ = ["main"]
