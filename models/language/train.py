"""Train, or only score, the variants of the `language` family: `python -m clover.models.language.train`.

Trained on the sentences of the package `eld` whose part of the split is "train" (`data.py`), every second one cut at
random so that short texts are seen as well.  Adam with a rate that falls to zero, cross entropy with label smoothing,
some n-grams left out at random.  The weights are rounded to float16 and written; the accuracy that is printed is that
of the file on disk over the held-out sentences.

One thread, a fixed seed: the weights are the same every time on one machine and torch version.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .data import LANGUAGES, sentences
from .model import Detector, ngrams

if TYPE_CHECKING:
    from clover.types import FamilySpec

FOLDER = Path(__file__).resolve().parent
SEED = 7
BATCH = 128
EPOCHS = {"tiny": 12, "small": 10, "medium": 8, "large": 8}
RATE = {"tiny": 0.02, "small": 0.01, "medium": 0.006, "large": 0.004}
KEPT = {"tiny": 0.9, "small": 0.8, "medium": 0.7, "large": 0.6}
"""The part of the n-grams of a sentence that one step sees."""


def cut(text: str, generator: np.random.Generator) -> str:
    """Return a text as it is, every second time, or else some of it from a random word on."""
    if generator.random() < 0.5:
        return text
    begin = int(generator.integers(0, max(1, len(text) - 20)))
    return text[begin : begin + int(generator.integers(12, 80))]


def train(spec: FamilySpec, name: str) -> None:
    """Train variant `name` and write its weights as float16 safetensors."""
    import torch
    from safetensors.numpy import save_file

    parameters = spec.variant(name).parameters
    orders, bits, width, characters = (int(parameters[key]) for key in ("orders", "bits", "width", "characters"))
    torch.manual_seed(SEED)
    generator = np.random.default_rng(SEED)
    texts, labels = sentences("train")
    bag = torch.nn.EmbeddingBag(2**bits, width, mode="mean", sparse=True)
    torch.nn.init.normal_(bag.weight, std=0.1)
    linear = torch.nn.Linear(width, len(LANGUAGES))
    sparse = torch.optim.SparseAdam(list(bag.parameters()), lr=RATE[name])
    dense = torch.optim.Adam(linear.parameters(), lr=RATE[name])
    steps = EPOCHS[name] * (len(texts) // BATCH)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(one, RATE[name] * 2, steps) for one in (sparse, dense)]
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.02)
    for epoch in range(EPOCHS[name]):
        started, total = time.process_time(), 0.0
        order = generator.permutation(len(texts))
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[begin : begin + BATCH]
            buckets, begins = ngrams([cut(texts[at], generator) for at in chosen], orders, bits, characters)
            seen = generator.random(len(buckets)) < KEPT[name]
            seen[begins] = True  # no row is without an n-gram
            offsets = np.concatenate([[0], np.cumsum(seen)])[begins]
            scores = linear(bag(torch.from_numpy(buckets[seen]), torch.from_numpy(offsets)))
            loss = loss_of(scores, torch.from_numpy(labels[chosen]))
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            sparse.step()  # type: ignore[no-untyped-call]
            dense.step()
            for schedule in schedules:
                schedule.step()
            total += loss.item()
        spent = time.process_time() - started
        print(
            f"{name} epoch {epoch + 1}/{EPOCHS[name]}: loss {total * BATCH / len(order):.4f}, {spent:.0f} CPU-s",
            flush=True,
        )
    tensors = {"embeddings": bag.weight, "weight": linear.weight, "bias": linear.bias}
    path = FOLDER / spec.variant(name).weights
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.detach().numpy().astype(np.float16) for key, value in tensors.items()}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone


def evaluate(spec: FamilySpec, name: str, rows: tuple[list[str], NDArray[np.int64]]) -> None:
    """Print the accuracy over `rows` and milliseconds a batch of the weights on disk."""
    from .model import load

    variant = spec.variant(name)
    model = load(variant, FOLDER)
    assert isinstance(model, Detector)
    texts, labels = rows
    parts = [model.probabilities(texts[at : at + 32]) for at in range(0, len(texts), 32)]
    right = np.concatenate(parts).argmax(axis=1) == labels
    spread = 196 * float(right.std()) / len(right) ** 0.5
    timing = " / ".join(f"{milliseconds(model, texts[:batch]):.3f}" for batch in (1, 8, 32))
    size = (FOLDER / variant.weights).stat().st_size
    print(
        f"{name:7s} top-1 {100 * right.mean():.2f} % ± {spread:.2f} of {len(right)} held-out sentences, {size} bytes, "
        f"{timing} ms at batch 1/8/32"
    )


def milliseconds(model: Any, texts: Sequence[str], repeats: int = 50) -> float:
    """Return median CPU milliseconds of one call, after five to warm up."""
    times = []
    for repeat in range(repeats + 5):
        started = time.process_time()
        model.probabilities(texts)
        if repeat >= 5:
            times.append(time.process_time() - started)
    return float(np.median(times)) * 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m clover.models.language.train", description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", help=f"variants to train; all by default: {', '.join(EPOCHS)}")
    parser.add_argument("--evaluate", action="store_true", help="only score the weights that are here")
    options = parser.parse_args(arguments)
    names = options.variants or list(EPOCHS)
    unknown = [name for name in names if name not in EPOCHS]
    if unknown:
        parser.error(f"unknown variant {unknown[0]}: it is one of {', '.join(EPOCHS)}")

    # Set before torch is imported, which reads them then: by default its threads spin on every core, and are slower.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    from clover.families import load_family

    for path in (FOLDER / "weights" / f"{name}.safetensors" for name in EPOCHS):
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o644)  # a family whose weights are missing is refused, and here they are about to be written
    spec = load_family(str(FOLDER))
    if not options.evaluate:
        for name in names:
            train(spec, name)
    rows = sentences("held_out")
    for name in names:
        evaluate(spec, name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
