"""The files in which ONNX files keep their weights are found wherever in the model these are used."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover import families
from clover.families.onnx_files import ExternalTensor, external_bytes, external_files, external_tensors
from tests.support.family_folder import BASE, write

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")

names = st.text("abc.-", min_size=1, max_size=200)
numbers = st.integers(0, 2**40)
tensors = st.one_of(st.none(), st.builds(ExternalTensor, names, numbers, numbers | st.just(-1)))
"""A tensor that is external, or (None) one that is not."""
graphs: st.SearchStrategy[list[Any]] = st.recursive(
    st.lists(st.tuples(st.sampled_from(["initializer", "sparse"]), tensors), max_size=3),
    lambda inner: st.lists(
        st.one_of(
            st.tuples(st.just("initializer"), tensors),
            st.tuples(st.sampled_from(["t", "tensors"]), tensors),
            st.tuples(st.sampled_from(["g", "graphs"]), inner),
        ),
        max_size=4,
    ),
    max_leaves=8,
)


def fill(tensor: Any, said: ExternalTensor | None) -> None:
    tensor.name, tensor.data_type = "w", 1
    if said is None:
        tensor.raw_data = bytes(300)
        tensor.external_data.add(key="location", value="of a tensor that is not external")
        return
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", said.location), ("offset", said.offset), ("length", said.length)):
        if value != -1:
            tensor.external_data.add(key=key, value=str(value))


def fill_graph(graph: Any, items: list[Any], nodes: Any) -> list[ExternalTensor]:
    """Put the items into a graph, or a function without initializers, and return the external tensors among them."""
    found = []
    for where, item in items:
        if where in ("g", "graphs"):
            inner = nodes.add(op_type="If").attribute.add(name="x")
            inner = inner.g if where == "g" else inner.graphs.add()
            inner.SetInParent()
            found += fill_graph(inner, item, inner.node)
            continue
        if where == "initializer":
            tensor = graph.initializer.add()
        elif where == "sparse":
            tensor = graph.sparse_initializer.add().values
        else:
            attribute = nodes.add(op_type="Constant", doc_string="text " * 40).attribute.add(name="value", f=0.5)
            tensor = attribute.t if where == "t" else attribute.tensors.add()
        fill(tensor, item)
        found += [] if item is None else [item]
    return found


@settings(max_examples=60, deadline=None)
@given(graphs, graphs)
def test_external_tensors_are_found_in_graphs_in_each_other_attributes_and_functions(
    items: list[Any], function: list[Any]
) -> None:
    model = onnx.ModelProto(ir_version=10, producer_name="a test")
    expected = fill_graph(model.graph, items, model.graph.node)
    function = [item for item in function if item[0] not in ("initializer", "sparse")]
    expected += fill_graph(None, function, model.functions.add(name="f").node)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.onnx"
        file.write_bytes(model.SerializeToString())
        assert sorted(external_tensors(file), key=repr) == sorted(expected, key=repr)
        assert external_files(file) == sorted({one.location for one in expected})


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.integers(0, 10**6))
def test_what_is_no_onnx_file_is_a_value_error_or_has_no_external_tensor(content: bytes | int) -> None:
    if isinstance(content, int):  # a file that ends too early, or has one byte that is another
        model = onnx.ModelProto()
        fill(model.graph.initializer.add(), ExternalTensor("w.bin", 3, 4))
        whole: bytes = model.SerializeToString()
        at = content % len(whole)
        other = b"" if content % 2 else bytes([whole[at] ^ 0x41]) + whole[at + 1 :]
        content = whole[:at] + other
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.onnx"
        file.write_bytes(content)
        with contextlib.suppress(ValueError):
            assert all(isinstance(one.location, str) for one in external_tensors(file))


def test_bytes_are_what_tensors_take_of_their_files(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    fill(model.graph.initializer.add(), ExternalTensor("w.bin", 8, 4))
    fill(model.graph.initializer.add(), ExternalTensor("w.bin", 16))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(100))
    assert external_bytes(tmp_path / "model.onnx") == 4 + 84


def test_the_digest_of_a_family_follows_the_weights_that_lie_beside_onnx_files(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    fill(model.graph.node.add().attribute.add().g.initializer.add(), ExternalTensor("w.data"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.onnx").write_bytes(model.SerializeToString())
    seen = set()
    for content in (None, b"a weight", b"b weight"):
        if content is not None:
            (tmp_path / "weights" / "w.data").write_bytes(content)
        spec = families.load_family(str(write(tmp_path, BASE.replace("w.bin", "w.onnx"))))
        seen |= {spec.digest, families.digest_of_variant(spec, "only")}
    assert len(seen) == 6
    (tmp_path / "weights" / "other.data").write_bytes(b"no part of it")
    assert families.load_family(str(tmp_path)).digest in seen
    (tmp_path / "weights" / "w.onnx").write_bytes(b"no model")
    assert families.load_family(str(tmp_path)).digest not in seen, "the worker says what is wrong with it"
