"""Draws `docs/architecture.svg`: the processes of a server, and the way of a request, a carbon reading and a plan.

    python docs/draw.py            # writes architecture.svg beside this file
    python docs/draw.py --check    # exit code 1 if the file there is another

Plain text, no library, no clock: the same source draws the same bytes.  Boxes and arrows are listed below in order.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

TARGET = Path(__file__).with_name("architecture.svg")
WIDTH, HEIGHT = 940, 500

REQUEST, READING, PLAN, FORK = "#2f6f4f", "#8a6d1d", "#7a3b69", "#777777"

# name: (x, y, width, height, title, line below)
PROCESSES = {
    "server": (150, 20, 500, 380, "server process", "one event loop; never imports torch"),
    "solver": (680, 282, 240, 118, "solver process", "low priority, on demand"),
    "zygote": (680, 20, 240, 70, "zygote", "has imported torch; forks workers"),
    "workers": (680, 110, 240, 150, "worker processes", "one a slice, one batch at a time"),
}
BOXES = {
    "client": (10, 80, 100, 56, "clients", "HTTP/1.1"),
    "grid": (10, 300, 100, 56, "grid", "file, formula"),
    "http": (170, 80, 130, 56, "http", "heads, tensors"),
    "router": (340, 80, 130, 56, "router", "forms batches"),
    "slab": (510, 80, 120, 56, "slab, rings", "shared memory"),
    "account": (340, 190, 130, 56, "account", "joules, grams"),
    "fleet": (510, 190, 120, 56, "fleet, pool", "spawn, drain"),
    "carbon": (170, 300, 130, 56, "carbon", "fallback chain"),
    "control": (340, 300, 130, 56, "control", "triggers, gate"),
    "apply": (510, 300, 120, 56, "apply", "transition steps"),
    "worker": (700, 170, 200, 70, "worker", "gather, run, write answers"),
    "policy": (700, 335, 200, 50, "policy, planning", "propose(state)"),
}
# colour, points
ARROWS = (
    (REQUEST, ((110, 100), (170, 100))),
    (REQUEST, ((300, 100), (340, 100))),
    (REQUEST, ((470, 100), (510, 100))),
    (REQUEST, ((630, 100), (660, 100), (660, 195), (700, 195))),
    (REQUEST, ((700, 215), (645, 215), (645, 122), (630, 122))),
    (REQUEST, ((510, 122), (470, 122))),
    (REQUEST, ((340, 122), (300, 122))),
    (REQUEST, ((170, 122), (110, 122))),
    (READING, ((110, 328), (170, 328))),
    (READING, ((300, 328), (340, 328))),
    (READING, ((235, 300), (235, 218), (340, 218))),
    (PLAN, ((470, 318), (490, 318), (490, 276), (665, 276), (665, 350), (700, 350))),
    (PLAN, ((700, 374), (405, 374), (405, 356))),
    (PLAN, ((470, 334), (510, 334))),
    (PLAN, ((570, 300), (570, 246))),
    (PLAN, ((530, 190), (530, 163), (405, 163), (405, 136))),
    (PLAN, ((620, 190), (620, 155), (672, 155), (672, 55), (680, 55))),
    (FORK, ((800, 90), (800, 110))),
)
LEGEND = ((REQUEST, "a request"), (READING, "a carbon reading"), (PLAN, "a plan"), (FORK, "fork"))


def _box(place: tuple[int, int, int, int, str, str], fill: str, size: int) -> str:
    x, y, width, height, title, below = place
    top = y + (22 if height < 100 else 20)
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="#555"/>'
        f'<text x="{x + 10}" y="{top}" font-size="{size}" font-weight="bold">{escape(title)}</text>'
        f'<text x="{x + 10}" y="{top + 17}" font-size="11" fill="#444">{escape(below)}</text>'
    )


def drawing() -> str:
    """Return the SVG text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img">',
        "<title>Processes of a Clover server and the three paths through them</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        "<defs>",
    ]
    for colour, name in LEGEND:
        parts.append(
            f'<marker id="{_id(name)}" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{colour}"/></marker>'
        )
    parts.append("</defs>")
    parts += [_box(place, "#f3f6f4", 14) for place in PROCESSES.values()]
    parts += [_box(place, "#ffffff", 13) for place in BOXES.values()]
    names = dict(LEGEND)
    for colour, points in ARROWS:
        path = " ".join(f"{x},{y}" for x, y in points)
        end = _id(names[colour])
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" marker-end="url(#{end})"/>'
        )
    for index, (colour, name) in enumerate(LEGEND):
        x = 170 + 170 * index
        parts.append(f'<line x1="{x}" y1="440" x2="{x + 30}" y2="440" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 38}" y="444" font-size="13">{escape(name)}</text>')
    note = "Rows lie in shared memory from arrival to answer: the server writes them once, workers read them in place."
    parts.append(f'<text x="170" y="475" font-size="12" fill="#444">{escape(note)}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _id(name: str) -> str:
    return name.replace(" ", "-")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == drawing() else 1)
    TARGET.write_text(drawing(), encoding="utf-8")
