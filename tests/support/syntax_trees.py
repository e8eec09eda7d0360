"""Syntax trees of source files, each parsed when first asked for and once a process."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file, its tree (an `ast.Module`) first.

    The garbage collector, which would look through all trees there are again and again while one is parsed, takes three
    quarters of the time, and finds nothing: trees stay.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))))
    finally:
        gc.freeze()
        if collects:
            gc.enable()
