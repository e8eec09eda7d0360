"""TensorRT's Python module as far as a worker calls it, with engines that are exported programs on the CPU.

Tensors are read from and written to the addresses that a context is given, as the real one does.  What is asked in a
way that TensorRT refuses, or in an order that it does not allow, raises AssertionError.
"""

from __future__ import annotations

import ctypes
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

NAMES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "bool": "BOOL", "uint8": "UINT8"}


class Recorded:
    """What a CUDA graph does, on the CPU: the same places are read and written again by what was called once."""

    def __init__(self, call: Any, inputs: Any) -> None:
        self._call, self._inputs = call, inputs
        self.outputs = call(*inputs)

    def replay(self) -> None:
        """Run the call again, into the same outputs."""
        again = self._call(*self._inputs)
        for there, made in zip(self.outputs, again, strict=True):
            there.copy_(made)


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"Severity.{self.name}"


def at(address: int, shape: tuple[int, ...], kind: Any) -> Any:
    """Return a tensor over memory."""
    size = int(np.prod(shape)) * kind.itemsize
    room = (ctypes.c_uint8 * size).from_address(address)
    return torch.from_numpy(np.frombuffer(room, np.uint8)).view(kind).reshape(shape)


class PlayedContext:
    def __init__(self, engine: PlayedEngine) -> None:
        self.engine = engine
        self.given: dict[str, tuple[int, ...]] = {}
        self.shapes: set[tuple[tuple[int, ...], ...]] = set()
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory
        assert size >= self.engine.device_memory_size_v2
        self.memory = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name in self.engine.inputs
        if shape[0] > self.engine.most:
            self.engine.owner.say("ERROR", f"shape {shape} is not within the profile")
            return False
        self.given[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._outputs()[self.engine.outputs.index(name)].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in (*self.engine.inputs, *self.engine.outputs)
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self.engine
        assert isinstance(stream_handle, int)
        assert self.memory[0], "a context without memory of its own has to be given some"
        assert set(self.addresses) == {*engine.inputs, *engine.outputs}
        if engine.owner.fails:
            engine.owner.say("INTERNAL_ERROR", engine.owner.fails)
            return False
        self.shapes.add(tuple(self.given[name] for name in engine.inputs))
        kinds = engine.kinds
        inputs = [at(self.addresses[name], self.given[name], kinds[name]) for name in engine.inputs]
        made = engine.run(*inputs)
        for name, output in zip(engine.outputs, made, strict=True):
            at(self.addresses[name], tuple(output.shape), output.dtype).copy_(output)
        return True

    def _outputs(self) -> list[Any]:
        engine = self.engine
        return engine.run(*[torch.zeros(self.given[name], dtype=engine.kinds[name]) for name in engine.inputs])


class PlayedEngine:
    device_memory_size_v2 = 4096

    def __init__(self, owner: PlayedTensorRt, data: bytes) -> None:
        extra = {"error": ""}
        program = torch.export.load(io.BytesIO(data), extra_files=extra)
        self.owner = owner
        self.error = float(extra["error"] or 0.0)
        self.inputs = tuple(program.graph_signature.user_inputs)
        self.outputs = ("output0",)
        self._module = program.module(check_guards=False)
        self.most = 1 << 20
        values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        self.kinds = {name: values[name].dtype for name in self.inputs}
        self.contexts: list[PlayedContext] = []

    def run(self, *inputs: Any) -> list[Any]:
        with torch.inference_mode():
            return [self._module(*inputs) + self.error]

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return str((*self.inputs, *self.outputs)[index])

    def get_tensor_dtype(self, name: str) -> _Named:
        shapes = [torch.zeros((1, 4), dtype=self.kinds[key]) for key in self.inputs]
        kind = self.kinds[name] if name in self.kinds else self.run(*shapes)[self.outputs.index(name)].dtype
        return _Named(NAMES[str(kind).removeprefix("torch.")])

    def create_execution_context(self, strategy: str) -> PlayedContext | None:
        assert strategy == "user managed"
        if self.owner.full:
            self.owner.say("ERROR", "out of memory")
            return None
        self.contexts.append(PlayedContext(self))
        return self.contexts[-1]


class PlayedTensorRt:
    """The module.  `refuses`: why engines are not taken; `full`: no context is made; `fails`: why launches fail."""

    __version__ = "11.0.0"

    class ILogger:
        def __init__(self) -> None:
            self.made = True

    class ExecutionContextAllocationStrategy:
        USER_MANAGED = "user managed"

    def __init__(self, refuses: str = "") -> None:
        self.refuses, self.full, self.fails = refuses, False, ""
        self.made: list[PlayedEngine] = []
        self.logger: Any = None

    def say(self, severity: str, text: str) -> None:
        self.logger.log(_Named(severity), text)

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        assert logger.made
        assert namespace == ""
        return True

    def Runtime(self, logger: Any) -> PlayedTensorRt:
        self.logger = logger
        return self

    def deserialize_cuda_engine(self, data: bytes) -> PlayedEngine | None:
        assert isinstance(data, bytes)
        if self.refuses:
            self.say("WARNING", "not this one")
            self.say("ERROR", self.refuses)
            return None
        self.made.append(PlayedEngine(self, data))
        return self.made[-1]
