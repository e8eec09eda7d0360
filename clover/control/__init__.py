"""The controller: from readings and traffic to plans, transitions, and the record of why."""

from __future__ import annotations

from clover.control.baselines.saved import compared, saved_by_all
from clover.control.controller import Controller
from clover.control.solver.client import SolverClient

__all__ = ["Controller", "SolverClient", "compared", "saved_by_all"]
