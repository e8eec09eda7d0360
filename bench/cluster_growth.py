"""Draw how the time of a cluster's plan grows with its nodes, from what `bench.cluster_solve --json` wrote.

    python -m bench.cluster_solve --nodes 1000 --problems 30 --json thousand.json
    python -m bench.cluster_growth small.json thousand.json --svg docs/cluster-growth.svg

Both axes are logarithmic; a dot is one problem, the line joins the medians.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 60
COLOUR = "#4d6a8f"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the figures of several runs and write one drawing of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="FILE", help="what bench.cluster_solve --json wrote")
    parser.add_argument("--svg", required=True, metavar="FILE", help="where to write the drawing")
    asked = parser.parse_args(argv)
    seconds: dict[int, list[float]] = {}
    notes: dict[str, None] = {}
    for name in asked.runs:
        document = json.loads(Path(name).read_text(encoding="utf-8"))
        for nodes, problems in document["problems"].items():
            seconds.setdefault(int(nodes), []).extend(problem["seconds"] for problem in problems)
        where = f"{document['cores']} cores, {document['processor']}"
        notes[f"{where}, {document['date']}, survive {document['survive']}"] = None
    Path(asked.svg).write_text(drawing(seconds, "; ".join(notes)), encoding="utf-8")
    return 0


def drawing(seconds: Mapping[int, Sequence[float]], note: str) -> str:
    """Return an SVG of CPU seconds by nodes."""
    sizes = sorted(seconds)
    every = [value for values in seconds.values() for value in values]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def across(nodes: int) -> float:
        part = (math.log10(nodes) - first) / (last - first) if last > first else 0.5
        return LEFT + 20 + part * (WIDTH - LEFT - RIGHT - 40)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(value) - low) / max(1, high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img">',
        "<title>CPU seconds of a cluster's plan by its nodes</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 24, "CPU seconds of a plan, by nodes of 8 GPUs (a dot is a problem, the line the median)", 13),
    ]
    for power in range(low, high + 1):
        y = up(10.0**power)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{10.0**power:g} s", 12, "end"))
    for nodes in sizes:
        parts.append(_text(across(nodes), HEIGHT - BOTTOM + 20, f"{nodes:,}", 12, "middle"))
        parts += [
            f'<circle cx="{across(nodes):.1f}" cy="{up(value):.1f}" r="3" fill="{COLOUR}" fill-opacity="0.45"/>'
            for value in seconds[nodes]
        ]
    line = " ".join(f"{across(nodes):.1f},{up(median(seconds[nodes])):.1f}" for nodes in sizes)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOUR}" stroke-width="2"/>')
    parts += [_text(LEFT, HEIGHT - 14, note, 11), "</svg>"]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, words: str, size: int, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="#333">{escape(words)}</text>'


if __name__ == "__main__":
    raise SystemExit(main())
