"""A Triton repository made by code: models that Clover can serve, and ones that it must refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

IMPORTED = ("affine", "scripted", "shout", "threshold")
REFUSED = {
    "chat": "decoupled",
    "engine": "TensorRT plan",
    "forest": "skl2onnx",
    "odd": "'lasagne' is unknown",
    "pipeline": "ensembles are not imported",
    "stream": "sequence_batching",
    "typo": "'max_batchsize' is not known",
}

_IO = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" } ]
"""
_SHOUT = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.mark = config["parameters"]["mark"]["string_value"].encode()
        self.dtype = pb_utils.triton_string_to_numpy(pb_utils.get_output_config_by_name(config, "long")["data_type"])

    def execute(self, requests):
        answers = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
            loud = np.array([[one.upper() + self.mark for one in row] for row in text], dtype=object)
            long = np.array([[len(one) for one in row] for row in text], dtype=self.dtype)
            tensors = [pb_utils.Tensor("long", long), pb_utils.Tensor("loud", loud)]
            answers.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return answers
"""
IO = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 64 ] } ]
"""
PYTHON = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.mark = parameters.get("mark", {}).get("string_value", "").encode()

    def execute(self, requests):
        rows = np.zeros((len(requests[0].inputs()[0].as_numpy()), 64), np.float32)
        rows[:, : len(self.mark)] = list(self.mark)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", rows)])]
"""
"""A model whose answers, of `IO`, are the bytes of its parameter `mark`."""

WEIGHT = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], np.float32)


def model(root: Path, name: str, config: str, version: int = 1, **files: bytes | str) -> Path:
    """Write a model; `files` stand in the folder of its version, "__" for a dot."""
    folder = root / name
    (folder / str(version)).mkdir(parents=True)
    (folder / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    for file, content in files.items():
        path = folder / str(version) / file.replace("__", ".")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def affine(rows: str | int = "batch", width: int = 3) -> bytes:
    """Return an ONNX model: y = x W."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 2])],
        [numpy_helper.from_array(np.resize(WEIGHT, (width, 2)), "w")],
    )
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    text: bytes = made.SerializeToString()
    return text


def branching(factor: float, width: int = 3) -> bytes:
    """Return an ONNX model: y = x W `factor`, W in both branches of an If and no initializer outside of these."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w{name}"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.resize(WEIGHT, (width, 2)), f"w{name}")],
        )
        for name in ("yes", "no")
    ]
    total = helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)
    zero = numpy_helper.from_array(np.zeros((), np.float32))
    times = numpy_helper.from_array(np.full((1,), factor, np.float32))
    nodes = [
        total,
        helper.make_node("Constant", [], ["zero"], value=zero),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["product"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Constant", [], ["times"], value=times),
        helper.make_node("Mul", ["product", "times"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "branching",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    text: bytes = made.SerializeToString()
    return text


def scripted(path: Path) -> None:
    """Write a TorchScript model of two inputs, given by name."""
    import warnings

    import torch

    class Plus(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left - 2 * right

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Plus()), str(path))


def write_repository(root: Path) -> Path:
    """Write the repository."""
    onnx = affine()
    folder = model(
        root,
        "affine",
        'platform: "onnxruntime_onnx" max_batch_size: 8'
        + _IO
        + "dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 500 }\n"
        "instance_group [ { count: 2 kind: KIND_CPU } ]\nversion_policy: { all { } }",
        version=3,
        model__onnx=onnx,
    )
    (folder / "labels.txt").write_text("left\nright\n")
    (folder / "1").mkdir()
    (folder / "1" / "model.onnx").write_bytes(affine())
    model(
        root,
        "threshold",
        'backend: "onnxruntime" max_batch_size: 0\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 1, 3 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, 2 ] } ]',
        model__onnx=affine(rows=1),
    )
    folder = model(
        root,
        "scripted",
        'backend: "pytorch" max_batch_size: 4\n'
        'input [ { name: "left" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } },'
        ' { name: "right" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } } ]\n'
        'output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } } ]',
    )
    scripted(folder / "1" / "model.pt")
    model(
        root,
        "shout",
        'backend: "python" max_batch_size: 16\n'
        'input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]\n'
        'output [ { name: "loud" data_type: TYPE_STRING dims: [ 1 ] },'
        ' { name: "long" data_type: TYPE_INT32 dims: [ 1 ] } ]\n'
        'parameters { key: "mark" value: { string_value: "\\x21" } }',
        model__py=_SHOUT,
    )
    model(root, "pipeline", f'platform: "ensemble" max_batch_size: 8 {_IO} ensemble_scheduling {{ step [ ] }}')
    model(root, "chat", 'backend: "python" max_batch_size: 8 model_transaction_policy { decoupled: true }' + _IO)
    model(root, "engine", 'platform: "tensorrt_plan" max_batch_size: 8' + _IO, model__plan=b"plan")
    model(root, "forest", 'backend: "fil" max_batch_size: 8' + _IO)
    model(root, "odd", 'backend: "lasagne" max_batch_size: 8' + _IO)
    model(root, "stream", 'backend: "onnxruntime" max_batch_size: 8 sequence_batching { }' + _IO, model__onnx=onnx)
    model(root, "typo", 'backend: "onnxruntime" max_batchsize: 8' + _IO, model__onnx=onnx)
    return root


def loaded(folder: Path) -> Any:
    """Return the only variant of a family as a function of arrays."""
    import torch

    from clover import families

    spec = families.load_family(str(folder))
    variant = spec.variants[0]
    found = families.resolve(variant.loader, folder)(variant, folder)
    if variant.kind == "python":
        return found

    def run(arrays: list[Any]) -> list[Any]:
        with torch.inference_mode():
            return [one.numpy() for one in found(*map(torch.from_numpy, arrays))]

    return run
