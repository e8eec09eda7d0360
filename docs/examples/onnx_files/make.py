"""Two ONNX files that answer the same question become a family: which of three rings holds a point?

Needs the extra `onnx`.  In a copy of this folder:

    $ python make.py  # writes small.onnx, large.onnx and rows.csv; no torch
    $ python -m clover family new rings --from small.onnx --from large.onnx --evaluate rows.csv
    $ python -m clover serve ./rings --carbon static:400  # leave it running; the rest in a second terminal
    $ python -m clover infer rings '[0.3, -0.5]'
"""

from pathlib import Path

import numpy as np
import onnx

RINGS = np.array(["inner", "middle", "outer"])
GRAPH = """<ir_version: 8, opset_import: ["": 17]>
rings (float[N, 2] point) => (float[N, 3] scores) {
    mixed = MatMul(point, mix)
    shifted = Add(mixed, shift)
    hidden = Relu(shifted)
    scores = MatMul(hidden, weights)
}"""


def points(count, seed):
    rows = np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)
    return rows, np.digitize(np.hypot(*rows.T), (0.5, 0.8))


def fit(width):  # random features, and weights by least squares
    random, (rows, labels) = np.random.default_rng(0), points(5000, 0)
    mix = random.standard_normal((2, width), np.float32)
    shift = random.standard_normal(width, np.float32)
    weights = np.linalg.lstsq(np.maximum(rows @ mix + shift, 0), np.eye(3)[labels], rcond=None)[0]
    model = onnx.parser.parse_model(GRAPH)
    for name, values in {"mix": mix, "shift": shift, "weights": weights.astype(np.float32)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


onnx.save(fit(12), "small.onnx")
onnx.save(fit(400), "large.onnx")
lines = [f"{x:.4f},{y:.4f},{RINGS[label]}" for (x, y), label in zip(*points(2000, 1), strict=True)]
Path("rows.csv").write_text("\n".join(["x,y,label", *lines]))
