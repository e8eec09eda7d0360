"""A serialised TensorRT engine, run by TensorRT's own runtime: a worker imports `tensorrt` alone.

An engine is a function of tensors on the device, in the current stream.  An execution context keeps the shapes of its
inputs, and launches that were recorded from it are void once they change; so each batch size has a context of its own,
and its launches can be recorded as those of a module are (`clover.backends.cuda`).  Activations of all contexts lie in
one piece of memory, because they run one after another.  If rows come in several shapes there is one context, which is
given its shapes for every batch.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clover.errors import CloverError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("clover.backends")

TYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FLOAT": "float32",
}
"""Types of torch by the name of TensorRT's."""


def runtime_library(failure: type[CloverError]) -> Any:
    """Return the module `tensorrt`; raises `failure` if it cannot be imported."""
    try:
        return importlib.import_module("tensorrt")
    except Exception as error:  # a library of it may be missing, which it says in several ways
        text = " ".join(str(error).split())[:300]
        raise failure(f"tensorrt cannot be imported ({text}): install clover-inference[tensorrt]") from error


class TensorRtEngine:
    """The engine in `data` as a function; `inputs` are its names of the arguments in order ("": the engine does not
    use that one), `outputs` those of what it returns.  `library` is the module `tensorrt`.  `fixed`: whether shapes
    differ in the number of rows alone.

    Raises `failure` if this TensorRT does not take the engine.  Calls raise RuntimeError."""

    def __init__(
        self,
        library: Any,
        data: bytes,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        fixed: bool,
        failure: type[CloverError],
        device: str = "cuda",
    ) -> None:
        import torch

        self._torch = torch
        self._library = library
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._fixed = fixed
        self._device = device
        self._errors = _error_log(library)
        library.init_libnvinfer_plugins(self._errors, "")
        self._runtime = library.Runtime(self._errors)  # which has to live as long as its engine
        self._engine = self._runtime.deserialize_cuda_engine(data)
        version = getattr(library, "__version__", "")
        if self._engine is None:
            why = self._errors.last or "it does not say why"
            raise failure(
                f"TensorRT {version} does not take the engine ({why}): if another version built it, compile again"
            )
        named = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        declared = {*self._inputs, *self._outputs} - {""}
        if named != declared:
            raise failure(f"the engine has tensors {sorted(named)}, its record names {sorted(declared)}: compile again")
        self._types = [self._type(name, failure) for name in self._outputs]
        self._contexts: dict[int, Any] = {}
        size = int(self._engine.device_memory_size_v2)
        self._scratch = torch.empty(max(1, size), dtype=torch.uint8, device=device)

    def __call__(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Launch a batch on the current stream; return its outputs."""
        context, made = self._context(given)
        for name, tensor in zip(self._inputs, given, strict=True):
            if name and not context.set_tensor_address(name, tensor.data_ptr()):
                raise self._failed(f"does not take input {name}")
        found = []
        for name, kind in zip(self._outputs, self._types, strict=True):
            shape = tuple(context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise RuntimeError(f"TensorRT does not know the shape of output {name} before it runs: {shape}")
            output = self._torch.empty(shape, dtype=kind, device=self._device)
            if not context.set_tensor_address(name, output.data_ptr()):
                raise self._failed(f"does not take output {name}")
            found.append(output)
        if not context.execute_async_v3(self._stream()):
            raise self._failed(f"does not launch a batch of {made} rows")
        return tuple(found)

    def _context(self, given: Sequence[torch.Tensor]) -> tuple[Any, int]:
        """Return the context for the shapes of `given`, set to them, and the number of rows."""
        if not all(tensor.is_contiguous() for tensor in given):
            raise RuntimeError("TensorRT reads inputs as they lie in memory, and one is not contiguous")
        rows = len(given[0])
        key = rows if self._fixed else 0
        context = self._contexts.get(key)
        if context is None:
            context = self._engine.create_execution_context(
                self._library.ExecutionContextAllocationStrategy.USER_MANAGED
            )
            if context is None:
                raise self._failed("makes no execution context")
            context.set_device_memory(self._scratch.data_ptr(), self._scratch.nbytes)
            self._set_shapes(context, given)
            self._contexts[key] = context
        elif not self._fixed:
            self._set_shapes(context, given)
        return context, rows

    def _set_shapes(self, context: Any, given: Sequence[torch.Tensor]) -> None:
        for name, tensor in zip(self._inputs, given, strict=True):
            if name and not context.set_input_shape(name, tuple(tensor.shape)):
                raise self._failed(f"does not take input {name} of shape {tuple(tensor.shape)}")

    def _stream(self) -> int:
        return int(self._torch.cuda.current_stream().cuda_stream) if self._device == "cuda" else 0

    def _type(self, name: str, failure: type[CloverError]) -> torch.dtype:
        found = str(getattr(self._engine.get_tensor_dtype(name), "name", "unknown"))
        if found not in TYPES:
            raise failure(f"output {name} of the engine is {found}, which Clover does not read")
        kind: torch.dtype = getattr(self._torch, TYPES[found])
        return kind

    def _failed(self, what: str) -> RuntimeError:
        said, self._errors.last = self._errors.last, ""
        return RuntimeError(f"TensorRT {what}" + (f": {said}" if said else ""))


def _error_log(library: Any) -> Any:
    """Return a logger of TensorRT's that keeps its last error."""

    class ErrorLog(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, text: str) -> None:
            if "ERROR" in str(severity):
                self.last = " ".join(text.split())[:300]
            _log.debug("TensorRT: %s", text)

    return ErrorLog()
