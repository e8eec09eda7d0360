"""Serves families out of an installed Clover, one after the other, and asks each for one answer.

    python packaging/smoke.py fashion language

A wheel is tried with it: run it from outside the repository, in an environment that has the wheel.
"""

from __future__ import annotations

import sys
import urllib.request

import clover
from clover.families import load_evaluation


def answer(name: str) -> str:
    """Serve a family on a free port, ask for its first labelled row, and return what came and what it took."""
    spec = clover.load_family(name)
    inputs, labels = load_evaluation(spec, "held_out")
    row = {tensor.name: rows[:1] for tensor, rows in zip(spec.inputs, inputs, strict=True)}
    with clover.Server(name, port=0, ledger="off") as server:
        with urllib.request.urlopen(f"{server.url}/v2/health/ready", timeout=10) as ready:
            assert ready.status == 200
        came = server.infer(row, timeout_ms=10_000)
    first = {output: values.ravel()[:1].tolist() for output, values in came.outputs.items()}
    return f"{name}: {first} (truth {labels[0]!r}), {came.receipt.variant}, {came.receipt.energy_j:.3f} J"


if __name__ == "__main__":
    print(f"clover {clover.__version__} from {clover.__path__[0]}")
    for name in sys.argv[1:]:
        print(answer(name), flush=True)
