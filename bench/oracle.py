"""What every variant of the default family should answer, computed apart from the server that is to be checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.load import Body, Check, Sample
from clover import families

TOLERANCE = 5e-3
"""Largest difference in a probability that backends' rounding explains; two different images differ by far more."""


EXACT = ("eager", "aoti", "onnxruntime")
"""Backends that answer as `expected` does within `TOLERANCE`; the answers of quantised models differ by more, and
nothing tells them from another row's then."""


def expected(images: NDArray[Any], family: str = "fashion") -> dict[str, NDArray[Any]]:
    """Return probabilities [n, classes] of every variant, run eagerly in this process."""
    import torch

    spec = families.load_family(family)
    folder = Path(spec.folder)
    torch.set_num_threads(1)
    answers = {}
    with torch.inference_mode():
        for variant in spec.variants:
            module = families.resolve(variant.loader, folder)(variant, folder)
            batches = torch.split(torch.from_numpy(np.ascontiguousarray(images)), 250)
            parts = [module(batch) for batch in batches]
            answers[variant.name] = torch.cat(parts).numpy()
    return answers


def scorer(answers: dict[str, NDArray[Any]], labels: NDArray[Any]) -> Check:
    """Return a check that scores an answer by its label, and marks it where it is not its variant's answer to its
    row."""

    def check(body: Body, sample: Sample, answer: bytes) -> None:
        got = np.asarray(orjson.loads(answer)["outputs"][0]["data"], dtype=np.float32)
        want = answers.get(sample.variant)
        if want is None or got.shape != want[body.row].shape or np.abs(got - want[body.row]).max() > TOLERANCE:
            sample.mismatch = True
        sample.correct = bool(got.argmax() == labels[body.row])

    return check
