"""Compile open_inference.proto to the descriptors that the server loads: `python -m clover.grpc.compile`.

The descriptors are committed instead of generated code, which would refuse every other major version of protobuf.
"""

from __future__ import annotations

import importlib.resources
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = "open_inference.proto"
DESCRIPTORS = "open_inference.binpb"


def compile_protos() -> bytes:
    """Return the serialized `FileDescriptorSet` of the source; needs grpcio-tools."""
    from grpc_tools import protoc

    protos = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, DESCRIPTORS)
        if protoc.main(["protoc", f"-I{FOLDER}", f"-I{protos}", f"--descriptor_set_out={made}", SOURCE]) != 0:
            raise SystemExit(1)
        return made.read_bytes()


if __name__ == "__main__":
    (FOLDER / DESCRIPTORS).write_bytes(compile_protos())
