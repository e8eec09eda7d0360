"""`list`: the GPUs for people. A line for each GPU, its slices drawn, its instances, and what still fits."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from clover.cli.mig.drawing import Block, Strokes, framed, width_for
from clover.cli.mig.state import HIDDEN, GpuState, Instance

_INDENT = "  "
_CELL = 7
"""Columns of a memory slice, at least."""


def show(gpus: Sequence[GpuState], console: Console, ink: Strokes, *, emulated: bool) -> None:
    """Print the GPUs."""
    if not gpus:
        say(console, "the driver shows no GPU")
    width = max([_CELL, *(width_for(_blocks(gpu)) for gpu in gpus)])
    for number, gpu in enumerate(gpus):
        if number:
            say(console, "")
        label = " (emulated)" if emulated else ""
        name = f"  {gpu.product}{label}"
        beside = len(gpu.device) + len(name) + 2 + len(gpu.uuid) <= console.width
        say(console, Text.assemble((gpu.device, "bold"), f"{name}  {gpu.uuid}".rstrip() if beside else name))
        if not beside:
            say(console, f"{_INDENT}{gpu.uuid}")
        _words(_mode(gpu), console)
        if gpu.hidden:
            _fixed(gpu, console)
        elif gpu.enabled and not gpu.lost and not gpu.error:
            for line in framed(gpu.memory_slices, _blocks(gpu), ink, width):
                say(console, Text(_INDENT) + line)
            if gpu.instances:
                _instances(gpu.instances, console)
            _words(f"room  {_room(gpu)}", console, indent=" " * 8)


def _fixed(gpu: GpuState, console: Console) -> None:
    """Print the instances that this process may use, of a GPU whose others it may not see."""
    if gpu.instances:
        _words(f"{gpu.fixed}; these are served on as they are, others are not to be seen", console)
        _instances(gpu.instances, console, places=False)
    else:
        _words(f"{gpu.fixed}, and none is given to this process", console)
        _words(HIDDEN, console)


def block(item: Instance) -> Block:
    """Return an instance in the colour of what may be done with it."""
    style = "green" if item.ours else "magenta"
    style = "yellow" if item.pids else style if item.whole else "red"
    return Block(start=item.placement.start, size=item.placement.size, name=item.placement.profile, style=style)


def _blocks(gpu: GpuState) -> list[Block]:
    return [block(item) for item in gpu.instances]


def say(console: Console, text: Text | str) -> None:
    """Print one line as it is: neither wrapped, cut nor read as markup."""
    console.print(Text(text) if isinstance(text, str) else text, soft_wrap=True, highlight=False)


def _words(text: str, console: Console, indent: str = _INDENT) -> None:
    """Print words below the name of a GPU, on as many lines as they take; further ones begin with `indent`."""
    filled = textwrap.fill(
        f"{_INDENT}{text}", console.width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    say(console, filled)


def _mode(gpu: GpuState) -> str:
    if gpu.lost:
        return "lost: it does not answer; it needs a reset, or a reboot of the box"
    if gpu.error:
        return f"cannot be read: {gpu.error}"
    if not gpu.supported:
        return "no MIG: it is one whole GPU"
    parts = [f"MIG {gpu.mode}", *([f"{gpu.memory_mib / 1024:.0f} GiB"] if gpu.memory_mib else [])]
    if gpu.enabled and not gpu.hidden:
        used = sum(item.placement.slices for item in gpu.instances)
        parts.append(f"{used} of {gpu.compute_slices} compute slices in instances")
    if not gpu.enabled:
        parts.append("used whole; `apply --mode-changes` can turn MIG on")
    return ", ".join([*parts, *([gpu.held] if gpu.held else [])])


_HEADS = ("profile", "start", "size", "memory", "whose", "used by", "UUID")
_PLACES = ("start", "size")
_NUMBERS = (*_PLACES, "memory")


def _instances(instances: Sequence[Instance], console: Console, *, places: bool = True) -> None:
    """Print a table of instances; `places`: with the memory slices that they have."""
    heads = _HEADS if places else tuple(head for head in _HEADS if head not in _PLACES)
    numbers = {heads.index(head) for head in _NUMBERS if head in heads}
    rows = [
        (
            item.placement.profile,
            *((str(item.placement.start), str(item.placement.size)) if places else ()),
            f"{item.memory_mib / 1024:.2f} GiB",
            item.whose,
            ", ".join(map(str, item.pids)) or "-",
            item.uuid or "none: it has no compute instance of its full size",
        )
        for item in instances
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    beside = len(_INDENT) + sum(widths) + 2 * (len(widths) - 1) <= console.width
    for cells, style in (
        (heads, "bold"),
        *((row, block(item).style) for row, item in zip(rows, instances, strict=True)),
    ):
        padded = [
            cell.rjust(width) if number in numbers else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        # The UUID is copied into other commands: on a line of its own rather than broken.
        first, rest = padded[0], "  ".join(padded[1:] if beside else padded[1:-1]).rstrip()
        plain = "bold" if cells is heads else ""
        say(console, Text.assemble(_INDENT, (first, style), "  ", (rest, plain)))
        if not beside:
            say(console, Text.assemble(_INDENT * 2, (cells[-1], plain)))


def _room(gpu: GpuState) -> str:
    room = gpu.room()
    if not room:
        return "none"
    large_first = sorted(room.items(), key=lambda item: (-gpu.profiles[item[0]].slices, -gpu.profiles[item[0]].size))
    return "for " + " or ".join(f"{count} x {name}" if count > 1 else name for name, count in large_first)
