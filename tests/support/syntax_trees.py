"""Syntax trees of source files, each parsed when first asked for and once a process."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file, its tree (an `ast.Module`) first."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))))
