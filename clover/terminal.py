"""Tables that fit the terminal: columns that do not fit are left out, and cells are never cut.

A server prints lists alone: rich, which is slow to import, is imported when something needs it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_GAP = 2
"""Columns of characters between two columns of a table."""

UNWRAPPED = 10_000
"""The width of lines that are not wrapped."""


@dataclass(frozen=True)
class Column:
    """A column: its head, its line in the legend, and its priority.

    `spare` 0 is always kept; of the others those with the largest number are left out first.
    """

    head: str
    about: str = ""
    right: bool = True
    spare: int = 0


def console(piped: int) -> Console:
    """Return the console of standard output: as wide as the terminal; else as COLUMNS says, or `piped` columns."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console()
    columns = os.environ.get("COLUMNS", "")
    return Console(width=int(columns) if columns.isdecimal() and int(columns) > 0 else piped)


def line_width() -> int:
    """Return the width at which lines of text are wrapped: COLUMNS, or the terminal's; in a pipe they are not."""
    return shutil.get_terminal_size((UNWRAPPED, 0)).columns


def wrapped(text: str, columns: int, indent: str = "") -> str:
    """Return `text` in lines of `columns` characters at most, `indent` before all but the first.  No word, path or
    option is cut, and a command in backticks stays on one line, from which it can be copied, however long that is."""
    kept = re.sub("`[^`]*`", lambda joined: joined[0].replace(" ", "\0"), text)
    lines = textwrap.fill(kept, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def listing(rows: Sequence[tuple[str, str]], columns: int) -> str:
    """Return heads and bodies beside each other, in lines of `columns` characters (`wrapped`)."""
    width = max(len(head) for head, _ in rows)
    return "\n".join(wrapped(f"  {head:<{width}}  {body}", columns, " " * (width + 4)) for head, body in rows)


def filled(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the indices of the columns that are not empty in every row."""
    return [index for index in range(len(columns)) if any(row[index] for row in rows)]


def needed(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int]) -> int:
    """Return the width of a table of the columns `shown`, in characters."""
    widths = [max(len(columns[index].head), *(len(row[index]) for row in rows)) for index in shown]
    return sum(widths) + _GAP * (len(widths) - 1)


def fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int], width: int) -> list[int]:
    """Return those of `shown` that fit into `width`, leaving out columns with the largest `spare` first."""
    kept = list(shown)
    while needed(columns, rows, kept) > width:
        spare = max(kept, key=lambda index: columns[index].spare)
        if not columns[spare].spare:
            break
        kept.remove(spare)
    return kept


def sheet(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int]) -> Table:
    """Return a table of the columns `shown`; a row without cells is an empty line.  Cells that are still too wide are
    folded."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False)
    for index in shown:
        made.add_column(Text(columns[index].head), justify="right" if columns[index].right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(row[index]) for index in shown) if row else ())
    return made


def plain(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> tuple[list[str], list[str]]:
    """Return the table of the columns that fit into `width`, as lines of text, and the heads of those left out."""
    from rich.console import Console

    present = filled(columns, rows)
    shown = fitting(columns, rows, present, width)
    out = Console(width=width, force_terminal=False, color_system=None)
    with out.capture() as capture:
        out.print(sheet(columns, rows, shown))
    left = [columns[index].head for index in present if index not in shown]
    return [line.rstrip() for line in capture.get().rstrip().splitlines()], left


def legend(columns: Sequence[Column], shown: Sequence[int], width: int) -> str:
    """Return a line for each of the columns `shown` that has an explanation: its head and that."""
    explained = [columns[index] for index in shown if columns[index].about]
    indent = max((len(column.head) for column in explained), default=0) + _GAP
    return "\n".join(
        textwrap.fill(column.head.ljust(indent) + column.about, max(width, indent + 20), subsequent_indent=" " * indent)
        for column in explained
    )


def milliseconds(ms: float) -> str:
    """Return milliseconds in the unit that reads best: "84.1 ms", "2.5 s", "20.7 min"."""
    for unit, size, digits in (("min", 60_000.0, 1), ("s", 1_000.0, 1), ("ms", 1.0, 1)):
        if ms >= size:
            return f"{ms / size:.{digits}f} {unit}"
    return f"{ms:.3g} ms"
