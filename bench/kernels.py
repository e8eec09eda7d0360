"""Times the compiled kernels against their plain-Python twins: CPU time an operation, as the server calls them.

    python -m bench.kernels [--rounds N] [--instructions] [--json FILE]

Each figure is the median of the rounds, in which kernel and twin take turns; it includes the calls from Python.  The
router is compiled and calls the batcher from C: the first figures are of such calls, and have no twin.  The twins do
less work a round, for they are slow on purpose.  `--instructions` adds what a kernel's operation executes, which moves
with the code and not with the hour (`bench.instructions`; a minute more).
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import statistics
import time

from bench import compiled, instructions
from bench.common import show, write_json
from bench.kernel_cases import CASES, Run, called_from_c


def ns_each(run: Run, count: int) -> float:
    """Return CPU nanoseconds an operation."""
    start = time.process_time_ns()
    run(count)
    return (time.process_time_ns() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each case")
    parser.add_argument("--instructions", action="store_true", help="also count a kernel's instructions (valgrind)")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    if why := compiled.missing():
        print(why)
    else:
        stay = compiled.built("batcher_stay").stay
        batcher = importlib.import_module("clover._native.batcher")
        for depth, clients in itertools.product((32, 256), (1, 64)):
            run = called_from_c(stay, batcher, depth, clients=clients)
            name = f"batcher: request, depth {depth}, batch 8{'' if clients == 1 else f', {clients} clients'}, from C"
            figures[name] = {"kernel_ns": statistics.median(ns_each(run, 800_000) for _ in range(options.rounds))}
    for name, kernel, make, many, few in CASES:
        kernels = make(importlib.import_module(f"clover._native.{kernel}"))
        twin = make(importlib.import_module(f"tests.reference.{kernel}"))
        rounds = [(ns_each(kernels, many), ns_each(twin, few)) for _ in range(options.rounds)]
        kernel_ns, twin_ns = (statistics.median(column) for column in zip(*rounds, strict=True))
        figures[f"{kernel}: {name.strip()}"] = {
            "kernel_ns": kernel_ns,
            "twin_ns": twin_ns,
            "ratio": twin_ns / kernel_ns,
        }
    columns = ["operation", "kernel", "twin", "ratio"]
    rows: list[list[object]] = [
        [name, round(row["kernel_ns"]), round(row["twin_ns"]) if "twin_ns" in row else "", row.get("ratio", "")]
        for name, row in figures.items()
    ]
    if options.instructions and (why := instructions.missing()):
        print(why)
    elif options.instructions:
        columns.append("instructions")
        timed = len(figures) - len(CASES)
        listed = list(figures.values())[timed:]
        for row, figure, count in zip(rows[timed:], listed, instructions.counted(), strict=True):
            figure["instructions"] = count
            row.append(round(count))
    show("kernels: CPU nanoseconds an operation, medians", columns, rows)
    write_json(options.json, {"bench": "kernels", "rounds": options.rounds, "figures": figures})


if __name__ == "__main__":
    main()
