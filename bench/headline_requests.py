"""What `bench.headline` sends of a family, and how it judges the answers.

Rows are those that the family keeps for evaluation, with their labels.  EfficientNet-Lite has none: ImageNet cannot be
had here.  It gets drawn pictures, and an answer counts as the published accuracy of the variant that gave it, if it is
what that variant says of the picture when the plain libraries run it, else as nothing.

Numbers and texts travel as JSON.  Pictures travel as bytes, in a binary tensor, to servers that take one, and as text
in base64, in JSON, to the others.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.headline_work import VariantWork, variant_work
from bench.load import Body, Sample
from clover import families

TAKE_BYTES = frozenset({"clover", "base", "pytriton"})
"""Servers whose wire has binary tensors."""
_ROWS = 5000
_DRAWN, _WIDE, _HIGH = 64, 640, 480

Judge = Callable[[Body, Sample, bytes], float]
"""What an answer counts as: 1 if it is right, 0 if it is wrong, or the probability that it is right."""


def rows_of(family: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return rows to ask for and their labels; None if the family has no labelled rows."""
    spec = families.load_family(family)
    if spec.evaluation is None:
        return drawn(), None
    inputs, labels = families.load_evaluation(spec, "held_out")
    mixed = np.random.RandomState(3).permutation(len(labels))[:_ROWS]  # they may be sorted by label
    return inputs[0][mixed], labels[mixed]


def drawn(count: int = _DRAWN) -> NDArray[Any]:
    """Return JPEGs [pictures, 1] of coloured clouds with discs and noise, the same ones every time."""
    from PIL import Image, ImageDraw

    generator = np.random.RandomState(7)  # unlike default_rng the same in every NumPy
    found = np.empty((count, 1), object)
    for at in range(count):
        rough = generator.randint(0, 256, (6, 8, 3)).astype(np.uint8)
        image = Image.fromarray(rough).resize((_WIDE, _HIGH), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for _ in range(8):
            x, y, r = generator.randint(0, _WIDE), generator.randint(0, _HIGH), generator.randint(10, 120)
            pen.ellipse((x - r, y - r, x + r, y + r), tuple(int(part) for part in generator.randint(0, 256, 3)))
        noisy = np.asarray(image, np.float32) + 8.0 * generator.standard_normal((_HIGH, _WIDE, 1))
        written = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(written, "JPEG", quality=90)
        found[at, 0] = written.getvalue()
    return found


def bodies_of(work: VariantWork, rows: NDArray[Any], *, binary: bool) -> list[Body]:
    """Return a request for each row; `binary`: with its input as bytes behind the JSON."""
    made = json_request if not binary else binary_request
    return [made(work, f"row-{at}", at, values) for at, values in enumerate(rows)]


def json_request(work: VariantWork, identity: str, row: int, values: NDArray[Any]) -> Body:
    """Return a request of one row, all of it JSON."""
    data: list[Any]
    if work.input.datatype == "BYTES":
        decode = base64.b64encode if work.pictures else bytes
        data = [decode(bytes(value)).decode() for value in np.asarray(values).reshape(-1)]
    else:
        data = np.round(np.asarray(values, float).reshape(-1), 6).tolist()
    tensor = {"name": work.input.name, "shape": [1, *work.input.shape], "datatype": work.input.datatype, "data": data}
    payload = orjson.dumps({"id": identity, "inputs": [tensor], **_asked(work)})
    return Body(payload, identity, row, b"Content-Type: application/json\r\n")


def binary_request(work: VariantWork, identity: str, row: int, values: NDArray[Any]) -> Body:
    """Return a request of one row of BYTES, with the values, each behind its length, after the JSON."""
    parts = [bytes(value) for value in np.asarray(values).reshape(-1)]
    data = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    tensor: dict[str, Any] = {"name": work.input.name, "shape": [1, *work.input.shape], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = orjson.dumps({"id": identity, "inputs": [tensor], **_asked(work)})
    fields = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n" % len(head)
    return Body(head + data, identity, row, fields)


def _asked(work: VariantWork) -> dict[str, Any]:
    """Return the part of a request that names its output, in JSON, if the family has others."""
    if len(work.family.outputs) == 1:
        return {}
    return {"outputs": [{"name": work.output.name, "parameters": {"binary_data": False}}]}


def judge_of(family: str, rows: NDArray[Any], labels: NDArray[Any] | None, served: str) -> Judge:
    """Return what an answer of a server of a family counts as.  `served`: the variant that it serves; empty if the
    receipt says which one answered."""
    if labels is None:
        return _published(family, rows, served)
    if labels.dtype.kind == "U":
        return lambda body, _, answer: float(_data(answer)[0] == labels[body.row])
    return lambda body, _, answer: float(int(np.argmax(_data(answer))) == int(labels[body.row]))


def _published(family: str, rows: NDArray[Any], served: str) -> Judge:
    spec = families.load_family(family)
    names = [served] if served else [variant.name for variant in spec.variants]
    expected = {name: _answers(f"{family}:{name}", rows) for name in names}
    accuracies = {variant.name: variant.accuracy.value for variant in spec.variants if variant.accuracy is not None}

    def judge(body: Body, sample: Sample, answer: bytes) -> float:
        name = served or sample.variant
        return accuracies[name] / 100.0 if _data(answer)[0] == expected[name][body.row] else 0.0

    return judge


def _answers(work: str, rows: NDArray[Any]) -> Sequence[str]:
    run = variant_work(work).model()
    return [run(rows[at : at + 1])[0, 0].decode() for at in range(len(rows))]


def _data(answer: bytes) -> list[Any]:
    found: list[Any] = orjson.loads(answer)["outputs"][0]["data"]
    return found
