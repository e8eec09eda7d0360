"""Train, or only score, the variants of the `fashion` family: `python -m clover.models.fashion.train`.

Each variant is trained with batch normalisation after every convolution, AdamW under a one-cycle learning rate and
label smoothing; the larger variants see images mirrored, and some shifted.  Then the normalisation is folded into
the convolutions, the weights are rounded to float16 and written, and the accuracy printed is that of the file on disk.

The process uses one thread: run two at once on two cores, each with its own variants.  The seed fixes the weights on
one machine and torch version; elsewhere the last digits differ.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .data import TRAIN_IMAGES, TRAIN_LABELS, load_test, pixels, read_idx

if TYPE_CHECKING:
    import torch

    from clover.types import FamilySpec

    from .model import Classifier

FOLDER = Path(__file__).resolve().parent
SEED = 7
BATCH = 128

EPOCHS = {"tiny": 12, "small": 12, "medium": 10, "large": 4, "xlarge": 7}
SHIFT_PIXELS = {"medium": 2, "large": 0, "xlarge": 0}
"""Largest random shift, in pixels, of the variants that see mirrored and shifted images.  The two cheapest do not: they
have too few weights to fit even the plain images.  Shifts would cost the largest more epochs than it is given."""
TEACHER = {"large": "xlarge"}
"""Rungs that learn from the answers of a larger one, which is trained first, as well as from the labels."""
TEACHER_SHARE, TEACHER_TEMPERATURE = 0.7, 2.0
PEAK_RATE = {"tiny": 0.01, "small": 0.01, "medium": 0.006, "large": 0.004, "xlarge": 0.004}

HOW_TO_GET = """\
the training images are not here: give the folder that holds {images} and {labels} with --dataset FOLDER.
They are Debian's package dataset-fashion-mnist (apt-get install dataset-fashion-mnist puts them into
/usr/share/datasets/fashion-mnist), or the four files of the project zalandoresearch/fashion-mnist (MIT licence)."""


def wilson_interval(correct: int, rows: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share, in percent."""
    z = 1.959964
    share = correct / rows
    centre = share + z * z / (2 * rows)
    spread = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 100 / (1 + z * z / rows)
    return (centre - spread) * scale, (centre + spread) * scale


def epoch_of(
    images: NDArray[np.float32], labels: NDArray[np.int64], generator: np.random.Generator, shift: int | None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield one epoch of batches in random order, mirrored and shifted by up to `shift` pixels (None: unchanged)."""
    order = generator.permutation(len(images))
    if shift is None:
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield images[chosen], labels[chosen]
        return
    padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (28, 28), axis=(2, 3))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        down, right = generator.integers(0, 2 * shift + 1, (2, BATCH))
        batch = np.ascontiguousarray(windows[chosen, :, down, right])
        mirrored = generator.random(BATCH) < 0.5
        batch[mirrored] = batch[mirrored][..., ::-1]
        yield batch, labels[chosen]


def with_normalisation(model: Classifier) -> torch.nn.Sequential:
    """Return the same layers (shared) with batch normalisation after every convolution."""
    from torch import nn

    layers: list[nn.Module] = []
    for layer in model.layers:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*layers)


def folded(trained: torch.nn.Sequential) -> list[torch.nn.Module]:
    """Return the layers of `trained` with every batch normalisation folded into the convolution before it."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    layers: list[nn.Module] = []
    for layer in trained.eval():
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers[-1]
            assert isinstance(convolution, nn.Conv2d)
            layers[-1] = fuse_conv_bn_eval(convolution, layer)
        else:
            layers.append(layer)
    return layers


def train(name: str, dataset: Path, weights: Path) -> None:
    """Train variant `name` on the 60,000 images in `dataset` and write its weights as float16 safetensors."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from clover.families import load_family

    from .model import PIXEL_MEAN, PIXEL_STD, Classifier, load

    torch.manual_seed(SEED)
    generator = np.random.default_rng(SEED)
    images = (pixels(read_idx(dataset / TRAIN_IMAGES)) - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    labels = read_idx(dataset / TRAIN_LABELS).astype(np.int64)

    model = Classifier(name)
    network = with_normalisation(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    epochs, steps = EPOCHS[name], len(images) // BATCH
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE[name], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=PEAK_RATE[name], total_steps=epochs * steps, pct_start=0.25
    )
    label_loss = nn.CrossEntropyLoss(label_smoothing=0.05)
    teacher: Classifier | None = None
    if name in TEACHER:
        loaded = load(load_family(str(FOLDER)).variant(TEACHER[name]), FOLDER)
        assert isinstance(loaded, Classifier)
        teacher = loaded
    for epoch in range(epochs):
        network.train()
        started, total = time.process_time(), 0.0
        for batch, targets in epoch_of(images, labels, generator, SHIFT_PIXELS.get(name)):
            scores = network(torch.from_numpy(batch).to(memory_format=torch.channels_last))
            loss = label_loss(scores, torch.from_numpy(targets))
            if teacher is not None:
                with torch.no_grad():
                    wanted = teacher.layers(torch.from_numpy(batch)) / TEACHER_TEMPERATURE
                distance = torch.nn.functional.kl_div(
                    torch.log_softmax(scores / TEACHER_TEMPERATURE, 1),
                    torch.softmax(wanted, 1),
                    reduction="batchmean",
                )
                loss = (1 - TEACHER_SHARE) * loss + TEACHER_SHARE * TEACHER_TEMPERATURE**2 * distance
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(
            f"{name} epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {time.process_time() - started:.0f} CPU-s",
            flush=True,
        )

    model.layers = nn.Sequential(*folded(network))
    weights.parent.mkdir(exist_ok=True)
    save_file({key: tensor.half().contiguous() for key, tensor in model.state_dict().items()}, weights)
    weights.chmod(0o644)  # safetensors writes for the owner alone


def evaluate(spec: FamilySpec, name: str) -> None:
    """Print accuracy on all 10,000 test images and milliseconds a batch for the weights on disk."""
    import torch

    from .model import load

    variant = spec.variant(name)
    model = load(variant, FOLDER)
    images, labels = load_test(FOLDER)
    with torch.inference_mode():
        answers = np.concatenate(
            [model(torch.from_numpy(part)).argmax(1).numpy() for part in np.array_split(images, 100)]
        )
        batch_ms = [milliseconds(model, torch.from_numpy(images[:batch])) for batch in (1, 8, 32)]
    correct = int((answers == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    parameters = sum(tensor.numel() for tensor in model.parameters())
    size = (FOLDER / variant.weights).stat().st_size
    timing = " / ".join(f"{value:.2f}" for value in batch_ms)
    print(
        f"{name:7s} top-1 {100 * correct / len(labels):.2f} % [{low:.2f}, {high:.2f}] n={len(labels)}  "
        f"{parameters} parameters, {size} bytes, {timing} ms at batch 1/8/32",
        flush=True,
    )


def milliseconds(model: Any, batch: torch.Tensor, repeats: int = 50) -> float:
    """Return median wall milliseconds of one call, after five to warm up."""
    times = []
    for repeat in range(repeats + 5):
        started = time.perf_counter()
        model(batch)
        if repeat >= 5:
            times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m clover.models.fashion.train", description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", help=f"variants to train; all by default: {', '.join(EPOCHS)}")
    parser.add_argument("--dataset", type=Path, default=Path(), help="folder with the gzipped training files")
    parser.add_argument("--evaluate", action="store_true", help="only score the weights that are here")
    options = parser.parse_args(arguments)
    names = options.variants or list(EPOCHS)
    unknown = [name for name in names if name not in EPOCHS]
    if unknown:
        parser.error(f"unknown variant {unknown[0]}: it is one of {', '.join(EPOCHS)}")
    missing = [file for file in (TRAIN_IMAGES, TRAIN_LABELS) if not (options.dataset / file).is_file()]
    if missing and not options.evaluate:
        print(HOW_TO_GET.format(images=TRAIN_IMAGES, labels=TRAIN_LABELS), file=sys.stderr)
        return 2

    # Set before torch is imported, which reads them then: by default its threads spin on every core, and are slower.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    import torch

    torch.set_num_threads(1)
    for name in names:
        if not options.evaluate:
            train(name, options.dataset, FOLDER / "weights" / f"{name}.safetensors")
    # Read only now: a family whose weights are missing is refused, and here they may just have been written.
    from clover.families import load_family

    spec = load_family(str(FOLDER))
    for name in names:
        evaluate(spec, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
