"""A page, a plot and the README's section of what `bench.headline` measured.

    python -m bench.headline_page FILE.json... [--page bench/results/headline.md] [--plot docs/headline.svg]
        [--readme README.md]

The files hold one family or more each; of a family that is in several the last counts.  The README's section goes
between its two marks.  Nothing is measured here, and nothing is written by hand but what the page says of how to read
it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.apart import LOADED_CORES
from bench.common import ROOT
from bench.headline import Round
from bench.headline_profile import PARTS

BEGIN, END = "<!-- bench.headline_page: begin -->", "<!-- end -->"
NAMES = {
    "clover": "Clover",
    "base": "Clover, best variant alone",
    "pytriton": "PyTriton",
    "mlserver": "MLServer",
    "bentoml": "BentoML",
    "litserve": "LitServe",
    "ray": "Ray Serve",
}
"""What servers are called, in the order in which they are shown."""
AGAINST, MUST, CLOSE = "pytriton", 0.25, 0.5
"""Clover is to need at most this part of that server's CPU, with at most so many points less accuracy."""
PUBLISHED = frozenset({"efficientnet_lite"})
"""Families without labelled rows here: their answers count as right by the published accuracy of what gave them."""
_PLACES = re.compile(r" --(?:cache-dir|json)[ =]\S+")
"""Options of a command that say where something lies on a machine."""
_FOLDER = re.compile(r" /\S+")
_ROW = "`bench.headline_page FILES` | "
_WIDE, _LEFT, _BAR, _GAP = 860, 230, 16, 34

_READING = """\
This page counts the CPU of whole servers, and no idle power. **Of the whole machine's grams**, idle power in, the
default saves much less, modelled ([machine.md](machine.md)):

{whole}

Every server's whole tree has core 0 of two, the load generator core 1; requests come in an open loop at the same rate
and carry the same held-out rows in the same order. CPU is the tree's by the scheduler's counters, with all that
Clover's controller does meanwhile at a steady load. The others serve one variant each, with their own batching, behind
ONNX Runtime if it can run the variant, or behind the backend that stands in their name. PyTriton is Triton with the
model in Python: Triton's own HTTP and batcher (the process `tritonserver`), which pass each batch to a Python process.
A ratio is the median of the ratios within a round, CPU and p95 are medians of the rounds. Accuracy counts labels, over
all rounds; of `efficientnet_lite` without labels it is the published accuracy of the variants that answered, for
answers that are what the plain libraries give. Pictures go to Clover and PyTriton as bytes and to the others, whose
wires have no binary tensors, as base64; the others decode and scale them with pillow and NumPy alone.

Clover's default may lose half a point of accuracy **on average over a day**, and no plan goes below its floor, one
point below the best variant. A round of seconds is no day: what is not spent while a server starts is spent later, so a
round may be planned more than half a point below the best variant, but not more than a point.
"""


@dataclass(frozen=True)
class Served:
    """What one server did with a family: its name as it was measured, its rounds, and where its CPU went."""

    name: str
    rounds: list[Round]
    profile: list[dict[str, Any]]

    @property
    def server(self) -> str:
        """The server, without the variant."""
        return self.name.partition(" ")[0]

    @property
    def variant(self) -> str:
        """The variant that it serves, empty if it chooses."""
        return [*self.name.split(), ""][1]

    @property
    def title(self) -> str:
        """What to call it."""
        server, _, variant = self.name.partition(" ")
        return f"{NAMES[server]}, {variant}" if variant else NAMES[server]

    def median(self, figure: str) -> float:
        """Return the median over rounds of a field or property of `Round`."""
        return float(statistics.median(getattr(one, figure) for one in self.rounds))

    @property
    def accuracy(self) -> float:
        """Right answers of a hundred that were sent, over all rounds: they have different rows."""
        return 100.0 * sum(one.right for one in self.rounds) / sum(one.sent for one in self.rounds)

    def part_us(self, part: str) -> float:
        """Return microseconds of CPU a request that went to one of `PARTS`; 0 if that was not looked at."""
        return float(sum(share["parts"].get(part, 0.0) for share in self.profile))


@dataclass(frozen=True)
class Table:
    """A family, as one file has it."""

    family: str
    rate: float
    slo_ms: float
    servers: list[Served]
    provenance: dict[str, Any]

    def best(self, server: str) -> Served | None:
        """Return a server with the best variant (others are measured with two, the best first), by the backend with
        which that takes the least CPU."""
        mine = [one for one in self.servers if one.server == server]
        alike = [one for one in mine if one.variant == mine[0].variant]
        return min(alike, key=lambda one: one.median("cpu_per_1000"), default=None)

    @property
    def loaded(self) -> str:
        """What to say of other work on the machine; empty if there was next to none."""
        most = max(each.foreign_cores for one in self.servers for each in one.rounds)
        return f"**loaded**: others used up to {most:.1f} cores" if most > LOADED_CORES else ""

    def ratio(self, one: Served, other: Served) -> float:
        """Return the CPU a right answer takes in `one` as a part of that in `other`."""
        return float(
            statistics.median(
                mine.cpu_per_1000 / theirs.cpu_per_1000 for mine, theirs in zip(one.rounds, other.rounds, strict=True)
            )
        )


def tables_of(paths: Sequence[Path]) -> list[Table]:
    """Return the families of some files, in the order in which they come."""
    found: dict[str, Table] = {}
    for path in paths:
        document = json.loads(path.read_text())
        for family, record in document["families"].items():
            servers = [
                Served(name, [Round(**each) for each in one["rounds"]], one["profile"])
                for name, one in record["servers"].items()
            ]
            found[family] = Table(family, record["rate"], record["slo_ms"], servers, document["provenance"])
    return list(found.values())


def verdict(table: Table) -> str:
    """Return in a sentence or two whether Clover's default needs a quarter of Triton's CPU, and if not, what of it is
    the model's."""
    clover, other = table.best("clover"), table.best(AGAINST)
    if clover is None or other is None:
        return f"Clover or {NAMES[AGAINST]} was not measured."
    ratio, lost, p95_ms = table.ratio(clover, other), other.accuracy - clover.accuracy, clover.median("p95_ms")
    missed = [
        *([f"{ratio:.2f} is more than {MUST:g}"] if ratio > MUST else []),
        *([f"{lost:.2f} points is more than {CLOSE:g}"] if lost > CLOSE else []),
        *([f"{p95_ms:.1f} ms is more than {table.slo_ms:g}"] if p95_ms > table.slo_ms else []),
    ]
    text = (
        f"Clover's default needs {ratio:.2f} of {NAMES[AGAINST]}'s CPU a right answer, at {abs(lost):.2f} points "
        f"{'less' if lost > 0 else 'more'} accuracy and a p95 of {p95_ms:.1f} ms: "
        f"**{'not what was aimed for: ' + ', '.join(missed) if missed else 'a quarter or less'}**."
    )
    model, total = clover.part_us("model"), sum(share["cpu_us"] for share in other.profile)
    if ratio <= MUST or not model or not total:
        return text
    name, theirs = NAMES[AGAINST], other.part_us("model")
    text += (
        f" Of {name}'s {total:,.0f} us a request {theirs:,.0f} are the model's; of Clover's "
        f"{sum(share['cpu_us'] for share in clover.profile):,.0f} us {model:,.0f} are. "
    )
    if model > MUST * total:
        return (
            text + f"Those {model:,.0f} us alone are {model / total:.2f} of all that {name} uses: whatever serves "
            "these variants needs more than a quarter."
        )
    return text + f"Without the models Clover needs {_rest(clover):,.0f} us and {name} {_rest(other):,.0f}."


def _rest(one: Served) -> float:
    return float(sum(share["cpu_us"] for share in one.profile)) - one.part_us("model")


def whole_machine(text: str) -> str:
    """Return the first table of the page of whole machines (`clover simulate --machine`)."""
    return re.split(r"\n\n", text[text.index("\n|") + 1 :], maxsplit=1)[0]


def page(tables: Sequence[Table], plot: str) -> str:
    """Return the page of results; `plot` is where it finds that."""
    whole = whole_machine((ROOT / "bench" / "results" / "machine.md").read_text())
    lines = ["# What a right answer costs, by Clover and by other servers", "", _READING.format(whole=whole)]
    lines += [f"![CPU a right answer by server]({plot})", ""]
    for table in tables:
        where = table.provenance
        rounds = len(table.servers[0].rounds)
        lines += [f"## {table.family}: {table.rate:g} requests/s, SLO {table.slo_ms:g} ms", "", verdict(table), ""]
        command = _FOLDER.sub(" FOLDER", _PLACES.sub("", where["command"].replace("python -m ", "")))
        loaded = f"; {table.loaded}" if table.loaded else ""
        lines += [f"`{command}` on {where['processor']}, {where['date']}; {rounds} rounds, medians{loaded}."]
        lines += ["", "| server | CPU s/1,000 right | range | x Clover | right % | p95 ms | failed | foreign cores |"]
        lines += ["|---|---|---|---|---|---|---|---|", *(_row(table, one) for one in table.servers), ""]
        lines += _split(table)
    return (
        "\n".join(lines).rstrip() + "\n\nWhat the bench does and how to run it: [the table of benches](../README.md).\n"
    )


def _row(table: Table, one: Served) -> str:
    span = sorted(each.cpu_per_1000 for each in one.rounds)
    clover = table.best("clover")
    ratio = f"{table.ratio(one, clover):.2f}" if clover is not None else ""
    late = " (late)" if one.median("p95_ms") > table.slo_ms else ""
    cells = [
        *(one.title, f"{one.median('cpu_per_1000'):.3f}", f"{span[0]:.3f}..{span[-1]:.3f}", ratio),
        *(f"{one.accuracy:.2f}", f"{one.median('p95_ms'):.1f}{late}"),
        *(str(sum(each.failed for each in one.rounds)), f"{max(each.foreign_cores for each in one.rounds):.2f}"),
    ]
    return f"| {' | '.join(cells)} |"


def _split(table: Table) -> list[str]:
    """Return the table of where the CPU goes, for Clover, BASE and every server with the best variant."""
    shown = [one for server in NAMES if (one := table.best(server)) is not None and one.profile]
    if not shown:
        return []
    heads = ["server", "process", "CPU us a request", *(f"of it {part}" for part in PARTS), "switches a request"]
    lines = ["Where the CPU goes, in one round more:", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in shown:
        for share in one.profile:
            if share["cpu_us"] >= 1.0:
                parts = [f"{share['parts'][part]:.0f}" if share["parts"] else "" for part in PARTS]
                cells = [one.title, share["role"], f"{share['cpu_us']:.0f}", *parts, f"{share['switches']:.2f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def readme_section(tables: Sequence[Table], plot: str, results: str) -> str:
    """Return the README's section: CPU seconds a thousand right answers, accuracy and p95, of every server with the
    best variant.  `plot` and `results` are where the README finds these."""
    servers = [name for name in NAMES if any(table.best(name) for table in tables)]
    where = tables[0].provenance
    loaded = " Other work ran beside it." if _loaded(tables) else ""
    published = [f"`{table.family}`" for table in tables if table.family in PUBLISHED]
    measured = (
        "**Measured**: CPU seconds of the whole server for 1,000 right answers (percent of all that are right, p95), "
        f"one core of two, {where['processor']}, {where['date']}.{loaded}"
    )
    words = [
        *(measured, "The others serve the best variant."),
        *([f"Percentages of {', '.join(published)} are published accuracies of what answered."] if published else []),
        *_about_triton(tables),
        f"Why Clover may lie more than half a point below the best, and where the CPU goes: [all of it]({results}).",
    ]
    lines = ["## Beside other servers", "", " ".join(words), "", f"| | {' | '.join(NAMES[name] for name in servers)} |"]
    lines.append("|---" * (len(servers) + 1) + "|")
    for table in tables:
        cells = [_cell(table, table.best(name)) for name in servers]
        lines.append(f"| `{table.family}`, {table.rate:g}/s, SLO {table.slo_ms:g} ms | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"![CPU a right answer by server]({plot})", ""])


def _cell(table: Table, one: Served | None) -> str:
    """Return what the README's table says of a server; empty if it was not measured."""
    if one is None:
        return ""
    p95_ms = one.median("p95_ms")
    late = ", late" if p95_ms > table.slo_ms else ""
    return f"{one.median('cpu_per_1000'):.2f} ({one.accuracy:.1f} %, {p95_ms:.0f} ms{late})"


def _about_triton(tables: Sequence[Table]) -> list[str]:
    """Return what PyTriton is, and what part of its CPU is that of Triton's own process, where that was looked at."""
    parts = []
    for table in tables:
        one = table.best("pytriton")
        if one is not None and one.profile:
            own = sum(share["cpu_us"] for share in one.profile if share["role"] == "tritonserver")
            parts.append(100.0 * own / sum(share["cpu_us"] for share in one.profile))
    if not any(table.best("pytriton") for table in tables):
        return []
    span = " to ".join(dict.fromkeys((f"{min(parts):.0f}", f"{max(parts):.0f}"))) if parts else ""
    own = f"; `tritonserver` itself is {span} % of its CPU" if parts else ""
    return [f"PyTriton is Triton's HTTP and batcher with the model in Python{own}."]


def _loaded(tables: Sequence[Table]) -> bool:
    return any(table.loaded for table in tables)


def in_readme(text: str, section: str) -> str:
    """Return the README with `section` between its marks.  Raises ValueError if they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def in_index(text: str, page: Path) -> str:
    """Return the table of benches with a link to the page."""
    return text.replace(_ROW + "none kept |", f"{_ROW}[{page.stem}](results/{page.name}) |")


def plot(tables: Sequence[Table]) -> str:
    """Return an SVG: for each family a bar a server, as long as the CPU that a right answer takes."""
    parts, y = [], 24
    for table in tables:
        shown = [one for server in NAMES if (one := table.best(server)) is not None]
        most = max(one.median("cpu_per_1000") for one in shown)
        title = f"{table.family}: CPU seconds for 1,000 right answers, {table.rate:g} requests/s"
        parts.append(f'<text x="12" y="{y}" font-weight="bold">{escape(title)}</text>')
        y += 10
        for one in shown:
            value = one.median("cpu_per_1000")
            long = (_WIDE - _LEFT - 230) * value / most
            colour = "#2f6f4f" if one.server == "clover" else "#9aa5a0"
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(one.title)}</text>')
            parts.append(f'<rect x="{_LEFT}" y="{y + 1}" width="{long:.1f}" height="{_BAR - 2}" fill="{colour}"/>')
            right = "by published accuracy" if table.family in PUBLISHED else "right"
            label = f"{value:.2f} s, {one.accuracy:.1f} % {right}"
            parts.append(f'<text x="{_LEFT + long + 6:.1f}" y="{y + 13}">{label}</text>')
            y += _BAR + 3
        y += _GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {y - _GAP + 12}" font-family="sans-serif" '
    return (
        head + 'font-size="12">\n<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write what is asked for; the verdicts are printed."""
    parser = argparse.ArgumentParser(prog="python -m bench.headline_page", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--page", type=Path, default=ROOT / "bench" / "results" / "headline.md")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "headline.svg")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    given = parser.parse_args(argv)
    tables = tables_of(given.files)
    given.page.write_text(page(tables, os.path.relpath(given.plot, given.page.parent)))
    given.plot.write_text(plot(tables))
    plotted, results = (os.path.relpath(path, given.readme.parent) for path in (given.plot, given.page))
    given.readme.write_text(in_readme(given.readme.read_text(), readme_section(tables, plotted, results)))
    index = given.page.parent.parent / "README.md"
    if index.exists():
        index.write_text(in_index(index.read_text(), given.page))
    for table in tables:
        print(f"{table.family}: {verdict(table)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
