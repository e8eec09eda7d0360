"""The committed descriptors: they are what the source says, and what Triton's clients speak."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

pytest.importorskip("grpc", reason="the extra grpc is not installed")

from google.protobuf import descriptor_pb2

from clover.grpc import compile as compiler
from clover.grpc.messages import POOL, SERVICE


def test_the_descriptors_are_those_of_the_source() -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    kinds = descriptor_pb2.FileDescriptorSet
    kept = (compiler.FOLDER / compiler.DESCRIPTORS).read_bytes()
    assert kinds.FromString(compiler.compile_protos()) == kinds.FromString(kept), "run python -m clover.grpc.compile"


def test_names_and_numbers_are_those_of_tritons_client() -> None:
    """Triton's own messages live in the common pool of this process, ours in another."""
    try:
        theirs: Any = importlib.import_module("tritonclient.grpc.service_pb2")
    except Exception as error:
        pytest.skip(f"tritonclient's messages cannot be had: {error}")
    compared = 0

    def compare(ours: Any, other: Any) -> None:
        nonlocal compared
        for field in ours.fields:
            twin = other.fields_by_name[field.name]
            assert (twin.number, twin.type, twin.is_repeated) == (field.number, field.type, field.is_repeated), (
                field.name
            )
            compared += 1
        for name, nested in ours.nested_types_by_name.items():
            compare(nested, other.nested_types_by_name[name])

    file = POOL.FindFileContainingSymbol(SERVICE)
    for name, message in file.message_types_by_name.items():
        found = theirs.DESCRIPTOR.pool.FindMessageTypeByName(f"inference.{name}")
        compare(message, found)
    values = theirs.DESCRIPTOR.pool.FindEnumTypeByName("inference.DataType").values_by_name
    assert {name: value.number for name, value in file.enum_types_by_name["DataType"].values_by_name.items()} == {
        name: value.number for name, value in values.items()
    }
    calls = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for name, call in file.services_by_name["GRPCInferenceService"].methods_by_name.items():
        assert (call.input_type.name, call.output_type.name) == (
            calls[name].input_type.name,
            calls[name].output_type.name,
        )
        assert (call.client_streaming, call.server_streaming) == (
            calls[name].client_streaming,
            calls[name].server_streaming,
        )
    assert compared > 90
