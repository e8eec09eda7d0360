"""How much faster networks are on more MIG slices: as published, and as the emulator calculates it.

    python -m bench.slice_speed FOLDER [--json FILE]

FOLDER holds the data of ParvaGPU's artifact (SC24, github.com/MunQ-Lee/ParvaGPU_SC24): `prof_data/NETWORK.csv`, rows a
second on instances of an A100-80GB.  Used is what one process did, in batches that also ran on one slice.

Every fourth network by name, from the first on, is left out.  The three numbers of `emulation.profiles.analytical` are
those of a grid with the least mean error (absolute, of the logarithm; each network counts alike) on the others.
A batch is taken to grow on a core as its rows do: the data have no CPU.  Multiply-adds of a row are those of
torchvision's documentation; 128 tokens of a BERT-base and pictures of 299 x 299 for Inception are assumed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.common import show, write_json
from bench.parvagpu import measured_in
from clover.emulation.profiles import analytical

GFLOP = {
    "bert": 11.2,
    "densenet121": 2.83,
    "densenet169": 3.36,
    "densenet201": 4.29,
    "inceptionv3": 5.71,
    "mobilenetv2": 0.30,
    "resnet101": 7.80,
    "resnet152": 11.51,
    "resnet50": 4.09,
    "vgg16": 15.47,
    "vgg19": 19.63,
}
FILLED, ROWS, HEAVY = np.arange(0.8, 1.001, 0.01), np.arange(1.0, 5.01, 0.1), np.arange(6.0, 16.01, 0.1)
MS_PER_GFLOP = 85.2 / GFLOP["resnet50"]
BEFORE = {2: 1.90, 3: 2.57, 4: 2.86, 7: 3.06}
"""The emulator's curve until version 1, the same for every batch and network."""

Floats = NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, and print the errors of the networks left out, and of every three that might have been."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the data of ParvaGPU's artifact")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures to FILE")
    given = parser.parse_args(argv)
    published = {name: cells for name, cells in gains(given.folder).items() if name in GFLOP}
    if missing := GFLOP.keys() - published.keys():
        parser.error(f"{given.folder} is not the data of ParvaGPU's artifact: it lacks {', '.join(sorted(missing))}")
    names = sorted(published)
    left_out = names[::4]
    losses = {name: loss(published[name], GFLOP[name]) for name in names}
    filled, rows, heavy = fitted(losses, left_out)
    print(f"fitted without {', '.join(left_out)}: FILLED {filled:.2f}, ROWS {rows:.1f}, heavy from {heavy:.1f} GFLOP")
    print(f"the emulator has {analytical.FILLED:g}, {analytical.ROWS:g}, {analytical.HEAVY_MS / MS_PER_GFLOP:.1f}")
    lines = [line(name, published[name], name in left_out) for name in names]
    show("errors of speed beside one slice, %", list(lines[0]), [list(item.values()) for item in lines])
    show(
        "published, and emulated, by network that was left out",
        ["network", "batch", *(f"{slices} slices" for slices in BEFORE)],
        [
            [name, batch, *(beside(published[name], name, slices, batch) for slices in BEFORE)]
            for name in left_out
            for batch in sorted({int(batch) for _, batch, _ in published[name]})
        ],
    )
    others = [
        np.mean([abs(curve(published[name], GFLOP[name], *fit) / published[name][:, 2] - 1.0).mean() for name in three])
        for three in itertools.combinations(names, len(left_out))
        for fit in [fitted(losses, three)]
    ]
    print(f"any three left out: error {np.mean(others):.0%} in the mean, {min(others):.0%} to {max(others):.0%}")
    write_json(given.json, {"filled": filled, "rows": rows, "heavy_gflop": heavy, "networks": lines})
    return 0


def gains(folder: Path) -> dict[str, Floats]:
    """Return for each network rows of (slices, batch, speed beside one slice)."""
    found = {}
    for name, measured in measured_in(folder).items():
        rates = {(item.slices, item.batch): item.rows_s for item in measured if item.processes == 1}
        found[name] = np.array(
            [
                (slices, batch, rate / rates[1, batch])
                for (slices, batch), rate in rates.items()
                if slices > 1 and (1, batch) in rates
            ]
        )
    return found


def curve(cells: Floats, gflop: float, filled: Any, rows: Any, heavy: Any) -> Floats:
    """Return the speeds of `analytical.speed` with other numbers."""
    steep = np.maximum(1.0, gflop / heavy) ** analytical.STEEP
    speed: Floats = np.minimum(cells[:, 0] ** filled, np.maximum(1.0, cells[:, 1] / rows * steep))
    return speed


def loss(cells: Floats, gflop: float) -> Floats:
    """Return a network's mean error at every point of the grid [filled, rows, heavy]."""
    filled, rows, heavy = (axis[..., None] for axis in np.ix_(FILLED, ROWS, HEAVY))
    mean: Floats = np.abs(np.log(curve(cells, gflop, filled, rows, heavy) / cells[:, 2])).mean(axis=-1)
    return mean


def fitted(losses: dict[str, Floats], left_out: Collection[str]) -> tuple[float, float, float]:
    """Return the point of the grid that is best for the networks that are not `left_out`."""
    total = sum(item for name, item in losses.items() if name not in left_out)
    filled, rows, heavy = np.unravel_index(np.argmin(total), np.shape(total))
    return float(FILLED[filled]), float(ROWS[rows]), float(HEAVY[heavy])


def emulated(name: str, slices: int, batch: int) -> float:
    """Return the emulator's speed for a network, if a core takes as long for each row of a batch as for one alone."""
    return analytical.speed(slices, batch, GFLOP[name] * MS_PER_GFLOP)


def line(name: str, cells: Floats, left_out: bool) -> dict[str, object]:
    """Return a network's errors in percent: of the emulator, and as it was before."""
    now = np.array([emulated(name, int(slices), int(batch)) for slices, batch, _ in cells])
    before = np.array([BEFORE[int(slices)] for slices in cells[:, 0]])
    line: dict[str, object] = {"network": name, "left out": "yes" if left_out else "", "cells": len(cells)}
    for title, speeds in (("emulated", now), ("before", before)):
        errors = 100.0 * np.abs(speeds / cells[:, 2] - 1.0)
        line |= {title: f"{errors.mean():.0f}", f"{title}, worst": f"{errors.max():.0f}"}
    return line


def beside(cells: Floats, name: str, slices: int, batch: int) -> str:
    """Return "published / emulated"."""
    speed = next((speed for n, rows, speed in cells if (n, rows) == (slices, batch)), None)
    return "-" if speed is None else f"{speed:.2f} / {emulated(name, slices, batch):.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
