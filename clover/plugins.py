"""Policies, carbon sources and backends that installed packages add, by entry points.

A package names them in its `pyproject.toml`, and settings name them as they name Clover's own:

    [project.entry-points."clover.policies"]    # --policy frugal
    frugal = "our_package:FrugalPolicy"         # called without arguments: a clover.interfaces.Policy

    [project.entry-points."clover.carbon"]      # --carbon rooftop:7
    rooftop = "our_package:RooftopSource"       # called with what follows the colon: a clover.interfaces.CarbonSource

    [project.entry-points."clover.backends"]    # --backends eager,ours
    ours = "our_package:OurBackend"             # called without arguments: a clover.backends.CompilingBackend
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import Any

from clover.errors import ConfigError


def names(kind: str) -> tuple[str, ...]:
    """Return the names that installed packages add to a `kind`: "policies", "carbon" or "backends"."""
    return tuple(sorted({entry.name for entry in entry_points(group=f"clover.{kind}")}))


def make(kind: str, name: str, *arguments: str) -> Any:
    """Return what `find` finds, called with `arguments`; None if no package adds it.  ConfigError if `find` or the
    call fails."""
    if (found := find(kind, name)) is None:
        return None
    try:
        return found(*arguments)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{name} of clover.{kind}: {type(error).__name__}: {error}") from error


@functools.cache
def find(kind: str, name: str) -> Any:
    """Return the class or function called `name`; None if no package adds it.  ConfigError if several do, or if
    the import fails."""
    found = [*entry_points(group=f"clover.{kind}", name=name)]
    if not found:
        return None
    whose = ", ".join(entry.dist.name if entry.dist is not None else entry.value for entry in found)
    if len(found) > 1:
        raise ConfigError(f"{name} of clover.{kind} is in several packages ({whose}): uninstall all but one")
    try:
        return found[0].load()
    except Exception as error:
        raise ConfigError(f"{name} of clover.{kind}, from {whose}: {type(error).__name__}: {error}") from error


@functools.cache
def distributions(kind: str, name: str) -> tuple[str, ...]:
    """Return the packages that add `name`; their versions say whether it has changed."""
    return tuple(entry.dist.name for entry in entry_points(group=f"clover.{kind}", name=name) if entry.dist is not None)
