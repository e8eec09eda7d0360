"""Modules that a test file names and does not load: every process of a run collects all test files."""

from __future__ import annotations

import importlib
from typing import Any


class LazyModule:
    """A module that is imported when a name of it is first used."""

    # pytest asks every global for this, and for names with underscores all around, while it looks for fixtures.
    _mock_name = None

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)
