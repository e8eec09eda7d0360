"""One variant of a family behind the servers of `bench.wire.peers`: what `bench.headline` has them serve.

Families that take pictures have steps before the model.  The others have none of Clover's code for that: here they are
what the plain libraries take for the same pixels (pillow and NumPy, as timm's and PP-OCR's own transforms have it), and
no more of it.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover import backends, families
from clover.types import FamilySpec, TensorSpec, VariantSpec

FOLDER = "BENCH_ARTIFACTS"
"""Environment variable: where compiled variants lie."""
BACKEND = "BENCH_BACKEND"
"""Environment variable: what runs the variant; "eager" if it is not set."""

Run = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]


class VariantWork:
    """A variant by "family:variant", with one input and one output; JSON alone, but for Triton."""

    binary = False

    def __init__(self, name: str) -> None:
        family, _, variant = name.partition(":")
        self.name = name
        self.family: FamilySpec = families.load_family(family)
        self.variant: VariantSpec = self.family.variant(variant)
        self.pictures = self.family.steps is not None
        self.input: TensorSpec = self.family.inputs[0]
        self.output: TensorSpec = self.family.outputs[0]

    def array(self, data: Sequence[Any]) -> NDArray[Any]:
        """Return the rows [rows, *shape] of a tensor's values, BYTES as objects.  A picture is bytes, or text of them
        in base64."""
        if self.input.datatype != "BYTES":
            return np.array(data, np.float32).reshape(-1, *self.input.shape)
        encode = base64.b64decode if self.pictures else str.encode
        found = np.empty((len(data), *self.input.shape), object)
        found.reshape(-1)[:] = [each if isinstance(each, bytes) else encode(each) for each in data]
        return found

    def gather(self, documents: Sequence[Any]) -> NDArray[Any]:
        """Return the rows of some requests of one row each."""
        return np.concatenate([self.array(document["inputs"][0]["data"]) for document in documents])

    def model(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """Return a function from rows to answers of the first output, on one thread."""
        name = os.environ.get(BACKEND, "eager")
        folder = backends.artifact_dir(Path(os.environ.get(FOLDER, ".")), self.family, self.variant, name, 1)
        run = backends.get(name).load(self.family, self.variant, folder, 1)
        if self.family.name == "ocr":
            return functools.partial(lines_read, run)
        if self.family.name == "efficientnet_lite":
            names = (Path(self.family.folder) / "labels.txt").read_text(encoding="utf-8").splitlines()
            edge, size = (int(self.variant.parameters[key]) for key in ("resize", "size"))
            return functools.partial(objects_named, run, [name.encode() for name in names], edge, size)
        return lambda rows: run([rows])[0]


def lines_read(run: Run, rows: NDArray[Any]) -> NDArray[Any]:
    """Return the texts [rows, 1] of pictures of lines [rows, 1]; those that are equally wide are read together."""
    found = np.empty((len(rows), 1), object)
    lines = [line_of(picture) for picture in rows.reshape(-1)]
    for width in {line.shape[1] for line in lines}:
        places = [at for at, line in enumerate(lines) if line.shape[1] == width]
        found[places] = run([np.stack([lines[at] for at in places])])[0]
    return found


def line_of(picture: bytes) -> NDArray[np.uint8]:
    """Return a picture as PP-OCR scales it: 48 pixels high, as wide as that makes it, UINT8 [48, width, 3].

    A much larger JPEG is decoded at a part of its size, as Clover's step does.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(picture))
    width = min(1600, max(1, math.ceil(48 * image.width / image.height)))
    image.draft(None, (4 * width, 4 * 48))
    return np.asarray(image.convert("RGB").resize((width, 48), Image.Resampling.BILINEAR))


def objects_named(run: Run, names: list[bytes], edge: int, size: int, rows: NDArray[Any]) -> NDArray[Any]:
    """Return the likeliest name [rows, 1] of what is on pictures [rows, 1]."""
    pixels = np.stack([pixels_of(picture, edge, size) for picture in rows.reshape(-1)])  # in the order of `pixels_of`
    logits = run([np.ascontiguousarray(pixels)])[0]
    found = np.empty((len(rows), 1), object)
    found[:, 0] = [names[at] for at in logits.argmax(axis=1)]
    return found


def pixels_of(picture: bytes, edge: int, size: int) -> NDArray[np.float32]:
    """Return a picture as timm transforms it for EfficientNet-Lite: the shorter side `edge` pixels, the middle `size`
    of both, FP32 [3, size, size] in -1..1."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    wide, high = image.size
    to = (edge, int(edge * high / wide)) if wide < high else (int(edge * wide / high), edge)
    image = image.resize(to, Image.Resampling.BICUBIC)
    left, top = round((to[0] - size) / 2), round((to[1] - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1).astype(np.float32)
    pixels /= np.float32(127.5)
    pixels -= np.float32(1)
    return pixels


@functools.cache
def variant_work(name: str) -> VariantWork:
    """Return the work of that name, made once a process."""
    return VariantWork(name)
