"""Charts as SVG text, by hand: step lines, stacked bands and a scatter.  They need no library and load nothing.

Every value holds from its x to the next one's, as ledger steps do; equal neighbours are drawn as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 26, 34
COLOURS = ("#4d4d4d", "#e08a00", "#a05eb5", "#1f78b4", "#c23b3b", "#1b8a4b", "#6b8e23", "#8c6d5a", "#d16ba5", "#009e9e")

Points = Sequence[tuple[float, float]]


def lines(
    title: str,
    series: Mapping[str, Points],
    *,
    end: float,
    limit: tuple[str, float] | None = None,
    colours: Mapping[str, str] | None = None,
    from_zero: bool = True,
) -> str:
    """Draw step lines over hours.  `limit`: a dashed line with its name; `end`: the hour at which the last
    step ends."""
    values = [y for points in series.values() for _, y in points] + ([limit[1]] if limit else [])
    low, high = _range(values, from_zero)
    frame = _Frame(0.0, end, low, high)
    parts = [frame.axes(title, "hours")]
    for index, (name, points) in enumerate(series.items()):
        colour = (colours or {}).get(name, COLOURS[index % len(COLOURS)])
        parts.append(f'<path d="{frame.steps(points, end)}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    if limit:
        y = frame.y(limit[1])
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#b00020" stroke-dasharray="5 4" fill="none"/>'
            f'<text x="{WIDTH - _RIGHT - 4}" y="{y - 4:.1f}" text-anchor="end" fill="#b00020">{escape(limit[0])}</text>'
        )
    return _svg(title, "".join(parts))


def bands(title: str, series: Mapping[str, Points], *, end: float, high: float) -> str:
    """Draw stacked steps: all series have the same x, and together they reach `high` at most."""
    frame = _Frame(0.0, end, 0.0, high)
    names = list(series)
    xs = [x for x, _ in series[names[0]]] if names else []
    below = [0.0] * len(xs)
    parts = [frame.axes(title, "hours")]
    for index, name in enumerate(names):
        above = [base + y for base, (_, y) in zip(below, series[name], strict=True)]
        if any(y > base for base, y in zip(below, above, strict=True)):
            top = frame.steps(list(zip(xs, above, strict=True)), end)
            bottom = frame.back(list(zip(xs, below, strict=True)), end)
            colour = COLOURS[(index + 3) % len(COLOURS)]
            parts.append(f'<path d="{top}{bottom}Z" fill="{colour}" fill-opacity="0.75"/>')
        below = above
    return _svg(title, "".join(parts))


def scatter(title: str, across: str, points: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> str:
    """Draw named points; those that no other beats (less x, more y) are joined."""
    xs, ys = [x for x, _ in points.values()], [y for _, y in points.values()]
    frame = _Frame(*_range(xs, True), *_range(ys, True))
    front: list[tuple[float, float]] = []
    for x, y in sorted(points.values(), key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    joined = "".join(f"{'L' if i else 'M'}{frame.x(x):.1f} {frame.y(y):.1f}" for i, (x, y) in enumerate(front))
    parts = [frame.axes(title, across), f'<path d="{joined}" fill="none" stroke="#999" stroke-dasharray="3 3"/>']
    for name, (x, y) in points.items():
        left = frame.x(x) > WIDTH * 0.7
        at = f'x="{frame.x(x) + (-7 if left else 7):.1f}" y="{frame.y(y) + 4:.1f}"'
        anchor = ' text-anchor="end"' if left else ""
        parts.append(
            f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4" fill="{colours.get(name, "#333")}"/>'
            f"<text {at}{anchor}>{escape(name)}</text>"
        )
    return _svg(title, "".join(parts))


def legend(colours: Mapping[str, str]) -> str:
    """Return names beside their colours, as HTML."""
    items = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in colours.items()
    )
    return f'<p class="legend">{items}</p>'


def band_colours(names: Sequence[str]) -> dict[str, str]:
    """Return the colours that `bands` gives to series of these names."""
    return {name: COLOURS[(index + 3) % len(COLOURS)] for index, name in enumerate(names)}


class _Frame:
    """The axes of a chart, which convert values to pixels."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self._left, self._low = left, low
        self._right = right if right > left else left + 1.0
        self._high = high if high > low else low + 1.0

    def x(self, value: float) -> float:
        return _LEFT + (value - self._left) / (self._right - self._left) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        part = (min(max(value, self._low), self._high) - self._low) / (self._high - self._low)
        return HEIGHT - _BOTTOM - part * (HEIGHT - _TOP - _BOTTOM)

    def steps(self, points: Points, end: float) -> str:
        parts: list[str] = []
        last = math.nan
        for x, value in points:
            if not parts:
                parts.append(f"M{self.x(x):.1f} {self.y(value):.1f}")
            elif value != last:
                parts.append(f"H{self.x(x):.1f}V{self.y(value):.1f}")
            last = value
        return "".join(parts) + f"H{self.x(end):.1f}"

    def back(self, points: Points, end: float) -> str:
        """Return the path of the same steps from right to left."""
        parts, right = [], end
        for x, value in reversed(points):
            parts.append(f"L{self.x(right):.1f} {self.y(value):.1f}L{self.x(x):.1f} {self.y(value):.1f}")
            right = x
        return "".join(parts)

    def axes(self, title: str, across: str) -> str:
        parts = [f'<text x="{_LEFT}" y="15" class="title">{escape(title)}</text>']
        for value in _ticks(self._low, self._high):
            y = self.y(value)
            parts.append(
                f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#e4e4e4"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
            )
        for value in _ticks(self._left, self._right):
            x = self.x(value)
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
        parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(across)}</text>')
        return "".join(parts)


def _svg(title: str, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _range(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.05 * (high - low) or 0.5
    return (low if from_zero and low == 0.0 else low - pad), high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Return up to seven round values from `low` to `high`."""
    raw = (high - low) / 5.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if size * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 10) + 0.0 for number in range(first, math.floor(high / step + 1e-9) + 1)]
