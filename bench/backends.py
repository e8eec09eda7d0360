"""What a row costs by backend and by how it is prepared, on one core, for every variant of the default family.

    python -m bench.backends [--variants tiny small ...] [--rounds 15] [--cache-dir DIR] [--json FILE]

`module` as its loader gives it, `module, channels last` (weights in that order, which convolutions hand on), `eager` as
the backend runs it, `aoti` as compiled plainly and `aoti, frozen` (weights are constants that the compiler folds and
packs), `onnxruntime`, and `onnxruntime-int8`, its quantised model.  All of them live in this process, with one thread,
and take turns in every round, for `--least-ms` each; a figure is the median over rounds.  Batches are those of the
family's ends: one row, and the most rows.  Answers are compared with `module` on all held-out rows in the largest
batches: the largest difference, the share of rows with the same first answer, and the share that is right by their
labels.

Milliseconds and CPU are measured (of this process); joules are modelled, CPU seconds x `core_w`, as the server counts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.common import ROOT, fashion_rows, provenance, show, write_json
from clover import backends, families
from clover.backends import aoti
from clover.backends.tensors import load_module, to_arrays, to_tensor
from clover.config import EnergyConfig
from clover.energy import cpu_power
from clover.types import FamilySpec, VariantSpec

Run = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]

PLAIN = "module"


def ordered(family: FamilySpec, variant: VariantSpec, order: str) -> Run:
    """Return the module with its weights in the memory order of that name."""
    import torch

    module = load_module(family, variant).to(memory_format=getattr(torch, order))  # type: ignore[call-overload]

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            return to_arrays(module(*[to_tensor(a, s) for a, s in zip(inputs, family.inputs, strict=True)]))

    return run


def compiled(family: FamilySpec, variant: VariantSpec, cache: Path, *, frozen: bool) -> Run:
    """Return AOTInductor's library with or without freezing, made by a process of its own where it is not there."""
    folder = cache / "bench" / f"{family.name}-{variant.name}-{'frozen' if frozen else 'plain'}"
    if not (folder / aoti.LIBRARY).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["-m", "bench.backends", "--compile", variant.name, str(folder), *(["--frozen"] if frozen else [])]
        subprocess.run([sys.executable, *words], check=True, cwd=ROOT, env=backends.child_environment())
    return backends.get("aoti").load(family, variant, folder, 1)


def prepared(family: FamilySpec, variant: VariantSpec, cache: Path) -> dict[str, Run]:
    """Return what is compared."""
    found = {
        PLAIN: ordered(family, variant, "contiguous_format"),
        "module, channels last": ordered(family, variant, "channels_last"),
        "eager": backends.get("eager").load(family, variant, cache, 1),
    }
    if not backends.get("aoti").available():
        found["aoti"] = compiled(family, variant, cache, frozen=False)
        found["aoti, frozen"] = compiled(family, variant, cache, frozen=True)
    for name in ("onnxruntime", "onnxruntime-int8"):
        ort = backends.get(name)
        if not ort.available():
            folder = backends.artifact_dir(cache, family, variant, name, 1)
            asyncio.run(backends.compile_in_background(family, variant, name, folder))
            found[name] = ort.load(family, variant, folder, 1)
    return found


def once(run: Run, inputs: list[NDArray[Any]], least_ms: float) -> tuple[float, float]:
    """Return wall and CPU milliseconds a row, over as many batches as fit."""
    calls = 0
    begin_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()
    while (passed_ns := time.monotonic_ns() - begin_ns) < least_ms * 1e6:
        run(inputs)
        calls += 1
    rows = calls * len(inputs[0])
    return passed_ns / 1e6 / rows, (time.process_time_ns() - cpu_ns) / 1e6 / rows


def answers(run: Run, images: NDArray[Any], batch: int) -> NDArray[Any]:
    """Return the answers to all `images`, in batches."""
    return np.concatenate([run([images[at : at + batch]])[0].copy() for at in range(0, len(images), batch)])


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=[], help="all by default")
    parser.add_argument("--rounds", type=int, default=15, help="rounds whose median counts")
    parser.add_argument("--least-ms", type=float, default=60.0, help="how long one of them runs in a round")
    parser.add_argument("--cache-dir", default="", help="what is compiled; a temporary folder otherwise (minutes)")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    parser.add_argument("--compile", nargs=2, default=[], help=argparse.SUPPRESS)
    parser.add_argument("--frozen", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    family = families.load_family("fashion")
    if options.compile:
        name, folder = options.compile
        aoti.make_library(family, family.variant(name), Path(folder), 1, {"freezing": options.frozen})
        return
    import torch

    torch.set_num_threads(1)
    images, labels = fashion_rows()
    images = np.ascontiguousarray(images)
    core_w = cpu_power(EnergyConfig()).core_w
    names = options.variants or [variant.name for variant in family.variants]
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(options.cache_dir or folder).absolute()
        for name in names:
            runs = prepared(family, family.variant(name), cache)
            said = {kind: answers(run, images, family.max_batch) for kind, run in runs.items()}
            for batch in (1, family.max_batch):
                inputs = [images[:batch]]
                taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in runs}
                for number in range(options.rounds + 1):
                    for kind, run in runs.items():
                        found = once(run, inputs, options.least_ms)
                        if number:  # the first one warms
                            taken[kind].append(found)
                plain = statistics.median(cpu for _, cpu in taken[PLAIN])
                for kind, pairs in taken.items():
                    ms, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
                    apart = float(np.abs(said[kind] - said[PLAIN]).max())
                    same = float(np.mean(said[kind].argmax(axis=1) == said[PLAIN].argmax(axis=1)))
                    right = float(np.mean(said[kind].argmax(axis=1) == labels))
                    joules = cpu * core_w / 1e3
                    rows.append([name, batch, kind, ms, cpu, joules, cpu / plain, apart, f"{same:.2%}", f"{right:.2%}"])
                    figures[f"{name}, {batch}, {kind}"] = {
                        "ms": ms, "cpu_ms": cpu, "j": joules, "apart": apart, "same": same, "right": right,
                    }  # fmt: skip
    columns = [
        "variant",
        "batch",
        "",
        "ms a row",
        "CPU-ms a row",
        "J a row",
        "CPU / module",
        "apart",
        "same first answer",
        "right",
    ]
    where = f"{provenance()['cores']} cores, one thread, {options.rounds} rounds"
    where += f" (ms and CPU measured, J modelled at {core_w:g} W a core)"
    show(where, columns, rows)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
