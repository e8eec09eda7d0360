"""What the tests of the router share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _nobody_takes_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the core where the router yields it to workers: these are fakes in this process, and on a busy machine the
    other processes would take it for milliseconds each time, minutes in all."""
    monkeypatch.setattr(os, "sched_yield", lambda: None)
