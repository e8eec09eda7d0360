"""One variant of a family behind the servers of `bench.wire.peers`: what `bench.headline` has them serve."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover import backends, families
from clover.types import FamilySpec, VariantSpec

FOLDER = "BENCH_ARTIFACTS"
"""Environment variable: where compiled variants lie."""
BACKEND = "BENCH_BACKEND"
"""Environment variable: what runs the variant; "eager" if it is not set."""


class VariantWork:
    """A variant by "family:variant", with one input and one output; JSON alone."""

    binary = False

    def __init__(self, name: str) -> None:
        family, _, variant = name.partition(":")
        self.name = name
        self.family: FamilySpec = families.load_family(family)
        self.variant: VariantSpec = self.family.variant(variant)

    def array(self, data: Sequence[Any]) -> NDArray[Any]:
        """Return the rows [rows, *shape] of a JSON tensor's values, BYTES as objects."""
        spec = self.family.inputs[0]
        if spec.datatype == "BYTES":
            found = np.empty((len(data), *spec.shape), object)
            found.reshape(-1)[:] = [text if isinstance(text, bytes) else str(text).encode() for text in data]
            return found
        return np.array(data, np.float32).reshape(-1, *spec.shape)

    def gather(self, documents: Sequence[Any]) -> NDArray[Any]:
        """Return the rows of some requests of one row each."""
        return np.concatenate([self.array(document["inputs"][0]["data"]) for document in documents])

    def model(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """Return a function from rows to answers, on one thread."""
        name = os.environ.get(BACKEND, "eager")
        folder = backends.artifact_dir(Path(os.environ.get(FOLDER, ".")), self.family, self.variant, name, 1)
        run = backends.get(name).load(self.family, self.variant, folder, 1)

        def answers(rows: NDArray[Any]) -> NDArray[Any]:
            return run([rows])[0]

        return answers


@functools.cache
def variant_work(name: str) -> VariantWork:
    """Return the work of that name, made once a process."""
    return VariantWork(name)
