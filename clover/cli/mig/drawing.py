"""The slices of a GPU, drawn on its memory axis.

        0      1      2      3      4      5      6      7
    ┌───────────────────────────┬─────────────┬──────┬──────┐
    │          3g.20gb          │   2g.10gb   │1g.5gb│······│
    └───────────────────────────┴─────────────┴──────┴──────┘

One column group a memory slice; slices without an instance are dotted.  Everything is a `rich` text, so that it has
colours on a terminal and is plain monospace text elsewhere; terminals that cannot show lines get `+-|`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.text import Text

from clover.types import Record

_LEAST = 4
"""Columns of a memory slice, its right border included."""


class Block(Record, frozen=True, kw_only=True):
    """What covers `size` memory slices from `start`: its name, in the colours `style` of rich."""

    start: int
    size: int
    name: str
    style: str = ""


class Strokes(Record, frozen=True, kw_only=True):
    """The characters of a drawing: the border's top and bottom joints, its lines, and what fills gaps."""

    top: str = "┌┬┐"
    bottom: str = "└┴┘"
    line: str = "─"
    side: str = "│"
    free: str = "·"


LINES = Strokes()
ASCII = Strokes(top="+++", bottom="+++", line="-", side="|", free=".")


def strokes(encoding: str | None = None) -> Strokes:
    """Return lines if standard output's `encoding` has them."""
    try:
        "".join((LINES.top, LINES.bottom, LINES.line, LINES.side, LINES.free)).encode(
            encoding or getattr(sys.stdout, "encoding", None) or "ascii"
        )
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return LINES


def width_for(blocks: Sequence[Block]) -> int:
    """Return columns that a memory slice needs so that every name fits."""
    return max([_LEAST, *(-(-(len(block.name) + 1) // block.size) for block in blocks)])


def framed(axis: int, blocks: Sequence[Block], ink: Strokes = LINES, width: int = 0) -> list[Text]:
    """Return four lines: the memory slices' numbers, and the instances in a frame; `width` columns a memory slice."""
    width = width or width_for(blocks)
    cells = _cells(axis, blocks)
    edges = {cell.start for cell in cells}

    def border(joints: str) -> Text:
        line = "".join(
            (joints[0] if not slot else joints[1] if slot in edges else ink.line) + ink.line * (width - 1)
            for slot in range(axis)
        )
        return Text(line + joints[2], style="dim")

    numbers = Text("".join(f" {slot:^{width - 1}}" for slot in range(axis)).rstrip(), style="dim")
    return [numbers, border(ink.top), _row(cells, width, ink), border(ink.bottom)]


def _cells(axis: int, blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks by start, the gaps between them as blocks without a name."""
    cells: list[Block] = []
    end = 0
    for block in [*sorted(blocks, key=lambda item: item.start), Block(start=axis, size=0, name="")]:
        if block.start > end:
            cells.append(Block(start=end, size=block.start - end, name=""))
        if block.size:
            cells.append(block)
        end = max(end, block.start + block.size)
    return cells


def _row(cells: Sequence[Block], width: int, ink: Strokes) -> Text:
    line = Text()
    for cell in cells:
        line.append(ink.side, style="dim")
        inner = cell.size * width - 1
        if cell.name:
            line.append(f"{cell.name:^{inner}}", style=cell.style)
        else:
            line.append(ink.free * inner, style="dim")
    line.append(ink.side, style="dim")
    return line
