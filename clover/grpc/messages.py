"""The protocol's messages, made of the compiled descriptors when this module is imported; needs protobuf.

They live in a descriptor pool of their own: in the common one a program that embeds a server and uses Triton's client
would define them twice, which protobuf refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

POOL = descriptor_pool.DescriptorPool()
SERVICE = "inference.GRPCInferenceService"


def _load() -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("open_inference.binpb").read_bytes())
    for file in files.file:
        POOL.AddSerializedFile(file.SerializeToString())


def message_class(name: str) -> Any:
    """Return the class of a message of the protocol; raises KeyError."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


_load()

InferParameter = message_class("InferParameter")
ModelInferRequest = message_class("ModelInferRequest")
ModelInferResponse = message_class("ModelInferResponse")
